"""
What is done on one machine over one SSH connection.

Every operation has an overall deadline here and, where it runs a command, one
on the machine too: a command that hangs is killed there even if the network
to it is gone.
"""

from __future__ import annotations

import select
import shlex
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import paramiko

from blocks import calls, wire
from blocks.errors import BadAnswer, Forbidden, Invalid, Unreachable
from blocks.http import Api
from blocks.http_errors import one_line
from blocks.ssh_transport import connect
from blocks.topology import Host

LARGEST_OUTPUT = 16 * 2**20
_HERE = ("127.0.0.1", 0)
SESSIONS = 8  # sshd's MaxSessions is 10 a connection
QUIET = 0.3  # seconds without output after which a command that ended is taken to have no more

# If the connection breaks while data flows, `cat` sees an ordinary end of its input;
# only the length tells.
_WRITE = """\
f={file}; t="$f.tmp"; d="$(dirname -- "$f")"; umask 022
mkdir -p -- "$d" && rm -f -- "$t" && (umask 077; cat > "$t") && {own} &&
{{ [ "$(wc -c < "$t")" -eq {size} ] || {{ echo "only a part of it arrived" >&2; false; }}; }} &&
sync -- "$t" && mv -fT -- "$t" "$f" && sync -- "$d" && exit 0
s=$?; rm -f -- "$t"; exit "$s"
"""
_LIKE_BEFORE = 'chown --reference="$f" -- "$t" && chmod --reference="$f" -- "$t"'


@dataclass(frozen=True)
class Ran:
    """How a command ended; its output does not show in a log."""

    status: int
    out: bytes = field(repr=False)
    err: bytes = field(repr=False)

    @property
    def text(self) -> str:
        """What it wrote to stdout, as text without blanks at the end."""
        return self.out.decode(errors="replace").strip()


