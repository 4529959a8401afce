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
from collections.abc import Callable, Iterable
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


def by_host(lab: str, hosts: Iterable[str]) -> dict[str, list[int]]:
    """The living processes of each of the hosts, all seen in one pass."""
    limits = {_limit(lab, host): host for host in hosts}
    found: dict[str, list[int]] = {host: [] for host in limits.values()}
    for pid in _pids():
        limit = _limit_of(pid)
        if limit is None:
            continue
        host = limits.get(limit) or _environment_of(pid, lab)
        if host in found and _lives(pid):
            found[host].append(pid)
    return found


def kill(lab: str, hosts: Iterable[str] | None = None, *, deadline: float = 5.0) -> int:
    """
    SIGKILL every process of the hosts (default: of any host) until none is left.

    Returns how many there were.

    Raises:
        TimeoutError: some are still there after `deadline` seconds.
    """
    names = None if hosts is None else list(hosts)

    def alive() -> list[int]:
        if names is None:
            return find(lab, "*")
        return [pid for pids in by_host(lab, names).values() for pid in pids]

    return _kill(alive, deadline)


def kill_lab(lab: str, *, deadline: float = 5.0) -> int:
    """SIGKILL every process of a lab, its supervisor and watchdog too; otherwise as `kill`."""
    return _kill(lambda: find(lab), deadline)


def _kill(alive: Callable[[], list[int]], deadline: float) -> int:
    killed: set[int] = set()
    end = time.monotonic() + deadline
    # What one of them starts meanwhile is marked too and dies in the next pass.
    while found := alive():
        if time.monotonic() > end:
            raise TimeoutError(f"processes outlive SIGKILL: {' '.join(map(str, found))}")
        send(found, signal.SIGKILL)
        killed.update(found)
        time.sleep(0.002)
    return len(killed)


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
    limit = _limit_of(pid)
    if limit is None:
        return False
    if limit >> _HOST_BITS == _limit(lab, "") >> _HOST_BITS:
        marked = host in {None, "*"} or limit == _limit(lab, host or "")
    else:
        named = _environment_of(pid, lab)
        marked = named is not None and (
            host is None or named == host or (host == "*" and named != "")
        )
    return marked and _lives(pid)


def _limit_of(pid: int) -> int | None:
    """A process's second mark, or whatever limit it has; None if it is no process of ours."""
    try:
        return resource.prlimit(pid, resource.RLIMIT_RTTIME)[0]
    except (PermissionError, ProcessLookupError):
        return None


def _environment_of(pid: int, lab: str) -> str | None:
    """The host that a process's environment names, "" for none; None if it is not the lab's."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    if f"{LAB_VARIABLE}={lab}".encode() not in variables:
        return None
    names = [v.partition(b"=")[2] for v in variables if v.startswith(f"{HOST_VARIABLE}=".encode())]
    return names[0].decode() if names else ""


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
