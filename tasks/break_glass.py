"""
Consul without Connect while Vault cannot come back: loud, dated, and taken back.

With Connect's CA on a Vault that does not serve, Consul's servers elect leaders
without end. No API takes the provider away then (`CA is already in state
"UNINITIALIZED"`), and the provider in the file is ignored. Servers restarted
with Connect switched off serve KV, catalog and ACLs within two seconds.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from blocks.errors import MeshError
from blocks.topology import Datacenter
from tasks import hosts, record
from tasks.step import fan_out, step

if TYPE_CHECKING:
    from blocks.mesh import Connections

# Last in lexical order: Consul merges its configuration directory so.
FILE = "zz-mesh-runbooks-break-glass.json"


class BreakGlass(NamedTuple):
    """The mark of the fallback on a server's disk."""

    host: str
    since: datetime
    expires: datetime


def path(datacenter: Datacenter) -> str:
    """Where the mark stands on each server: it is the configuration itself."""
    return f"{datacenter.consul.config_dir}/{FILE}"


def look(connections: Connections, datacenter: Datacenter) -> list[BreakGlass]:
    """Servers on which the fallback stands; those that do not answer are left out."""

    def one(name: str) -> BreakGlass | None:
        try:
            with connections.hosts().connect(connections.topology.host(name), deadline=4.0) as ssh:
                content = ssh.read(path(datacenter))
        except MeshError:
            return None
        return _parse(name, content) if content is not None else None

    return [mark for mark in fan_out(one, datacenter.consul.servers) if mark]


def _parse(host: str, content: bytes) -> BreakGlass:
    now = datetime.now(UTC)
    try:
        meta = json.loads(content)["node_meta"]
        since = datetime.fromisoformat(meta["break-glass-since"])
        return BreakGlass(host, since, datetime.fromisoformat(meta["break-glass-expires"]))
    except (ValueError, KeyError, TypeError):
        return BreakGlass(host, now, now)  # a mark nobody can date has expired


@step("break glass in {datacenter.name}")
def start_without_connect(
    connections: Connections, datacenter: Datacenter, *, hours: float
) -> datetime:
    """
    Restart a datacenter's servers with Connect off; when this fallback expires.

    Holds afterwards: the mark, with its expiry, lies on every server and in the
    catalog as node metadata. All servers are stopped before any starts, or the
    old ones carry the storm on.
    """
    mesh = connections.topology
    now = datetime.now(UTC).replace(microsecond=0)
    standing = look(connections, datacenter)
    since = min((m.since for m in standing), default=now)
    expires = min((m.expires for m in standing), default=now + timedelta(hours=hours))
    content = json.dumps(
        {
            "connect": {"enabled": False, "enable_mesh_gateway_wan_federation": False},
            "node_meta": {
                "break-glass-since": since.isoformat(),
                "break-glass-expires": expires.isoformat(),
            },
        },
        indent=1,
    ).encode()
    servers = [mesh.host(name) for name in datacenter.consul.servers]
    unit = datacenter.consul.unit
    fan_out(lambda h: hosts.stop(connections, h, [unit]), servers)
    fan_out(lambda h: hosts.write(connections, h, path(datacenter), content, 0o644), servers)
    fan_out(lambda h: hosts.start(connections, h, [unit]), servers)
    record.current().change(
        f"consul {datacenter.name}",
        "started with Connect off (break-glass)",
        after=f"expires {expires:%Y-%m-%d %H:%M}Z",
    )
    return expires


@step("end break-glass in {datacenter.name}")
def put_connect_back(connections: Connections, datacenter: Datacenter) -> bool:
    """
    Take the fallback off every server and start them anew; whether it stood anywhere.

    Only when Vault serves: with Connect on and Vault away the storm begins again.
    No server runs while its mark goes: killed in between, none would be left with
    Connect off and nothing to tell why.
    """
    mesh = connections.topology
    servers, unit = [mesh.host(name) for name in datacenter.consul.servers], datacenter.consul.unit
    fan_out(lambda h: hosts.stop(connections, h, [unit]), servers)
    removed = fan_out(lambda h: hosts.remove(connections, h, path(datacenter)), servers)
    fan_out(lambda h: hosts.start(connections, h, [unit]), servers)
    record.current().change(f"consul {datacenter.name}", "Connect put back, break-glass ended")
    return any(removed)
