"""Opening an SSH connection: to the pinned host only, within a deadline."""

from __future__ import annotations

import logging
import socket
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager

import paramiko

from blocks import calls, wire
from blocks.errors import (
    BadAnswer,
    BadInput,
    Forbidden,
    MeshError,
    Refused,
    Unreachable,
    Untrusted,
)
from blocks.topology import Host

# A machine that lost its power does not say so; the kernel gives up on it after this.
UNANSWERED_MILLISECONDS = 15_000

_log = "blocks.ssh.transport"
# Its errors reach the caller as exceptions; here they would only be tracebacks in between.
logging.getLogger(_log).setLevel(logging.CRITICAL)


def connect(host: Host, user: str, key: paramiko.PKey) -> paramiko.Transport:
    """
    An open connection, logged in, within the current `wire.deadline`.

    Raises:
        Refused: the topology pins no key for this host.
        Untrusted: the host has another key than the pinned one.
        Forbidden: the host does not accept our key.
        Unreachable, BadAnswer: no SSH server answers there now.
    """
    server = f"ssh {host.name}"
    pinned = _pinned(host, server)
    with calls.call(server, "connect", mutates=False):
        with _translated(server):
            connection = wire.dial(host.address, host.ssh_port, wire.left())
        assert isinstance(connection, socket.socket)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNANSWERED_MILLISECONDS)
        transport = paramiko.Transport(connection)
        try:
            with _translated(server):
                _handshake(transport, pinned, server)
                _log_in(transport, user, key, server)
        except BaseException:
            transport.close()
            raise
    return transport


def _pinned(host: Host, server: str) -> paramiko.PKey:
    if not host.host_key:
        raise Refused(
            "the topology pins no host key for it",
            where=server,
            remedy="put its public host key, read where it is certain (the cloud's console or "
            "the image), into host_key of this host",
        )
    try:
        kind, encoded = host.host_key.split()[:2]
        pinned = paramiko.PKey.from_type_string(kind, b64decode(encoded, validate=True))
    except (ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
        raise BadInput(
            f"host_key of {host.name}: not a public key such as ssh-ed25519 AAAA..."
        ) from error
    return pinned


def _handshake(transport: paramiko.Transport, pinned: paramiko.PKey, server: str) -> None:
    transport.set_log_channel(_log)
    # A host may have several keys; it must show the kind that is pinned.
    kind = pinned.get_name()
    transport.get_security_options().key_types = (
        ("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,)
    )
    transport.start_client(timeout=wire.left())
    if not transport.initial_kex_done:
        raise TimeoutError
    shown = transport.get_remote_server_key()
    if (shown.get_name(), shown.asbytes()) != (pinned.get_name(), pinned.asbytes()):
        raise Untrusted(
            f"it has the host key {shown.fingerprint}, pinned is {pinned.fingerprint}",
            where=server,
            remedy="if the machine was replaced, pin its new key in host_key of this host; "
            "otherwise something else answers at its address",
        )


def _log_in(transport: paramiko.Transport, user: str, key: paramiko.PKey, server: str) -> None:
    transport.auth_timeout = wire.left()
    try:
        transport.auth_publickey(user, key)
    except paramiko.AuthenticationException as error:
        if "timeout" in str(error).lower():
            raise TimeoutError from error
        if "shut down" in str(error):
            raise EOFError from error
        raise Forbidden(
            f"it does not accept our key {key.fingerprint} for user {user}",
            where=server,
            remedy="check the key (and the certificate's principals and expiry) of connection "
            "`hosts` against authorized_keys of the host",
        ) from error


@contextmanager
def _translated(server: str) -> Iterator[None]:
    try:
        yield
    except MeshError:
        raise
    except TimeoutError as error:
        raise Unreachable("no SSH connection in time", where=server) from error
    except paramiko.ssh_exception.IncompatiblePeer as error:
        raise Untrusted(
            f"no common algorithm: {str(error).rstrip('.').lower()}",
            where=server,
            remedy="pin a host key of a kind that the host has",
        ) from error
    except paramiko.SSHException as error:
        text = str(error)
        if "Indecipherable" in text or "Invalid SSH banner" in text:
            # The text quotes what the server sent, of any length.
            raise BadAnswer("no SSH is spoken there", where=server) from None
        raise Unreachable(text.rstrip(".").lower(), where=server) from error
    except (EOFError, OSError) as error:
        said = wire.reason(error) if isinstance(error, OSError) else "it closed the connection"
        raise Unreachable(said, where=server) from error
