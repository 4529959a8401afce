"""
The process that is the lab: it runs the clouds, and with it everything ends.

Started by `lifecycle.up` as `python -m deployments.lab.supervisor DIRECTORY
LOCK READY`, with two inherited file descriptors: the lock on the directory,
which it keeps as long as it lives, and a pipe on which it says `ready` or what
went wrong. It waits for `begin` on its standard input. Its first act is to start the watchdog (see `processes`), which
kills every host when the supervisor is gone; and when the watchdog is gone,
the supervisor ends the lab itself.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from deployments.lab import binaries, control, processes, state
from deployments.lab.aws import Aws
from deployments.lab.aws_front import Front
from deployments.lab.balancer import Balancer
from deployments.lab.layout import LabHost, Layout
from deployments.lab.power import Power
from deployments.lab.proxmox import Proxmox

TICK_SECONDS = 0.2
BOOT_DEADLINE_SECONDS = 30.0
FACADE_SECONDS = 1.0  # between two starts of it


class Supervisor:
    """One lab while it runs."""

    def __init__(self, layout: Layout) -> None:
        credentials = state.read_credentials(layout.directory)
        (layout.directory / "aws").mkdir(mode=0o700, exist_ok=True)
        self.layout = layout
        self.power = Power(layout, binaries.sshd())
        front = Front(
            credentials["aws"]["access_key_id"], layout.directory / "aws" / "secrets.json"
        )
        self.aws = Aws(layout, self.power, front)
        self.proxmox = Proxmox(layout, self.power, credentials["proxmox"]["token_value"])
        self.balancer = Balancer(layout)
        self.control = control.Server(layout.directory, self.answer)
        self.began = time.monotonic()
        self._stop_read, self._stop_write = os.pipe()
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._facade: subprocess.Popen[bytes] | None = None
        self._facade_again = 0.0
        self._line = self._lifeline = -1

    def start(self) -> None:
        """Bring up the clouds; every host is off."""
        self._line, self._lifeline = os.pipe()
        self._watchdog = self.power.spawn(
            [sys.executable, "-I", "-S", str(Path(processes.__file__)), self.layout.id],
            stdin=self._line,
        )
        self._keep_facade()
        self.aws.start()
        self.proxmox.serve()
        self.proxmox.wait(self.balancer.start())
        self.control.serve()

    def run(self) -> int:
        """Stay until somebody ends the lab; the exit status."""
        for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(which, lambda *_: self.stop())
        assert self._watchdog is not None
        while not select.select([self._stop_read], [], [], TICK_SECONDS)[0]:
            self.power.reap()
            if self._watchdog.returncode is not None:
                print("the watchdog is gone, so the lab ends", file=sys.stderr)
                return 1
            self._keep_facade()
        return 0

    def _keep_facade(self) -> None:
        """The facade of the Consul secrets engine runs; one that ended is started again."""
        if time.monotonic() < self._facade_again:
            return
        if self._facade is None or self._facade.returncode is not None:
            self._facade_again = time.monotonic() + FACADE_SECONDS
            command = [sys.executable, "-m", "deployments.lab.facade", str(self.layout.directory)]
            self._facade = self.power.spawn(command, stdin=self._line)

    def stop(self) -> None:
        """Have `run` return."""
        # A pipe and no Event: a signal handler that sets one may wait for its own thread.
        os.write(self._stop_write, b".")

    def end(self) -> None:
        """Kill every host, close every port, and send the watchdog home."""
        self._off([h.name for h in self.layout.hosts])
        self.control.close()
        self.proxmox.wait(self.balancer.stop())
        self.proxmox.close()
        self.aws.stop()
        os.close(self._lifeline)
        if self._watchdog and self._watchdog.returncode is None:
            self._watchdog.wait(10)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request of the control socket."""
        actions: dict[str, Callable[[list[str]], dict[str, Any]]] = {
            "status": self._status,
            "power-on": self._on,
            "power-cut": self._off,
            "down": self._down,
        }
        action = actions.get(str(request.get("do")))
        if action is None:
            return {"error": f"{request.get('do')}: none of {', '.join(actions)}"}
        return action(list(request.get("hosts") or [h.name for h in self.layout.hosts]))

    def _status(self, names: Iterable[str]) -> dict[str, Any]:
        states = self.aws.states() | self.proxmox.states()
        active = self.power.active_units()
        return {
            "running": True,
            "pid": os.getpid(),
            "id": self.layout.id,
            "size": self.layout.size,
            "network": self.layout.network,
            "seconds": round(time.monotonic() - self.began, 1),
            "aws": self.layout.aws_url,
            "proxmox": self.layout.proxmox_url,
            "facade": self.layout.facade_url,
            "hosts": [
                self._host(h, states.get(h.name, "terminated"), active[h.name])
                for h in self.layout.hosts
                if h.name in names
            ],
        }

    def _host(self, host: LabHost, power: str, active: list[str]) -> dict[str, Any]:
        return {
            "name": host.name,
            "datacenter": host.datacenter,
            "cloud": host.cloud,
            "address": host.address,
            "power": power if power != "running" or self._is_up(host.name) else "booting",
            "units": list(host.units),
            "active": active,
        }

    def _is_up(self, name: str) -> bool:
        return self.aws.is_up(name) or self.proxmox.is_up(name)

    def _on(self, names: list[str]) -> dict[str, Any]:
        began = time.monotonic()
        waiting = {n for n in names if not self._is_up(n)}
        started = len(waiting)
        self.aws.power_on(waiting)
        self.proxmox.power_on(waiting)
        while waiting:
            waiting = {n for n in waiting if not self._is_up(n)}
            states = self.aws.states() | self.proxmox.states()
            off = sorted(n for n in waiting if states.get(n, "stopped") == "stopped")
            if off:
                return {"error": f"{', '.join(off)} did not come up: `mesh lab logs {off[0]} sshd`"}
            if time.monotonic() - began > BOOT_DEADLINE_SECONDS:
                return {"error": f"{', '.join(sorted(waiting))}: not up in time"}
            time.sleep(0.01)
        return {"started": started, "seconds": round(time.monotonic() - began, 3)}

    def _off(self, names: list[str]) -> dict[str, Any]:
        began = time.monotonic()
        # First what the clouds say, so that nothing that boots just now goes on booting.
        self.aws.cut(names)
        self.proxmox.cut(names)
        killed = self.power.off(names)
        return {"killed": killed, "seconds": round(time.monotonic() - began, 3)}

    def _down(self, _names: list[str]) -> dict[str, Any]:
        threading.Timer(0.05, self.stop).start()  # after the answer has left
        return {"pid": os.getpid()}


def main(directory: str, lock: int, ready: int) -> int:
    """Run the lab of a directory until it is ended."""
    for descriptor in (lock, ready):
        os.set_inheritable(descriptor, False)
    state.note_holder(lock, os.getpid())
    if sys.stdin.readline() != "begin\n":  # while the disks were made, all this was loaded
        return 1
    layout = state.read(Path(directory))
    assert layout is not None
    try:
        supervisor = Supervisor(layout)
        supervisor.start()
    except Exception as error:
        os.write(ready, f"{type(error).__name__}: {error}\n".encode())
        raise
    os.write(ready, b"ready\n")
    os.close(ready)
    try:
        return supervisor.run()
    finally:
        supervisor.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
