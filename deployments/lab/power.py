"""
Switching hosts on and off: the part that the clouds and the operator share.

On means that the host's sshd accepts connections; its enabled units start
after that, as at the end of any boot. Off means that no process of the host is
left. Whatever a host does while it is on, its processes belong to it (see
`processes`), so off is always possible and always complete.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from deployments.lab import hosts, processes
from deployments.lab.layout import SSH_PORT, LabHost, Layout

PR_SET_CHILD_SUBREAPER = 36
SSHD_SECONDS = 10.0
# How long a machine is "pending" before its sshd starts. A simulated figure; 0 for benchmarks,
# whose bare script has no clouds.
BOOT_SECONDS = float(os.environ.get("MESH_LAB_BOOT_SECONDS", "0.3"))


class HostFailed(RuntimeError):
    """A host that was switched on did not come up; the message says what its sshd said."""


class Cut(HostFailed):
    """The host was switched off again before it was up."""


class Power:
    """The power switches of all hosts of a lab; safe to use from many threads."""

    def __init__(self, layout: Layout, sshd: Path) -> None:
        self.layout = layout
        self._sshd = sshd
        self._lock = threading.Lock()
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        # Counts how often a host was switched off: what began before does not go on after.
        self._cuts = dict.fromkeys((h.name for h in layout.hosts), 0)
        _adopt_orphans()

    def on(self, name: str, wanted: Callable[[], bool] = lambda: True) -> None:
        """
        Boot a host; returns when its sshd accepts connections.

        `wanted` says whether it is still to be on. Whoever wants it off must
        see to it that this is false before calling `off`.

        Raises:
            HostFailed: its sshd did not come up.
            Cut: the host was switched off meanwhile.
        """
        host = self.layout.host(name)
        with self._lock:
            began = self._cuts[name]
        if not wanted():
            raise Cut(f"{name}: switched off before it booted")
        root = self.layout.root(name)
        _fresh_run_folder(root)
        log = hosts.log_file(root, "sshd")
        config = hosts.sshd_config(self.layout, name)
        server = self._start(host, began, [self._sshd, "-D", "-f", config, "-E", log], log)
        self._await_banner(host, began, server, log)
        if units := hosts.enabled_units(root):
            log = hosts.log_file(root, "boot")
            self._start(host, began, [root / "usr/bin/systemctl", "start", *units], log)

    def off(self, names: Iterable[str]) -> int:
        """Kill all processes of the hosts at once; how many there were."""
        names = list(names)
        with self._lock:
            for name in names:
                self._cuts[name] += 1
        killed = processes.kill(self.layout.id, names) if names else 0
        self.reap()
        return killed

    def signal(self, name: str, which: signal.Signals) -> None:
        """Send a signal to all processes of a host: SIGSTOP pauses it, SIGCONT resumes it."""
        processes.send(processes.find(self.layout.id, name), which)

    def active_units(self) -> dict[str, list[str]]:
        """Of each host, the units whose main process lives."""
        here = processes.by_host(self.layout.id, [h.name for h in self.layout.hosts])
        return {
            host.name: [
                unit
                for unit in host.units
                if hosts.main_pid(self.layout.root(host.name), unit) in here[host.name]
            ]
            for host in self.layout.hosts
        }

    def reap(self) -> None:
        """Take leave of children that ended, adopted ones included, so that no zombie stays."""
        with self._lock:  # what is being started is not yet among the children
            while True:
                try:
                    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                except ChildProcessError:
                    return
                if ended is None:
                    return
                if child := self._children.pop(ended.si_pid, None):
                    child.wait()
                else:
                    os.waitpid(ended.si_pid, os.WNOHANG)

    def spawn(self, command: list[str], **options: int) -> subprocess.Popen[bytes]:
        """Start a program of the lab itself that `reap` will know as its own."""
        with self._lock:
            child = subprocess.Popen(command, **options)  # type: ignore[call-overload]
            self._children[child.pid] = child
        return child  # type: ignore[no-any-return]

    def _start(
        self, host: LabHost, began: int, command: list[str | Path], log: Path
    ) -> subprocess.Popen[bytes]:
        root = self.layout.root(host.name)
        marks = processes.environment(self.layout.id, host.name)
        with self._lock, log.open("ab") as output:
            if self._cuts[host.name] != began:
                raise Cut(f"{host.name}: switched off while it booted")
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=root,
                env={"PATH": f"{root}/usr/bin:{hosts.SYSTEM_PATH}", "LANG": "C.UTF-8", **marks},
                start_new_session=True,
            )
            processes.mark(child.pid, self.layout.id, host.name)
            self._children[child.pid] = child
        return child

    def _await_banner(
        self, host: LabHost, began: int, server: subprocess.Popen[bytes], log: Path
    ) -> None:
        end = time.monotonic() + SSHD_SECONDS
        while not _greets(host.address):
            if self._cuts[host.name] != began:
                raise Cut(f"{host.name}: switched off while it booted")
            if not Path(f"/proc/{server.pid}").exists() or server.poll() is not None:
                raise HostFailed(f"{host.name}: sshd ended at once: {_last_line(log)}")
            if time.monotonic() > end:
                raise HostFailed(f"{host.name}: sshd does not answer: {_last_line(log)}")
            time.sleep(0.005)


def _adopt_orphans() -> None:
    # Units outlive the session that started them. Their parent is then whoever adopts
    # orphans; that may be an init that never reaps, and a zombie looks alive to many.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def _fresh_run_folder(root: Path) -> None:
    """Empty /run of its files, as after any boot: a pid noted there before means nothing now."""
    run = root / "run"
    run.mkdir(parents=True, exist_ok=True)
    for path in run.rglob("*"):
        if not path.is_dir() or path.is_symlink():
            path.unlink()
    # What an init leaves there; without it each `systemctl start` waits to see whether one boots.
    (run / "sysinit.target.status").write_text("ActiveState=active\nSubState=running\n")


def _greets(address: str) -> bool:
    try:
        with socket.create_connection((address, SSH_PORT), timeout=2.0) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return lines[-1] if lines else "it said nothing"