class Ssh:
    """
    One machine. Safe to use from many threads.

    It connects when first used, and once anew if the connection has died
    meanwhile, but never after a command may have started.
    """

    def __init__(self, host: Host, user: str, key: paramiko.PKey, deadline: float = 10.0) -> None:
        self.host = host
        self.server = f"ssh {host.name}"
        self._user = user
        self._key = key
        self._deadline = deadline
        self._transport: paramiko.Transport | None = None
        self._connecting = threading.Lock()
        self._sessions = threading.BoundedSemaphore(SESSIONS)
        self._doubtful = False  # the last operation got no answer

    def __repr__(self) -> str:
        return f"Ssh({self.host.name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def open(self, deadline: float | None = None) -> None:
        """
        Connect within `deadline` seconds, or see that a kept connection still answers.

        A host that lost its power does not close its connections.
        """
        limit = self._deadline if deadline is None else deadline
        with wire.deadline(limit), self._translated("connect", limit):
            kept = self._transport
            if self._connected() is kept:
                with (
                    calls.call(self.server, "look whether it answers", mutates=False),
                    self._session(limit),
                ):
                    pass

    def close(self) -> None:
        """Close the connection; a later operation opens another."""
        with self._connecting:
            self._drop()

    def run(
        self,
        command: str,
        *,
        mutates: bool,
        deadline: float,
        check: bool = True,
        stdin: bytes | None = None,
        what: str | None = None,
    ) -> Ran:
        """
        Run a shell command, `{root}` in it being where the host's files start.

        The command is killed on the host when `deadline` seconds are over. It
        is seen in the record of calls, so it must hold no secret: secrets go
        through `stdin`. `what` stands there instead of it, if given.

        Raises:
            Invalid: it ended with another status than 0, and `check` is true.
            Unreachable: it did not end in time, or the connection broke. It
                may or may not have been carried out.
        """
        what = what or one_line(command, 120)
        with calls.call(self.server, what, mutates=mutates), wire.deadline(deadline):
            ran = self._run(command.replace("{root}", self.host.root), what, deadline, stdin)
        if check and ran.status != 0:
            said = one_line(ran.err.decode(errors="replace")[-400:] or ran.text[-400:], 300)
            raise Invalid(f"{what}: status {ran.status}: {said}", where=self.server)
        return ran

    def read(self, path: str, deadline: float | None = None) -> bytes | None:
        """What a file on the host holds, `None` if there is none."""
        file = shlex.quote(self.host.root + path)
        ran = self.run(
            f"if [ -e {file} ]; then cat {file}; else exit 44; fi",
            mutates=False,
            deadline=deadline or self._deadline,
            check=False,
            what=f"read {path}",
        )
        if ran.status == 44:
            return None
        self._must(ran, f"read {path}")
        return ran.out

    def write(
        self, path: str, data: bytes, mode: int | None, deadline: float | None = None
    ) -> None:
        """
        Make a file hold `data` and have `mode`; its folder is made.

        Without a mode the file must exist, and keeps mode, owner and group: an
        agent that runs as a user of its own must still be able to read it.

        Whatever happens meanwhile, a power cut included, the file is as it was
        before or whole.
        """
        ran = self.run(
            _WRITE.format(
                file=shlex.quote(self.host.root + path),
                own=_LIKE_BEFORE if mode is None else f'chmod {mode:o} -- "$t"',
                size=len(data),
            ),
            mutates=True,
            deadline=deadline or self._deadline,
            check=False,
            stdin=data,
            what=f"write {path}",
        )
        self._must(ran, f"write {path}")

    def remove(self, path: str, deadline: float | None = None) -> None:
        """Make a file not be there."""
        ran = self.run(
            f"rm -f -- {shlex.quote(self.host.root + path)}",
            mutates=True,
            deadline=deadline or self._deadline,
            check=False,
            what=f"remove {path}",
        )
        self._must(ran, f"remove {path}")

    def forward(self, address: str, port: int, deadline: float | None = None) -> paramiko.Channel:
        """A connection from the host to `address:port`; it has a socket's methods."""
        limit = self._deadline if deadline is None else deadline
        with wire.deadline(limit), self._translated(f"connect to {address}:{port}", limit):
            return self._channel("direct-tcpip", (address, port))

    def api(self, server: str, base_url: str, **options: Any) -> Api:
        """An `Api` whose connections start from the host; `base_url` is plain http."""
        return Api(server, base_url, dial=self.forward, **options)

    def http_get(
        self, address: str, port: int, path: str, deadline: float | None = None
    ) -> tuple[int, bytes]:
        """Status and body of what an HTTP server answers to this host."""
        limit = self._deadline if deadline is None else deadline
        with self.api(f"http {self.host.name}", f"http://{address}:{port}", deadline=limit) as api:
            answer = api.get(path, answers=tuple(range(300, 600)))
        return answer.status, answer.body

    # The connection

    def _must(self, ran: Ran, what: str) -> None:
        if ran.status != 0:
            said = one_line(ran.err.decode(errors="replace")[-400:], 300)
            raise Invalid(f"{what}: status {ran.status}: {said}", where=self.server)

    def _connected(self) -> paramiko.Transport:
        if not self._connecting.acquire(timeout=wire.left()):
            raise TimeoutError
        try:
            if self._transport is None or not self._transport.is_active():
                self._drop()
                self._transport = connect(self.host, self._user, self._key)
                self._doubtful = False
            return self._transport
        finally:
            self._connecting.release()

    def _drop(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def _channel(self, kind: str, to: tuple[str, int] | None = None) -> paramiko.Channel:
        """
        Open a channel, on a new connection if the old one turns out to be dead.

        Nothing has been asked of the host yet, so this may be tried twice.
        """
        kept = self._transport
        transport = self._connected()
        # A host that lost its power does not say so. Leave time to connect anew.
        share = 0.5 if transport is kept else 1.0
        if self._doubtful:
            share = 0.25
        try:
            return transport.open_channel(kind, to, to and _HERE, timeout=wire.left() * share)
        except paramiko.ChannelException:
            raise  # the host answered
        except (paramiko.SSHException, EOFError, OSError):
            if transport is not kept:
                raise
            with self._connecting:
                if self._transport is transport:
                    self._drop()
        return self._connected().open_channel(kind, to, to and _HERE, timeout=wire.left())

    @contextmanager
    def _translated(self, what: str, limit: float) -> Iterator[None]:
        """Raise `MeshError`s for what paramiko and sockets raise."""
        try:
            yield
        except TimeoutError as error:
            self._doubtful = True
            raise Unreachable(f"{what}: no end within {limit:g} s", where=self.server) from error
        except paramiko.ChannelException as error:
            if error.code == 1:
                raise Forbidden(
                    f"{what}: the host forbids it",
                    where=self.server,
                    remedy="allow TCP forwarding and enough sessions in its sshd_config",
                ) from error
            raise Unreachable(f"{what}: {error.text.lower()}", where=self.server) from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            self._doubtful = True
            if _is_over():
                raise Unreachable(
                    f"{what}: no end within {limit:g} s", where=self.server
                ) from error
            said = str(error).rstrip(".").lower() or "the connection broke"
            raise Unreachable(f"{what}: {said}", where=self.server) from error

    @contextmanager
    def _session(self, limit: float) -> Iterator[paramiko.Channel]:
        """A channel for one command, as soon as there are few enough of them."""
        if not self._sessions.acquire(timeout=wire.left()):
            raise Unreachable(
                f"all {SESSIONS} sessions were busy for {limit:g} s", where=self.server
            )
        try:
            channel = self._channel("session")
            try:
                yield channel
            finally:
                channel.close()
        finally:
            self._sessions.release()

    def _run(self, command: str, what: str, limit: float, stdin: bytes | None) -> Ran:
        with self._translated(what, limit), self._session(limit) as channel:
            # paramiko waits for the answer to a request without any limit, until the
            # channel is closed.
            closer = threading.Timer(wire.left(), channel.close)
            closer.daemon = True
            closer.start()
            try:
                seconds = wire.left() - min(0.5, 0.1 * wire.left())
                killed_at = time.monotonic() + seconds
                channel.settimeout(wire.left())
                channel.exec_command(
                    f"timeout -k 1 {seconds:.3f} sh -c {shlex.quote(command)}; exit $?"
                )
                ran = self._drain(channel, what, stdin)
            finally:
                closer.cancel()
            if ran.status in {124, 137} and time.monotonic() >= killed_at:
                raise TimeoutError
            return ran

    def _drain(self, channel: paramiko.Channel, what: str, stdin: bytes | None) -> Ran:
        """
        Take both streams as they come until the command has ended.

        Reading one to its end first would stop a command that fills the other.
        """
        _feed(channel, stdin)
        out, err = bytearray(), bytearray()
        poll = select.poll()
        poll.register(channel.fileno(), select.POLLIN)
        quiet_since = time.monotonic()
        while True:
            got = False
            for ready, receive, into in (
                (channel.recv_ready, channel.recv, out),
                (channel.recv_stderr_ready, channel.recv_stderr, err),
            ):
                while ready():
                    into.extend(receive(65536))
                    got = True
                    if len(into) > LARGEST_OUTPUT:
                        raise BadAnswer(
                            f"{what}: it wrote more than {LARGEST_OUTPUT} bytes", where=self.server
                        )
                    wire.left()
            now = time.monotonic()
            quiet_since = now if got else quiet_since
            if channel.eof_received or channel.closed:
                if not got:
                    break
                continue
            # A daemon that the command left behind may hold the streams open for ever.
            if channel.exit_status_ready() and now - quiet_since > QUIET:
                break
            if not got:
                poll.poll(1000 * min(wire.left(), 0.1))
        if not channel.status_event.wait(wire.left()):
            raise TimeoutError
        wire.left()  # at the deadline the channel is closed under us
        if (status := channel.exit_status) < 0:
            raise Unreachable(f"{what}: the connection broke while it ran", where=self.server)
        return Ran(status, bytes(out), bytes(err))


def _feed(channel: paramiko.Channel, stdin: bytes | None) -> None:
    """Send `stdin` beside the reading, else the two could wait for each other."""

    def send() -> None:
        # A command may end without having read all; its status tells.
        with suppress(OSError, EOFError, paramiko.SSHException):
            channel.sendall(stdin or b"")
            channel.shutdown_write()

    if stdin:
        threading.Thread(target=send, daemon=True, name="ssh stdin").start()
    else:
        send()


def _is_over() -> bool:
    try:
        wire.left()
    except TimeoutError:
        return True
    return False
