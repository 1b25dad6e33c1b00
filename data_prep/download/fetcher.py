"""Asks a host for something: politely, within limits, and again when it makes sense."""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import socket
import time
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from http.client import responses
from importlib.metadata import version
from typing import TypeVar

import aiohttp
from yarl import URL

from configs import ConfigError
from data_prep.download.address import PrivateAddressError, checked_sockets
from data_prep.download.config import DownloadConfig

REDIRECTS = 5
"""So many are followed."""

T = TypeVar("T")
_GONE = {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}
_PASSING = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
_MOVED = {301, 302, 303, 307, 308}


class FetchError(Exception):
    """Nothing was fetched. The message is the reason, without the URL, so that reasons can be counted."""


class Gone(FetchError):  # noqa: N818 - what it is, not that it is one
    """The host says that it is not there any more: it is never asked again."""


class Refused(FetchError):  # noqa: N818
    """Asking again would bring the same: done only when somebody wants it."""


class Passing(FetchError):  # noqa: N818
    """May go well next time."""


class Pace:
    """When each host may be asked next. It outlives event loops, so it counts by the clock of the system."""

    def __init__(self, rate: float) -> None:
        self.interval = 1 / rate
        self._next: dict[str, float] = {}

    async def turn(self, host: str) -> None:
        """Wait for the next turn at ``host`` and take it."""
        while (wait := self._next.get(host, 0.0) - time.monotonic()) > 0:
            await asyncio.sleep(wait)  # and look again: the host may have asked for silence meanwhile
        self._next[host] = time.monotonic() + self.interval

    def hold(self, host: str, seconds: float) -> None:
        """Leave ``host`` alone for so long."""
        self._next[host] = max(self._next.get(host, 0.0), time.monotonic() + seconds)


class Fetcher:
    """Fetches over HTTP. ``placeholder`` is what the path of a redirect holds that stands for a lost picture."""

    def __init__(self, config: DownloadConfig, rate: float, placeholder: str = "") -> None:
        self.config = config
        self.pace = Pace(rate)
        self.placeholder = placeholder
        self._failures = 0
        """Passing failures since something else happened."""

    @asynccontextmanager
    async def session(self) -> AsyncIterator[aiohttp.ClientSession]:
        """A session for :meth:`fetch`, of this event loop."""
        agent = f"facerep/{version('facerep')}"
        if self.config.contact:
            agent += f" (+{self.config.contact})"
        connector = aiohttp.TCPConnector(socket_factory=checked_sockets(self.config.allow_private))
        async with aiohttp.ClientSession(
            connector=connector,
            headers={"User-Agent": agent, "Accept-Encoding": "identity"},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,  # unpacked here, up to the limit
        ) as session:
            yield session

    async def fetch(
        self,
        session: aiohttp.ClientSession,
        url: str,
        read: Callable[[bytes], T],
        form: Mapping[str, str] | None = None,
    ) -> T:
        """What ``read`` makes of the body of ``url``; it may raise a :class:`FetchError` too.

        With ``form`` it is posted, and no redirect is followed: the form is for this host.

        Raises:
            FetchError: nothing was fetched.
            ConfigError: the network is away, or the host asks for a long silence. Nothing is wrong with the URL.
        """
        target = _parse(url)  # before anything is asked: what is no URL says nothing of the network
        for attempt in range(self.config.tries):
            try:
                result = read(await self._once(session, target, form))
            except Passing as fault:
                if attempt + 1 == self.config.tries:
                    self._count(fault)
                    raise
                await asyncio.sleep(self.config.backoff * 2**attempt * random.uniform(1, 1.5))  # noqa: S311
            except FetchError:
                self._failures = 0
                raise
            else:
                self._failures = 0
                return result
        raise AssertionError("the last attempt returns or raises")

    def _count(self, fault: Passing) -> None:
        self._failures += 1
        if self._failures >= self.config.give_up_after:
            raise ConfigError(
                f"{self._failures} requests in a row failed, the last with '{fault}': check the network, or raise "
                "download.give_up_after; the same command goes on"
            )

    async def _once(
        self, session: aiohttp.ClientSession, target: URL, form: Mapping[str, str] | None
    ) -> bytes:
        """One try, with its redirects. Waiting for a turn is not counted against the deadline."""
        left = self.config.deadline
        for _ in range(REDIRECTS + 1):
            await self.pace.turn(target.host or "")
            started = time.monotonic()
            answer = await self._ask(session, target, form, left)
            left -= time.monotonic() - started
            if isinstance(answer, bytes):
                return answer
            if form is not None:
                raise Refused("redirected, although a form was posted")
            if self.placeholder and self.placeholder in answer.path:
                raise Gone("a placeholder instead of the picture")
            if left <= 0:
                raise Passing("not there within the deadline")
            target = answer
        raise Refused(f"more than {REDIRECTS} redirects")

    async def _ask(
        self, session: aiohttp.ClientSession, url: URL, form: Mapping[str, str] | None, seconds: float
    ) -> bytes | URL:
        """The body, or where it has moved to."""
        method = "GET" if form is None else "POST"
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with session.request(
                method, url, data=form, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status in _MOVED:
                    return _parse(response.headers.get("Location", ""), url)
                self._check_status(response, url.host or "")
                return await self._body(response)
        except asyncio.TimeoutError:
            raise Passing("not there within the deadline") from None
        except (FetchError, ConfigError):
            raise
        except Exception as error:  # one strange answer must not end the run: see _explain
            raise _explain(error) from None

    def _check_status(self, response: aiohttp.ClientResponse, host: str) -> None:
        status = response.status
        if status == HTTPStatus.OK:
            return
        reason = f"HTTP {status} {responses.get(status, '')}".rstrip()
        if status in _GONE:
            raise Gone(reason)
        if status not in _PASSING and status < 500:
            raise Refused(reason)
        wait = _retry_after(response.headers.get("Retry-After"))
        if wait > self.config.longest_wait:
            raise ConfigError(
                f"{host}: {reason}, and asks to be left alone for {wait:.0f} s, more than "
                f"download.longest_wait={self.config.longest_wait:g}; give the same command then, it goes on"
            )
        self.pace.hold(host, wait)
        raise Passing(reason)

    async def _body(self, response: aiohttp.ClientResponse) -> bytes:
        """The whole body, unpacked, within the limit."""
        limit = self.config.max_bytes
        too_large = Refused(f"larger than {limit} bytes")
        if (response.content_length or 0) > limit:
            raise too_large
        unpack = _Unpacker(response.headers.get("Content-Encoding", "identity").strip().lower())
        body = bytearray()
        async for chunk in response.content.iter_chunked(1 << 16):
            body += unpack(chunk, limit + 1 - len(body))
            if len(body) > limit:
                raise too_large
        unpack.finish()
        return bytes(body)


class _Unpacker:
    """Undoes a Content-Encoding, never into more than it is allowed: 10 MB of gzip can hold 10 GB."""

    def __init__(self, encoding: str) -> None:
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise Refused("in a Content-Encoding that was not asked for")
        packed = encoding not in ("", "identity")
        self._stream = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS) if packed else None

    def __call__(self, chunk: bytes, most: int) -> bytes:
        if self._stream is None:
            return chunk
        try:
            return self._stream.decompress(chunk, most)
        except zlib.error:
            raise Refused("in a damaged Content-Encoding") from None

    def finish(self) -> None:
        if self._stream is not None and not self._stream.eof:
            raise Passing("cut off before its end")


