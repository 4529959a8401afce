"""
Connections that keep to one overall deadline.

A time-out by itself bounds one read, so a server that drips a byte a second
holds its caller for as long as it likes. Here every look-up, connect,
handshake, read and write gets only what is left of the call's deadline.
"""

from __future__ import annotations

import ipaddress
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import httpcore
from typing_extensions import override

from blocks.errors import Unreachable, Untrusted

PIECE = 65536  # bytes sent at once, so that the deadline is looked at in between

_ends: ContextVar[float] = ContextVar("ends")


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Give all that this thread does on the wire inside the block `seconds` in total."""
    token = _ends.set(time.monotonic() + seconds)
    try:
        yield
    finally:
        _ends.reset(token)


def left() -> float:
    """Seconds left of the deadline; `TimeoutError` when none are."""
    seconds = _ends.get() - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("the deadline passed")
    return seconds


class Socket(Protocol):
    """What a stream needs of a socket; an SSH channel has it too."""

    def settimeout(self, value: float, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...
    def send(self, data: bytes, /) -> int: ...
    def close(self) -> None: ...
    def fileno(self) -> int: ...


Dial = Callable[[str, int, float], Socket]


def dial(host: str, port: int, timeout: float) -> Socket:
    """A TCP connection to the first of the host's addresses that answers within `timeout`."""
    ends = time.monotonic() + timeout
    addresses = _resolve(host, port, timeout)
    for number, (family, kind, protocol, _, address) in enumerate(addresses):
        # A blackholed first address must leave time for the others.
        share = (ends - time.monotonic()) / (len(addresses) - number)
        if share <= 0:
            break
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(share)
            connection.connect(address)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            connection.close()
            if number == len(addresses) - 1:
                raise
        else:
            return connection
    raise TimeoutError("the deadline passed")


def _resolve(host: str, port: int, timeout: float) -> list[Any]:
    """Addresses of a host; a resolver that hangs costs no more than the deadline."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    found: list[Any] = []
    failed: list[OSError] = []

    def look_up() -> None:
        try:
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            failed.append(error)

    # After a blackout the machine's own resolver may be part of what is down, and
    # getaddrinfo knows no time-out.
    thread = threading.Thread(target=look_up, daemon=True, name=f"resolve {host}")
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise TimeoutError(f"the name {host} did not resolve in time")
    if failed:
        raise failed[0]
    return found


class Stream(httpcore.NetworkStream):
    """One connection under the current deadline."""

    def __init__(self, connection: Socket, server: str) -> None:
        self._socket = connection
        self._server = server

    @override
    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What has arrived, up to `max_bytes`; empty at the end."""
        try:
            self._socket.settimeout(left())
            return self._socket.recv(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(reason(error)) from error
        except ssl.SSLError as error:
            raise _tls_error(error, self._server) from error
        except OSError as error:
            raise httpcore.ReadError(reason(error)) from error

    @override
    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of `buffer`."""
        try:
            rest = memoryview(buffer)
            while rest:
                self._socket.settimeout(left())
                rest = rest[self._socket.send(bytes(rest[:PIECE])) :]
        except TimeoutError as error:
            raise httpcore.WriteTimeout(reason(error)) from error
        except OSError as error:
            raise httpcore.WriteError(reason(error)) from error

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    @override
    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        """Do the TLS handshake; `Untrusted` if the server cannot prove who it is."""
        assert isinstance(self._socket, socket.socket), "TLS needs a socket of the system"
        try:
            self._socket.settimeout(left())
            secured = ssl_context.wrap_socket(self._socket, server_hostname=server_hostname)
        except TimeoutError as error:
            self.close()
            raise httpcore.ConnectTimeout(reason(error)) from error
        except ssl.SSLError as error:
            self.close()
            raise _tls_error(error, self._server) from error
        except OSError as error:
            self.close()
            raise httpcore.ConnectError(reason(error)) from error
        return Stream(secured, self._server)

    def get_extra_info(self, info: str) -> Any:
        """Only whether an idle connection has something to read, that is, was closed."""
        if info != "is_readable":
            return None
        try:
            poll = select.poll()
            poll.register(self._socket.fileno(), select.POLLIN)
            return bool(poll.poll(0))
        except (OSError, ValueError):
            return True


class Backend(httpcore.NetworkBackend):
    """Opens connections under the current deadline."""

    def __init__(self, server: str, how: Dial = dial) -> None:
        self._server = server
        self._dial = how

    @override
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to one server."""
        try:
            return Stream(self._dial(host, port, left()), self._server)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(reason(error)) from error
        except OSError as error:
            raise httpcore.ConnectError(reason(error)) from error


def reason(error: OSError) -> str:
    """A system's error in a few words, without its number."""
    if isinstance(error, socket.gaierror):
        return "its name does not resolve"
    return (error.strerror or str(error) or type(error).__name__).lower()


_UNTRUSTED = {
    9: ("its certificate is not valid yet", "compare the clocks of this machine and the server"),
    10: ("its certificate has expired", "renew the server's certificate"),
    62: ("its certificate is for another name", "use the name or address in the certificate"),
    64: ("its certificate is for another address", "use the name or address in the certificate"),
}


def _tls_error(error: ssl.SSLError, server: str) -> Exception:
    if isinstance(error, ssl.SSLCertVerificationError):
        text, remedy = _UNTRUSTED.get(
            error.verify_code,
            (
                f"its certificate is not trusted ({error.verify_message})",
                "check the CA file of this connection against the server's certificate",
            ),
        )
        return Untrusted(text, where=server, remedy=remedy)
    if error.reason and "ALERT" in error.reason and "INTERNAL" not in error.reason:
        return Untrusted(
            f"it refused the TLS handshake ({error.reason.replace('_', ' ').lower()})",
            where=server,
            remedy="check the client certificate of this connection, if the server asks for one",
        )
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return httpcore.ReadError("the connection was closed")
    return Unreachable(
        f"no TLS is spoken there ({(error.reason or 'unknown').replace('_', ' ').lower()})",
        where=server,
    )
