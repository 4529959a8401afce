"""Whether machines are on, and turning them on, in both kinds of cloud."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from blocks.errors import Absent, Invalid, NotConverged, Transient
from blocks.topology import AwsCloud, Datacenter, Host, ProxmoxCloud
from tasks import record
from tasks.step import step
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.mesh import Connections

Power = Literal["on", "off", "changing", "missing"]

# What each cloud calls a machine that runs, that does not, or that is on its way.
_EC2: dict[str, Power] = {
    "running": "on",
    "pending": "changing",
    "stopped": "off",
    "stopping": "changing",
    "shutting-down": "changing",
}
_PVE: dict[str, Power] = {"running": "on", "stopped": "off"}


class Machine(NamedTuple):
    """One machine as its cloud sees it."""

    host: str
    power: Power
    id: str  # EC2 instance id, or Proxmox vmid


def machines(connections: Connections, datacenter: Datacenter) -> dict[str, Machine]:
    """
    Every host of a datacenter as its cloud sees it; `missing` if it has none such.

    Raises:
        Unreachable, Forbidden: of the cloud's API.
    """
    names = {host.instance_name: host.name for host in datacenter.hosts}
    found: dict[str, Machine] = {}
    match datacenter.cloud:
        case AwsCloud() as cloud:
            ec2 = connections.aws(cloud.connection).ec2(cloud.region, cloud.endpoint_url)
            for name, instance in ec2.instances(list(names), connections.topology.name).items():
                power = _EC2.get(instance.state, "changing")
                found[names[name]] = Machine(names[name], power, instance.id)
        case ProxmoxCloud() as cloud:
            pve = connections.proxmox(cloud.connection, cloud).api()
            for name, vm in pve.vms().items():
                if name in names:
                    power = _PVE.get(vm.status, "changing")
                    found[names[name]] = Machine(names[name], power, str(vm.vmid))
    return {n: found.get(n, Machine(n, "missing", "")) for n in names.values()}


@step("power on in {datacenter.name}")
def power_on(
    connections: Connections, datacenter: Datacenter, hosts: list[Host], *, deadline: float = 120.0
) -> None:
    """
    Make the cloud run these hosts; those that run are left alone.

    Start is idempotent in both clouds, so a lost answer is looked up and
    repeated. Holds afterwards: the cloud says each host runs. SSH may take longer.

    Raises:
        Absent: the cloud has no machine of that name.
        NotConverged: machines did not run within `deadline` seconds, or their
            start failed; they are named.
    """
    started = time.monotonic()
    seen = machines(connections, datacenter)
    wanted = [seen[h.name] for h in hosts]
    if missing := [m.host for m in wanted if m.power == "missing"]:
        raise Absent(
            f"no machine named {', '.join(missing)}",
            where=datacenter.name,
            remedy="correct the host's `instance` in the topology, or restore the machine",
        )
    off = [m for m in wanted if m.power != "on"]
    if not off:
        return
    failed = _start(connections, datacenter, [m for m in off if m.power == "off"], deadline)
    now: dict[str, Machine] = {}

    def all_on() -> bool:
        now.update(machines(connections, datacenter))
        dark = [m.host for m in off if now[m.host].power != "on" and m.host not in failed]
        if dark:
            raise Transient(f"{', '.join(dark)} not on yet", where=datacenter.name)
        return True

    try:
        wait_until(
            all_on,
            f"{len(off)} machines to run",
            deadline=max(1.0, deadline - (time.monotonic() - started)),
            where=datacenter.name,
            stage="power on",
            every=0.1,
        )
    except NotConverged:
        if not now:
            raise  # the cloud itself does not answer any more
        for machine in off:
            if now[machine.host].power != "on":
                why = f"{now[machine.host].power} {deadline:g} s after it was started"
                failed.setdefault(machine.host, why)
    took = time.monotonic() - started
    for machine in (m for m in off if m.host not in failed):
        record.current().seen(machine.host, "powered")
        record.current().change(
            machine.host, "powered on", before=machine.power, after="on", seconds=took
        )
    if failed:
        raise NotConverged(
            "; ".join(f"{host} does not come up: {why}" for host, why in failed.items()),
            where=datacenter.name,
            remedy=f"look at its console in {datacenter.cloud.kind}, or go on without it: "
            f"--set without={','.join(failed)}",
        )


def _start(
    connections: Connections, datacenter: Datacenter, wanted: list[Machine], deadline: float
) -> dict[str, str]:
    """Ask the cloud to start machines; the hosts of those whose start failed, and why."""
    failed: dict[str, str] = {}
    if not wanted:
        return failed
    match datacenter.cloud:
        case AwsCloud() as cloud:
            ec2 = connections.aws(cloud.connection).ec2(cloud.region, cloud.endpoint_url)
            ec2.start([m.id for m in wanted])
        case ProxmoxCloud() as cloud:
            pve = connections.proxmox(cloud.connection, cloud).api()
            vms = {str(vm.vmid): vm for vm in pve.vms().values()}
            tasks = {m.host: pve.start(vms[m.id]) for m in wanted}
            ends = time.monotonic() + deadline
            for host, upid in tasks.items():
                try:
                    pve.wait_task(upid, max(1.0, ends - time.monotonic()))
                except (Invalid, NotConverged) as error:
                    failed[host] = error.message
    return failed