def _parse(text: str, base: URL | None = None) -> URL:
    """An http or https URL, relative to ``base``."""
    if not text:
        raise Refused("not a URL")
    try:
        url = URL(text)
        url = base.join(url) if base is not None else url
        host, port = url.host, url.port
    except Exception:  # yarl stumbles over damage with ValueError, UnicodeError, IndexError
        raise Refused("not a URL") from None
    if url.scheme and url.scheme not in ("http", "https"):
        raise Refused("neither http nor https")
    if not host or not port:
        raise Refused("not a URL")
    return url


def _retry_after(text: str | None) -> float:
    """Seconds, from a number or a date; 0 where there is none."""
    if not text:
        return 0.0
    if re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _explain(error: Exception) -> FetchError:
    """What the library raised, as one of our reasons."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, PrivateAddressError):
        return Refused(str(cause))
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return Refused("its certificate is not valid")
    if isinstance(error, (aiohttp.InvalidURL, UnicodeError)):  # a name that cannot be one of a host
        return Refused("not a URL")
    if isinstance(cause, socket.gaierror):
        # The first two say that there is no such name; a machine without a network gets the other one.
        unknown = cause.errno in (socket.EAI_NONAME, socket.EAI_NODATA)
        return Refused("no such host") if unknown else Passing("the name server does not answer")
    if isinstance(error, aiohttp.ClientConnectorError):
        return Passing("no connection")
    if isinstance(error, aiohttp.ClientPayloadError):
        return Passing("cut off before its end")
    if isinstance(error, aiohttp.ClientResponseError):
        return Passing("no HTTP in the answer")
    if isinstance(error, (aiohttp.ClientError, OSError)):
        return Passing("the connection broke")
    return Refused(f"cannot be understood: {type(error).__name__}")
