"""
Which processes belong to a lab and to each of its hosts, and how they end.

A process of a lab carries `MESH_LAB_ID` in its environment, a process of a
host `MESH_LAB_HOST` too. Some hide or overwrite their environment (sshd writes
its title there, sftp-server makes itself unreadable), so a host's processes
carry a second mark that is inherited just the same and always readable: a soft
limit on real-time CPU, far beyond anything that could ever be reached.

Only the standard library: this file is run by itself as the lab's watchdog,
`python -I -S processes.py LAB_ID`. It waits for its standard input to end,
which it does when the supervisor is gone, however it went, and then kills
every process of every host.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import resource
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

LAB_VARIABLE = "MESH_LAB_ID"
HOST_VARIABLE = "MESH_LAB_HOST"

_MARK = 1 << 62
_HOST_BITS = 21


def environment(lab: str, host: str = "") -> dict[str, str]:
    """The variables that mark a process as one of the lab, or of a host of it."""
    return {LAB_VARIABLE: lab, HOST_VARIABLE: host} if host else {LAB_VARIABLE: lab}


def mark(pid: int, lab: str, host: str) -> None:
    """Put the second mark on a process that was just started; its children inherit it."""
    with contextlib.suppress(ProcessLookupError):  # it has ended already
        resource.prlimit(pid, resource.RLIMIT_RTTIME, (_limit(lab, host), resource.RLIM_INFINITY))


def find(lab: str, host: str | None = None) -> list[int]:
    """
    Pids of a lab's living processes, this one excepted.

    `host` restricts them to one host, `"*"` to those of any host; without it
    the lab's own processes (supervisor, watchdog) are among them.
    """
    return [pid for pid in _pids() if _belongs(pid, lab, host)]


def host_of(pid: int, lab: str, hosts: Iterable[str]) -> str | None:
    """The host a process runs on; None if it is no living process of any."""
    return next((host for host in hosts if _belongs(pid, lab, host)), None)


def kill(lab: str, hosts: Iterable[str | None] = ("*",), *, deadline: float = 5.0) -> int:
    """
    SIGKILL every process of the hosts until none is left; how many there were.

    `hosts` are names as `find` takes them.

    Raises:
        TimeoutError: some are still there after `deadline` seconds.
    """
    names = list(hosts)
    killed: set[int] = set()
    end = time.monotonic() + deadline
    while True:
        # One pass over all: what one of them starts meanwhile is marked too and dies in the next.
        found = [pid for pid in _pids() if any(_belongs(pid, lab, host) for host in names)]
        if not found:
            return len(killed)
        if time.monotonic() > end:
            raise TimeoutError(f"processes outlive SIGKILL: {' '.join(map(str, found))}")
        send(found, signal.SIGKILL)
        killed.update(found)
        time.sleep(0.002)


def send(pids: Iterable[int], which: signal.Signals) -> None:
    """Send a signal to processes that may have ended meanwhile."""
    for pid in pids:
        try:
            os.kill(pid, which)
        except ProcessLookupError:
            continue


def _limit(lab: str, host: str) -> int:
    return _MARK | _hash(lab, 62 - _HOST_BITS) << _HOST_BITS | _hash(host, _HOST_BITS)


def _hash(text: str, bits: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> (64 - bits)


def _pids() -> list[int]:
    own = os.getpid()
    names = os.listdir("/proc")  # noqa: PTH208 - a scan takes a millisecond, with Path three
    return [int(name) for name in names if name.isdigit() and int(name) != own]


def _belongs(pid: int, lab: str, host: str | None) -> bool:
    try:
        limit, _ = resource.prlimit(pid, resource.RLIMIT_RTTIME)
    except (PermissionError, ProcessLookupError):
        return False  # another user's, or gone
    if limit >> _HOST_BITS == _limit(lab, "") >> _HOST_BITS:
        marked = host in {None, "*"} or limit == _limit(lab, host or "")
    else:
        marked = _environment_says(pid, lab, host)
    return marked and _lives(pid)


def _environment_says(pid: int, lab: str, host: str | None) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    if f"{LAB_VARIABLE}={lab}".encode() not in variables:
        return False
    if host == "*":
        return any(v.startswith(f"{HOST_VARIABLE}=".encode()) for v in variables)
    return host is None or f"{HOST_VARIABLE}={host}".encode() in variables


def _lives(pid: int) -> bool:
    """Whether a process is there and no zombie that waits for its parent."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ESRCH}:
            return False
        raise
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def _watch(lab: str) -> None:
    """Wait until the supervisor is gone, then leave no process of any host."""
    for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(which, signal.SIG_IGN)
    while os.read(0, 64):
        pass
    while True:
        try:
            kill(lab)
        except TimeoutError:
            continue  # in uninterruptible sleep: they go when the disk lets them
        return


if __name__ == "__main__":
    _watch(sys.argv[1])
