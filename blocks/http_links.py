"""
The connections to one server, kept between requests, spoken on by the standard library.

`http.client` takes half the processor that httpcore takes for a request, and a
rotation of thousands of tokens is nothing but requests: on few cores the time
it takes is taken from the servers. What goes wrong is raised as httpcore's
errors, as the connections below do (`blocks.wire`).
"""

from __future__ import annotations

import http.client
import io
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpcore

PIECE = 65536
_PORTS = {"http": 80, "https": 443}


class Incoming:
    """An answer whose head has come; its body is read by `chunks`."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self.status, self.reason = response.status, response.reason
        self.headers = {name.lower(): value for name, value in response.headers.items()}

    def chunks(self) -> Iterator[bytes]:
        """The body, piece by piece."""
        while piece := self._response.read(PIECE):
            yield piece
        if self._response.length:  # `read` tells nobody that the rest is missing
            raise httpcore.RemoteProtocolError("the body ended in the middle")

    @property
    def may_follow(self) -> bool:
        """Whether the connection is good for another request."""
        return self._response.isclosed() and not self._response.will_close


class _Received(io.RawIOBase):
    """What a stream receives; nothing while it is `muted`."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self.muted = self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = b"" if self.muted else self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        self.ended = not piece and not self.muted
        return len(piece)


class _Reader(io.BufferedReader):
    """One for all answers of a connection: who has read one does not close it."""

    def close(self) -> None:
        pass


class _Socket:
    """As much of a socket as `http.client` asks for; head and body leave it together."""

    def __init__(self, stream: httpcore.NetworkStream, reader: io.BufferedReader) -> None:
        self._stream, self._reader = stream, reader
        self._out = b""

    def sendall(self, data: bytes) -> None:
        self._out += data

    def flush(self) -> None:
        out, self._out = self._out, b""
        # A request that was refused while it was sent may have an answer all the same.
        with suppress(httpcore.WriteError):
            self._stream.write(out)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return self._reader

    def close(self) -> None:
        """Stay open: an answer without a length is read after the client closes its socket."""


class Link:
    """One connection: a request out, its answer in, one after the other."""

    def __init__(self, stream: httpcore.NetworkStream, scheme: str, place: tuple[str, int]) -> None:
        self._stream, self._received = stream, _Received(stream)
        self._reader = _Reader(self._received, PIECE)
        self._client = http.client.HTTPConnection(*place)
        self._client.default_port = _PORTS[scheme]
        self._client.auto_open = 0
        self._socket: Any = _Socket(stream, self._reader)
        self._client.sock = self._socket
        self.idle_since = 0.0

    def close(self) -> None:
        """Close it."""
        self._stream.close()

    def fresh(self, seconds: float) -> bool:
        """Whether it was used less than so long ago, and nothing has come since, not even its end."""
        self._received.muted = True
        left_over = self._reader.peek(1)
        self._received.muted = False
        return (
            time.monotonic() - self.idle_since < seconds
            and not left_over
            and not self._stream.get_extra_info("is_readable")
        )

    def exchange(
        self, verb: str, target: str, headers: Mapping[str, str], content: bytes | None
    ) -> Incoming:
        """
        Send one request and read the head of its answer.

        Raises:
            httpcore.ProtocolError: one of them is no HTTP.
        """
        try:
            sent = {name: value.encode("ascii") for name, value in headers.items()}
            self._client.request(verb, target, content, sent)
        except (ValueError, http.client.InvalidURL):
            # Its text may hold a header, and so a token.
            raise httpcore.LocalProtocolError("it cannot be sent") from None
        self._socket.flush()
        response = self._client.getresponse()
        while 100 <= response.status < 200:  # "Early Hints": the answer is yet to come
            response.close()
            response = http.client.HTTPResponse(self._socket, method=verb)
            response.begin()
        self._check(response)
        return Incoming(response)

    def _check(self, response: http.client.HTTPResponse) -> None:
        """What `http.client` takes for an answer and is none."""
        said = response.headers.get("content-length")
        if self._received.ended or response.headers.defects:
            raise httpcore.RemoteProtocolError("its head is cut short, or no head")
        if said is not None and not (said.isascii() and said.isdigit()):
            raise httpcore.RemoteProtocolError("the length of the body is no number")


class Links:
    """
    The connections to one server. Safe to use from many threads.

    Nothing is ever sent twice: a kept connection is looked at before it is used,
    and whatever fails afterwards is the caller's.
    """

    def __init__(
        self, backend: httpcore.NetworkBackend, tls: ssl.SSLContext | None, keep_seconds: float
    ) -> None:
        self._backend, self._tls, self._keep = backend, tls, keep_seconds
        self._lock = threading.Lock()
        self._idle: list[tuple[tuple[str, int], Link]] = []

    def close(self) -> None:
        """Close those that are not in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, link in idle:
            link.close()

    @contextmanager
    def stream(
        self, verb: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> Iterator[Incoming]:
        """
        Send one request; what came back, its body to be read inside.

        Raises:
            httpcore.ProtocolError: the request, or the answer, is no HTTP.
            httpcore.NetworkError, httpcore.TimeoutException: the connection failed.
        """
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        place = (parts.hostname or "", parts.port or _PORTS[parts.scheme])
        link = self._kept(place) or self._open(parts.scheme, place)
        done = False
        try:
            answer = link.exchange(verb, target, headers, content)
            yield answer
            done = answer.may_follow
        except http.client.RemoteDisconnected:
            nothing = "Server disconnected without sending a response."
            raise httpcore.RemoteProtocolError(nothing) from None
        except (http.client.HTTPException, ValueError) as error:
            raise httpcore.RemoteProtocolError(type(error).__name__) from None
        finally:
            if done:
                link.idle_since = time.monotonic()
                with self._lock:
                    self._idle.append((place, link))
            else:
                link.close()

    def _kept(self, place: tuple[str, int]) -> Link | None:
        while True:
            with self._lock:
                found = next((kept for kept in reversed(self._idle) if kept[0] == place), None)
                if found is None:
                    return None
                self._idle.remove(found)
            if found[1].fresh(self._keep):
                return found[1]
            found[1].close()

    def _open(self, scheme: str, place: tuple[str, int]) -> Link:
        stream = self._backend.connect_tcp(*place)
        if scheme == "https":
            assert self._tls is not None
            stream = stream.start_tls(self._tls, server_hostname=place[0])
        return Link(stream, scheme, place)
