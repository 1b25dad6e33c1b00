"""A real HTTP server on this machine, which misbehaves as it is told."""

from __future__ import annotations

import gzip
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image

KEY = "0123456789abcdef-the-key"
Answer = Callable[["Handler"], None]


def jpeg(seed: int = 0, size: tuple[int, int] = (64, 48)) -> bytes:
    """A small picture, another one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(stream, "JPEG", quality=90)
    return stream.getvalue()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.body = b""
        self._answer()

    def do_POST(self) -> None:
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer()

    def _answer(self) -> None:
        with self.server.lock:
            self.server.log.append(self.path)
            self.server.times.append(time.monotonic())
            self.server.agents.add(self.headers["User-Agent"])
        self.server.answers.get(urlsplit(self.path).path, status(404))(self)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.log: list[str] = []
        self.times: list[float] = []
        self.agents: set[str] = set()
        self.lock = threading.Lock()

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is part of the tests."""

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.server_port}{path}"

    @property
    def asked(self) -> Counter[str]:
        with self.lock:
            return Counter(self.log)


@contextmanager
def serve(host: str = "127.0.0.1") -> Iterator[Server]:
    with Server(host) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


# --- answers -------------------------------------------------------------------------------------------------


def send(data: bytes, kind: str = "image/jpeg", length: int | None = None, **headers: str) -> Answer:
    """``data``; a ``length`` other than its own, and the connection ends too early."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(data) if length is None else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)
        handler.close_connection = length is not None

    return answer


def packed(data: bytes, length: int | None = None) -> Answer:
    return send(gzip.compress(data)[:length], Content_Encoding="gzip")


def status(code: int, body: bytes = b"no", **headers: str) -> Answer:
    def answer(handler: Handler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def moved(to: str, code: int = 302) -> Answer:
    return status(code, Location=to)


def in_turn(*answers: Answer) -> Answer:
    """One answer after the other; the last one for ever."""
    left = list(answers)
    return lambda handler: (left.pop(0) if len(left) > 1 else left[0])(handler)


def raw(data: bytes) -> Answer:
    """Bytes that need not be HTTP, then the end of the connection."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(data)
        handler.close_connection = True

    return answer


def drip(head: bytes, every: float = 0.02) -> Answer:
    """A byte now and then, for ever; ``head`` at once."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(head)
        while True:
            handler.wfile.write(b"a")
            time.sleep(every)

    return answer


def endless(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nConnection: close\r\n\r\n")
    while True:
        handler.wfile.write(bytes(1 << 16))


# --- Flickr --------------------------------------------------------------------------------------------------


class FakeFlickr:
    """flickr.photos.search and its pictures, as far as they are known. ``photos``: what it holds."""

    def __init__(self, server: Server, photos: list[dict[str, Any]]) -> None:
        self.photos = sorted(photos, key=lambda photo: photo["dateupload"])
        self.queries: list[dict[str, str]] = []
        server.answers["/services/rest/"] = self._search
        for photo in photos:
            path = f"/{photo['server']}/{photo['id']}_{photo['secret']}.jpg"
            server.answers.setdefault(path, _picture(int(photo["id"])))

    def _search(self, handler: Handler) -> None:
        query = {name: values[0] for name, values in parse_qs(handler.body.decode()).items()}
        self.queries.append(query)
        send(json.dumps(self._answer(query)).encode(), "application/json")(handler)

    def _answer(self, query: dict[str, str]) -> dict[str, Any]:
        if query.get("api_key") != KEY:
            return {"stat": "fail", "code": 100, "message": f"Invalid API Key ({query.get('api_key')})"}
        first, last = int(query["min_upload_date"]), int(query["max_upload_date"])
        found = [
            photo
            for photo in self.photos
            if first <= photo["dateupload"] <= last
            and query["tags"] in photo["tags"].split()
            and str(photo["license"]) in query["license"].split(",")
        ]
        size, page = int(query["per_page"]), int(query["page"])
        pages = -(-len(found) // size)
        start = (min(page, 4000 // size) - 1) * size  # what comes after the first 4000 is repeated
        return {
            "photos": {
                "page": page,
                "pages": pages,
                "perpage": size,
                "total": str(len(found)),
                "photo": [_public(photo) for photo in found[start : start + size]],
            },
            "stat": "ok",
        }


def _picture(number: int) -> Answer:
    return lambda handler: send(jpeg(number))(handler)


def _public(photo: dict[str, Any]) -> dict[str, Any]:
    return {**photo, "license": str(photo["license"]), "dateupload": str(photo["dateupload"]), "farm": 66}


def photo(number: int, tags: str, uploaded: int, licence: int = 4, **other: Any) -> dict[str, Any]:
    return {
        "id": str(number),
        "server": "65535",
        "secret": f"{number:010x}",
        "owner": f"{number % 7}@N00",
        "ownername": f"Ängström {number % 7}",
        "title": f"Title, {number}",
        "license": licence,
        "tags": tags,
        "dateupload": uploaded,
        **other,
    }
