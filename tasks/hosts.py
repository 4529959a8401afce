"""Steps on one machine over SSH: is it there, are its units up, what lies on its disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from blocks.errors import Refused, Transient, Unreachable
from blocks.topology import Host
from tasks import record
from tasks.step import step
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.mesh import Connections
    from blocks.ssh_session import Ssh

Verb = Literal["start", "stop", "restart", "enable", "disable"]
UNIT_DEADLINE = 60.0
# A person's note on a Vault node: this seal is deliberate (B12).
INCIDENT = "/etc/vault.d/incident"
# The runbook's own mark: data on this node is a restore's throwaway until it is gone.
RESTORING = "/etc/vault.d/restoring"


class HostSeen(NamedTuple):
    """One machine as SSH shows it."""

    host: str
    ssh: Literal["ok", "down", "refused"]
    units: dict[str, bool] = {}
    incident: str = ""
    restoring: bool = False
    error: str = ""


def look(connections: Connections, host: Host, units: Sequence[str]) -> HostSeen:
    """
    Whether a machine answers with its pinned key, and which of its units are active.

    `refused` is for a person (wrong key, wrong credential), `down` may pass.
    """
    try:
        with connections.hosts().connect(host, deadline=4.0) as ssh:
            active = active_units(ssh, units)
            if host.name not in connections.topology.vault.nodes:
                return HostSeen(host.name, "ok", active)
            note = (ssh.read(INCIDENT) or b"").decode(errors="replace").strip()
            return HostSeen(host.name, "ok", active, note, ssh.read(RESTORING) is not None)
    except Transient as error:
        return HostSeen(host.name, "down", error=error.message)
    except Refused as error:
        return HostSeen(host.name, "refused", error=str(error))


def active_units(ssh: Ssh, units: Sequence[str]) -> dict[str, bool]:
    """Which of these units are active now."""
    if not units:
        return {}
    ran = ssh.run(
        f"systemctl is-active {' '.join(units)}", mutates=False, deadline=UNIT_DEADLINE, check=False
    )
    words = ran.out.decode(errors="replace").split()
    return {unit: word == "active" for unit, word in zip(units, words, strict=False)}


@step("look at units of {host.name}")
def active(connections: Connections, host: Host, units: Sequence[str]) -> frozenset[str]:
    """Those of a host's units that are active now."""
    with connections.hosts().connect(host) as ssh:
        found = active_units(ssh, units)
    return frozenset(unit for unit, on in found.items() if on)


def systemctl(ssh: Ssh, verb: Verb, units: Sequence[str]) -> None:
    """
    One `systemctl` call for several units; all verbs used here are idempotent.

    Raises:
        Invalid: with the tail of what systemctl said.
    """
    ssh.run(f"systemctl {verb} {' '.join(units)}", mutates=True, deadline=UNIT_DEADLINE)


@step("wait for ssh on {host.name}")
def await_ssh(connections: Connections, host: Host, *, deadline: float = 120.0) -> None:
    """
    Wait until a machine answers SSH with its pinned host key.

    Raises:
        Refused: it answers with another key, or rejects the credential.
        NotConverged: no answer within `deadline` seconds.
    """

    def answers() -> bool:
        with connections.hosts().connect(host, deadline=3.0):
            return True

    wait_until(
        answers,
        "ssh to answer",
        deadline=deadline,
        where=host.name,
        stage="power on",
        every=0.05,
        remedy=f"look at the console of {host.instance_name}, or go on without it: "
        f"--set without={host.name}",
    )
    record.current().seen(host.name, "ssh")


@step("start {units} on {host.name}")
def start(connections: Connections, host: Host, units: list[str]) -> bool:
    """
    Make these units run; whether any of them did not before.

    Raises:
        Invalid: systemctl failed; its last lines are in the message.
    """
    return _to(connections, host, units, "start")


@step("stop {units} on {host.name}")
def stop(connections: Connections, host: Host, units: list[str]) -> bool:
    """Make these units stop; whether any of them ran."""
    return _to(connections, host, units, "stop")


@step("restart {units} on {host.name}")
def restart(connections: Connections, host: Host, units: list[str]) -> bool:
    """Restart these units, running or not."""
    return _to(connections, host, units, "restart")


def _to(connections: Connections, host: Host, units: list[str], verb: Verb) -> bool:
    began = time.monotonic()
    with connections.hosts().connect(host) as ssh:
        active = active_units(ssh, units)
        if verb == "restart":
            todo = units
        else:
            todo = [u for u in units if active.get(u, False) != (verb == "start")]
        if not todo:
            return False
        systemctl(ssh, verb, todo)
    past = {"start": "started", "stop": "stopped", "restart": "restarted"}[verb]
    record.current().change(
        host.name,
        f"{past} {' '.join(todo)}",
        before="active" if verb == "stop" else "",
        seconds=time.monotonic() - began,
    )
    return True


@step("read {path} on {host.name}")
def read(connections: Connections, host: Host, path: str) -> bytes | None:
    """A file's content, or None if there is none."""
    with connections.hosts().connect(host) as ssh:
        return ssh.read(path)


@step("write {path} on {host.name}")
def write(connections: Connections, host: Host, path: str, data: bytes, mode: int = 0o640) -> bool:
    """Make a file have this content; whether it had another. Written at once or not at all."""
    with connections.hosts().connect(host) as ssh:
        found = ssh.read(path)
        if found == data:
            return False
        ssh.write(path, data, mode)
    record.current().change(
        host.name, f"wrote {path}", before="absent" if found is None else "other"
    )
    return True


@step("remove {path} on {host.name}")
def remove(connections: Connections, host: Host, path: str) -> bool:
    """Make a file absent; whether it was there."""
    with connections.hosts().connect(host) as ssh:
        if ssh.read(path) is None:
            return False
        ssh.remove(path)
    record.current().change(host.name, f"removed {path}", before="present")
    return True


def http_through(
    connections: Connections, host: Host, listen: str, path: str = "/", *, deadline: float = 5.0
) -> tuple[int, bytes]:
    """
    GET from a listener as a process on that machine would; status and body.

    Raises:
        Unreachable: nothing listens there, or no answer in time.
    """
    address, _, port = listen.rpartition(":")
    if not port.isdigit():
        raise Unreachable(f"{listen} is no address:port", where=host.name)
    with connections.hosts().connect(host) as ssh:
        return ssh.http_get(address, int(port), path, deadline)
