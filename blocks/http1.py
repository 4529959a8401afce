"""
HTTP/1.1 on connections that are kept, and no more of it than an API needs.

A general client spends four times what this does on each request, and a
rotation of thousands of tokens is nothing but requests: on two cores the
processor it takes is taken from the servers. What goes wrong is raised as
httpcore's errors, as the connections below do (`blocks.wire`).
"""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import SplitResult, urlsplit

import httpcore

LONGEST_HEAD = 65536
PIECE = 65536
_STATUS = re.compile(rb"HTTP/1\.([01]) (\d{3})(?: (.*))?")
_BODILESS = frozenset({204, 304})
_PORTS = {"http": 80, "https": 443}


class Incoming:
    """An answer whose head has come; its body is read by `chunks`."""

    def __init__(self, link: Link, verb: str) -> None:
        self._link = link
        version, self.status, self.reason = link.status_line()
        while 100 <= self.status < 200:  # "Continue", "Early Hints": the answer is yet to come
            link.headers()
            version, self.status, self.reason = link.status_line()
        self.headers = link.headers()
        self._chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        self._length = self._declared_length()
        if verb == "HEAD" or self.status in _BODILESS:
            self._chunked, self._length = False, 0
        said = self.headers.get("connection", "").lower()
        lasts = "close" not in said if version == b"1" else "keep-alive" in said
        # Without a length the body ends where the connection does.
        self.may_follow = lasts and (self._chunked or self._length is not None)

    def _declared_length(self) -> int | None:
        said = self.headers.get("content-length")
        if said is None:
            return None
        if not (said.isascii() and said.isdigit()):
            raise httpcore.RemoteProtocolError("the length of the body is no number")
        return int(said)

    def chunks(self) -> Iterator[bytes]:
        """The body, piece by piece."""
        if self._chunked:
            yield from self._link.chunked()
        elif self._length is not None:
            yield from self._link.exactly(self._length)
        else:
            yield from self._link.rest()


class Link:
    """One connection: requests out, answers in, one after the other."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._read = b""  # received, and not used yet
        self.idle_since = 0.0

    def fresh(self, seconds: float) -> bool:
        """Whether it was used less than so long ago, and the server did not close it since."""
        return (
            time.monotonic() - self.idle_since < seconds
            and not self._read
            and not self._stream.get_extra_info("is_readable")
        )

    def close(self) -> None:
        """Close it."""
        self._stream.close()

    def send(self, head: bytes, content: bytes) -> None:
        """Send a request; one that was refused while it was sent may have an answer all the same."""
        try:
            self._stream.write(head + content if len(content) < PIECE else head)
            if len(content) >= PIECE:
                self._stream.write(content)
        except httpcore.WriteError:
            pass

    def status_line(self) -> tuple[bytes, int, str]:
        """Version, status and reason."""
        if not self._read:
            self._more(nothing="Server disconnected without sending a response.")
        match = _STATUS.fullmatch(self._line())
        if match is None:
            raise httpcore.RemoteProtocolError("no status line of HTTP/1.1")
        return match[1], int(match[2]), (match[3] or b"").decode("latin-1")

    def headers(self) -> dict[str, str]:
        """Names in lower case; of several alike the last."""
        while not self._read.startswith(b"\r\n") and b"\r\n\r\n" not in self._read:
            self._more()
            if len(self._read) > LONGEST_HEAD:
                raise httpcore.RemoteProtocolError("the head is too long")
        if self._read.startswith(b"\r\n"):
            self._read = self._read[2:]
            return {}
        head, _, self._read = self._read.partition(b"\r\n\r\n")
        found: dict[str, str] = {}
        for line in head.decode("latin-1").split("\r\n"):
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise httpcore.RemoteProtocolError("a line of the head is no header")
            found[name.lower()] = value.strip()
        return found

    def exactly(self, length: int) -> Iterator[bytes]:
        """So many bytes."""
        while length:
            if not self._read:
                self._more()
            piece, self._read = self._read[:length], self._read[length:]
            length -= len(piece)
            yield piece

    def rest(self) -> Iterator[bytes]:
        """All until the server closes the connection."""
        yield self._read
        self._read = b""
        while piece := self._stream.read(PIECE):
            yield piece

    def chunked(self) -> Iterator[bytes]:
        """All chunks; what follows the last is read and dropped."""
        while True:
            size = self._line().partition(b";")[0].strip()
            if not size or size.strip(b"0123456789abcdefABCDEF"):
                raise httpcore.RemoteProtocolError("the size of a chunk is no number")
            if not (length := int(size, 16)):
                self.headers()
                return
            yield from self.exactly(length)
            if self._line():
                raise httpcore.RemoteProtocolError("a chunk does not end where it says")

    def _line(self) -> bytes:
        while b"\r\n" not in self._read:
            if len(self._read) > LONGEST_HEAD:
                raise httpcore.RemoteProtocolError("a line is too long")
            self._more()
        line, _, self._read = self._read.partition(b"\r\n")
        return line

    def _more(self, nothing: str = "the connection ended in the middle") -> None:
        piece = self._stream.read(PIECE)
        if not piece:
            raise httpcore.RemoteProtocolError(nothing)
        self._read += piece


class Links:
    """
    The connections to one server, kept between requests. Safe to use from many threads.

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
        head = _head(verb, parts, headers, content)
        place = (parts.hostname or "", parts.port or _PORTS[parts.scheme])
        link = self._kept(place) or self._open(parts.scheme, place)
        done = False
        try:
            link.send(head, content or b"")
            answer = Incoming(link, verb)
            yield answer
            done = answer.may_follow
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
        return Link(stream)


def _head(
    verb: str, parts: SplitResult, headers: Mapping[str, str], content: bytes | None
) -> bytes:
    """The head of a request; an error if a line of it could be taken for two."""
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = {"Host": parts.netloc.rpartition("@")[2], **headers}
    if content is not None or verb in {"PUT", "POST"}:
        lines["Content-Length"] = str(len(content or b""))
    words = (verb, target, *lines)
    if not all(w and w.isprintable() and " " not in w for w in words) or not all(
        value.isprintable() for value in lines.values()
    ):
        raise httpcore.LocalProtocolError("it cannot be sent")
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    try:
        return f"{verb} {target} HTTP/1.1\r\n{text}\r\n".encode("ascii")
    except UnicodeEncodeError:
        raise httpcore.LocalProtocolError("it cannot be sent") from None
