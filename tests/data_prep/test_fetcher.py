"""What fetches over HTTP, against a server that misbehaves."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import ConfigError
from data_prep.download.address import is_public
from data_prep.download.config import DownloadConfig
from data_prep.download.fetcher import Fetcher, FetchError, Gone, Passing, Refused
from tests.data_prep.web import (
    Answer,
    Server,
    drip,
    endless,
    in_turn,
    jpeg,
    moved,
    packed,
    raw,
    send,
    serve,
    status,
)

PICTURE = jpeg()
FAST: dict[str, Any] = {
    "rate": 10_000.0,
    "backoff": 0.01,
    "tries": 2,
    "deadline": 5.0,
    "allow_private": ("127.0.0.0/8",),
}


@pytest.fixture
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


def fetcher(placeholder: str = "", **fields: Any) -> Fetcher:
    config = DownloadConfig(**{**FAST, **fields})
    return Fetcher(config, config.rate, placeholder)


def fetch(one: Fetcher, *urls: str, **options: Any) -> list[bytes | BaseException]:
    """Bodies or errors, all asked for at once."""

    async def run() -> list[bytes | BaseException]:
        async with one.session() as session:
            waiting = (one.fetch(session, url, bytes, **options) for url in urls)
            return await asyncio.gather(*waiting, return_exceptions=True)

    return asyncio.run(run())


def get(url: str, **fields: Any) -> bytes:
    (result,) = fetch(fetcher(**fields), url)
    if isinstance(result, BaseException):
        raise result
    return result


def test_a_picture_comes_as_it_is(server: Server) -> None:
    server.answers["/a,b%20c.jpg"] = send(PICTURE, "application/x-unheard-of")
    assert get(server.url("/a,b c.jpg"), contact="me@example.org") == PICTURE
    (agent,) = server.agents
    assert agent.startswith("facerep/")
    assert agent.endswith("(+me@example.org)")


@pytest.mark.parametrize(
    ("answer", "kind", "reason", "asked"),
    [
        (status(404), Gone, "HTTP 404 Not Found", 1),
        (status(410), Gone, "HTTP 410 Gone", 1),
        (status(403), Refused, "HTTP 403 Forbidden", 1),
        (status(206, PICTURE[:9]), Refused, "HTTP 206 Partial Content", 1),
        (status(799), Passing, "HTTP 799", 2),
        (status(500), Passing, "HTTP 500 Internal Server Error", 2),
        (status(429), Passing, "HTTP 429 Too Many Requests", 2),
        (status(503, Retry_After="later"), Passing, "HTTP 503 Service Unavailable", 2),
        (send(PICTURE[:500], length=len(PICTURE)), Passing, "cut off before its end", 2),
        (
            raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n5\r\nab"),
            Passing,
            "cut off before its end",
            2,
        ),
        (packed(PICTURE, length=400), Passing, "cut off before its end", 2),
        (raw(b""), Passing, "the connection broke", 4),  # aiohttp asks again by itself when a connection ends
        (raw(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), Passing, "no HTTP in the answer", 2),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabc"), Passing, "no HTTP in the answer", 2),
        (raw(b"HTTP/1.1 200 OK\r\nX: " + bytes(range(65, 91)) * 4000), Passing, "no HTTP in the answer", 2),
        (send(b"no gzip", Content_Encoding="gzip"), Refused, "in a damaged Content-Encoding", 1),
        (
            send(b"?", Content_Encoding="br"),
            Refused,
            "in a Content-Encoding that was not asked for",
            1,
        ),
        (status(302), Refused, "not a URL", 1),
        (moved("file:///etc/passwd"), Refused, "neither http nor https", 1),
        (moved("ftp://example.org/a.jpg"), Refused, "neither http nor https", 1),
        (moved("http://[::1"), Refused, "not a URL", 1),
        (moved("http://example.org:99999/"), Refused, "not a URL", 1),
        (moved("/picture"), Refused, "more than 5 redirects", 6),
    ],
)
def test_failures_have_a_kind_and_a_reason(
    server: Server, answer: Answer, kind: type[FetchError], reason: str, asked: int
) -> None:
    server.answers["/picture"] = answer
    with pytest.raises(FetchError) as caught:
        get(server.url("/picture"))
    assert (caught.type, str(caught.value)) == (kind, reason)
    assert len(server.log) == asked, "a passing failure is tried twice, another one once"


@pytest.mark.parametrize(
    "first",
    [
        status(500),
        status(503),
        status(429, Retry_After="0"),
        send(PICTURE[:500], length=len(PICTURE)),
        raw(b""),
    ],
)
def test_what_passes_is_tried_again(server: Server, first: Answer) -> None:
    server.answers["/picture"] = in_turn(first, send(PICTURE))
    assert get(server.url("/picture")) == PICTURE
    assert len(server.log) == 2


def test_damaged_answers_raise_nothing_else(server: Server) -> None:
    """Flipped, cut and doubled bytes in whole HTTP answers: a body or a reason comes, never another exception."""
    heads = [
        b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 40\r\nContent-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/a?b=c\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\nSet-Cookie: a=b; path=/\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n28\r\n",
    ]
    random = np.random.default_rng(0)
    urls = []
    for i in range(400):
        data = bytearray(heads[i % len(heads)] + random.bytes(40) + b"\r\n0\r\n\r\n")
        for _ in range(random.integers(1, 6)):
            at = int(random.integers(len(data)))
            data[at : at + int(random.integers(3))] = random.bytes(int(random.integers(4)))
        server.answers[f"/{i}"] = raw(bytes(data))
        urls.append(server.url(f"/{i}"))
    results = fetch(fetcher(tries=1, deadline=20.0, give_up_after=10_000, longest_wait=1e9), *urls)
    odd = [result for result in results if not isinstance(result, (bytes, FetchError))]
    assert not odd
    assert len({str(result) for result in results if isinstance(result, FetchError)}) > 4


def test_redirects_are_followed(server: Server) -> None:
    server.answers["/1"] = moved("2", 301)
    server.answers["/2"] = moved(server.url("/3"), 307)
    server.answers["/3"] = moved("/4", 308)
    server.answers["/4"] = send(PICTURE)
    assert get(server.url("/1")) == PICTURE
    assert server.log == ["/1", "/2", "/3", "/4"]


def test_a_loop_of_two_ends(server: Server) -> None:
    server.answers |= {"/a": moved("/b"), "/b": moved("/a")}
    with pytest.raises(Refused, match="more than 5 redirects"):
        get(server.url("/a"))


def test_a_redirect_to_the_placeholder_is_a_loss(server: Server) -> None:
    server.answers["/1.jpg"] = moved("/images/photo_unavailable_l.png")
    (error,) = fetch(fetcher("photo_unavailable"), server.url("/1.jpg"))
    assert isinstance(error, Gone)
    assert server.log == ["/1.jpg"]


def test_a_form_goes_to_its_host_alone(server: Server) -> None:
    server.answers["/api"] = moved("/elsewhere", 307)
    (error,) = fetch(fetcher(), server.url("/api"), form={"api_key": "secret"})
    assert isinstance(error, Refused)
    assert server.log == ["/api"]


# --- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.5.4", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%1",
        "fc00::1", "ff02::1",
        "::127.0.0.1", "::ffff:0:127.0.0.1", "fec0::1", "64:ff9b:1::7f00:1", "5f00::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::127.0.0.1",
        "2002:7f00:1::", "2002:c0a8:101::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "151.101.1.1", "2606:4700:4700::1111", "64:ff9b::808:808", "2002:808:808::"],
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",
        "0x7f.1",
        "127.1",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "127.0.0.1.",
    ],
)
def test_no_way_to_write_this_machine_gets_there(server: Server, host: str) -> None:
    server.answers["/"] = send(PICTURE)
    with pytest.raises(FetchError) as caught:
        get(server.url("/", host), allow_private=())
    assert str(caught.value) in ("leads to an address that is not public", "no such host", "not a URL")
    assert not server.log


@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.1:{port}/x",
        "http://localhost:{port}/x",
        "http://169.254.169.254/",
        "http://[::1]:{port}/x",
    ],
)
def test_an_allowed_host_leads_to_no_other(to: str) -> None:
    with serve("0.0.0.0") as server:
        server.answers["/x"] = send(PICTURE)
        server.answers["/picture"] = moved(to.format(port=server.server_port))
        url = server.url("/picture", "127.0.0.2")
        with pytest.raises(Refused, match="leads to an address that is not public"):
            get(url, allow_private=("127.0.0.2/32",))
        assert server.log == ["/picture"]
        if "169" not in to and "[" not in to:
            assert get(url) == PICTURE, "it is there, and reached once its network is allowed"


# --- limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_a_drip_ends_at_the_deadline(server: Server, head: bytes) -> None:
    server.answers["/picture"] = drip(head)
    with pytest.raises(Passing, match=r"not there within the deadline|no HTTP in the answer"):
        get(server.url("/picture"), deadline=0.3, tries=1)


def test_redirects_share_one_deadline(server: Server) -> None:
    def slowly(handler: Any) -> None:
        time.sleep(0.15)
        moved("/picture")(handler)

    server.answers["/picture"] = slowly
    with pytest.raises(Passing, match="not there within the deadline"):
        get(server.url("/picture"), deadline=0.4, tries=1)
    assert len(server.log) < 6


def test_a_host_that_never_answers(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(Passing, match="not there within the deadline"):
            get(url, deadline=0.2, tries=1)


@pytest.mark.parametrize(
    "answer", [endless, send(bytes(200_000)), packed(bytes(300_000_000))], ids=["endless", "long", "bomb"]
)
def test_too_much_is_refused_without_being_held(server: Server, answer: Answer) -> None:
    server.answers["/picture"] = answer
    tracemalloc.start()
    with pytest.raises(Refused, match="larger than 100000 bytes"):
        get(server.url("/picture"), max_bytes=100_000)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    assert len(server.log) == 1


def test_a_packed_answer_is_unpacked(server: Server) -> None:
    server.answers["/picture"] = packed(PICTURE)
    assert get(server.url("/picture"), max_bytes=len(PICTURE)) == PICTURE


# --- politeness ----------------------------------------------------------------------------------------------


def test_the_pace_holds_for_all_at_once(server: Server) -> None:
    server.answers["/picture"] = send(PICTURE)
    assert fetch(fetcher(rate=20.0), *[server.url("/picture")] * 8) == [PICTURE] * 8
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert sum(gaps) >= 7 * 0.05 * 0.9, "eight requests at 20 a second take seven gaps of 1/20 s"


def test_each_host_has_its_own_pace() -> None:
    with serve("0.0.0.0") as server:
        server.answers["/picture"] = send(PICTURE)
        one = fetcher(rate=0.01)  # a second request to one host would wait for 100 s
        urls = [server.url("/picture", host) for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3")]
        assert fetch(one, *urls) == [PICTURE] * 3


@pytest.mark.parametrize("unit", ["seconds", "date"])
def test_when_a_host_asks_for_silence_all_are_silent(server: Server, unit: str) -> None:
    def busy(handler: Any) -> None:
        date = format_datetime(datetime.now(timezone.utc) + timedelta(seconds=2), usegmt=True)
        status(429, Retry_After="1" if unit == "seconds" else date)(handler)

    server.answers["/busy"] = in_turn(busy, send(PICTURE))
    server.answers["/other"] = send(PICTURE)
    one = fetcher(rate=100.0)

    async def run() -> list[bytes]:
        async with one.session() as session:
            first = asyncio.create_task(one.fetch(session, server.url("/busy"), bytes))
            while not server.log:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            other = await one.fetch(session, server.url("/other"), bytes)
            return [await first, other]

    assert asyncio.run(run()) == [PICTURE, PICTURE]
    assert server.times[1] - server.times[0] > 0.9, "a date has whole seconds: two are at least one"


def test_a_long_silence_stops_the_command(server: Server) -> None:
    server.answers["/picture"] = status(429, Retry_After="3600")
    with pytest.raises(ConfigError, match=r"asks to be left alone for 3600 s.*download\.longest_wait=300"):
        get(server.url("/picture"))


def test_an_absent_network_stops_the_command(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dead = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    server.answers["/gone"] = status(404)
    one = fetcher(give_up_after=3, tries=1)
    kinds = [type(*fetch(one, url)) for url in [dead, dead, server.url("/gone"), dead, dead, dead]]
    assert kinds == [Passing, Passing, Gone, Passing, Passing, ConfigError], "an answer starts the count anew"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "not a URL"),
        ("picture.jpg", "not a URL"),
        ("http://", "not a URL"),
        ("file:///etc/passwd", "neither http nor https"),
        ("javascript:alert(1)", "neither http nor https"),
        ("http://no-such-host.invalid/", "no such host|the name server does not answer"),
        ("http://a..b/", "not a URL|no such host|the connection broke"),
        ("//[::1]@/", "not a URL"),
        ("http://xn--/", "not a URL"),
        ("http://z\u00e9\u2024./", "not a URL"),
        ("http://\ud800/", "not a URL"),
        ("http://exa mple.org/", "not a URL|no such host|the name server does not answer"),
        ("http://" + "a" * 300 + ".org/", "not a URL|no such host|the connection broke|no connection"),
    ],
)
def test_addresses_that_are_none(url: str, reason: str) -> None:
    with pytest.raises(FetchError, match=f"^({reason})$"):
        get(url)


# --- TLS -----------------------------------------------------------------------------------------------------

ONE_FETCH = """
import asyncio, sys
from data_prep.download.config import DownloadConfig
from data_prep.download.fetcher import Fetcher
async def main():
    one = Fetcher(DownloadConfig(allow_private=("127.0.0.0/8",), tries=1), 100)
    async with one.session() as session:
        print(len(await one.fetch(session, sys.argv[1], bytes)))
asyncio.run(main())
"""


def test_a_certificate_is_checked(server: Server, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    words += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(words, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Server() as secure:
        secure.socket = context.wrap_socket(secure.socket, server_side=True)
        secure.answers["/picture"] = send(PICTURE)
        threading.Thread(target=secure.serve_forever, args=(0.02,), daemon=True).start()
        url = f"https://localhost:{secure.server_port}/picture"
        with pytest.raises(Refused, match="its certificate is not valid"):
            get(url)
        trusting = {"SSL_CERT_FILE": str(certificate), "PATH": ""}
        words = [sys.executable, "-c", ONE_FETCH, url]
        result = subprocess.run(words, env=trusting, capture_output=True, text=True, timeout=60)
        assert result.stdout == f"{len(PICTURE)}\n", result.stderr
        secure.shutdown()
