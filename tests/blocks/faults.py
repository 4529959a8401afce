"""A server over a raw socket that fails in one chosen way, and says what reached it."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

Behaviour = Callable[[socket.socket, bytes], None]


class FaultServer:
    """Serves each connection by `behave`; `requests` holds every request that arrived whole."""

    def __init__(self, behave: Behaviour, *, tls: ssl.SSLContext | None = None, reads: bool = True):
        self.behave = behave
        self.requests: list[bytes] = []
        self.connections = 0
        self._tls = tls
        self._reads = reads
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopping = True
        # A blocked accept does not notice that its socket was closed.
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _serve(self) -> None:
        while not self._stopping:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with suppress(OSError):
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._open.append(connection)
            while True:
                request = b""
                if self._reads:
                    request = read_request(connection)
                    if not request:
                        return
                    self.requests.append(request)
                self.behave(connection, request)
                if not self._reads:
                    return


def read_request(connection: socket.socket) -> bytes:
    """One HTTP request, head and body; empty at the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        received = connection.recv(65536)
        if not received:
            return b""
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


# Behaviours


def answer(
    status: int = 200, body: bytes = b"{}", *, headers: str = "", reason: str = "Said"
) -> Behaviour:
    def behave(connection: socket.socket, request: bytes) -> None:
        head = f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        connection.sendall(head.encode("latin-1") + body)

    return behave


def answer_after(seconds: float) -> Behaviour:
    def behave(connection: socket.socket, request: bytes) -> None:
        time.sleep(seconds)
        answer()(connection, request)

    return behave


def hang(connection: socket.socket, request: bytes) -> None:
    time.sleep(60)


def close(connection: socket.socket, request: bytes) -> None:
    """Carry the request out and lose the answer."""
    connection.close()


def reset(connection: socket.socket, request: bytes) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def reset_in_body(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    time.sleep(0.05)
    reset(connection, request)


def truncate(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"half":')
    connection.close()


def truncate_chunks(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n8\r\n{"half":\r\n')
    connection.close()


def drip_body(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        connection.sendall(b" ")
        time.sleep(0.1)


def drip_head(connection: socket.socket, request: bytes) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000:
        connection.sendall(bytes([byte]))
        time.sleep(0.1)


def babble(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"220 mail.example ESMTP ready\r\n\r\n")
    connection.close()


def pour(connection: socket.socket, request: bytes) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
