"""The mark of planned Vault work, in the primary's KV."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from pydantic import SecretStr

from blocks.errors import MeshError
from tasks import consul, record
from tasks.step import step

if TYPE_CHECKING:
    from blocks.mesh import Connections

KEY = "mesh-runbooks/vault-maintenance"


class Maintenance(NamedTuple):
    """Planned Vault work: since when, and until when it was to last."""

    since: datetime
    expires: datetime


def look(connections: Connections, token: SecretStr) -> Maintenance | None:
    """The mark, if it stands and can be read."""
    mesh = connections.topology
    try:
        found = consul.operator_get(
            connections, mesh.datacenter(mesh.primary), token, f"/v1/kv/{KEY}", raw="1"
        )
    except MeshError:
        return None
    if not isinstance(found, dict):
        return None
    try:
        return Maintenance(
            datetime.fromisoformat(found["since"]), datetime.fromisoformat(found["expires"])
        )
    except (KeyError, TypeError, ValueError):
        now = datetime.now(UTC)
        return Maintenance(now, now)  # a mark nobody can date has expired


@step("mark vault maintenance")
def mark(connections: Connections, token: SecretStr, *, hours: float) -> None:
    """The mark stands, with its end; readable while Vault is away."""
    now = datetime.now(UTC).replace(microsecond=0)
    content = {"since": now.isoformat(), "expires": (now + timedelta(hours=hours)).isoformat()}
    mesh = connections.topology
    dc = mesh.datacenter(mesh.primary)
    with connections.consul(dc.name).client(
        consul.url(connections, dc.consul.servers[0]), token=token, dc="", deadline=10.0
    ) as api:
        api.put(f"/v1/kv/{KEY}", content=json.dumps(content).encode())
    record.current().change(
        f"consul {dc.name}", "vault maintenance marked", after=f"until {content['expires']}"
    )


@step("unmark vault maintenance")
def unmark(connections: Connections, token: SecretStr) -> None:
    """The mark is gone."""
    mesh = connections.topology
    dc = mesh.datacenter(mesh.primary)
    with connections.consul(dc.name).client(
        consul.url(connections, dc.consul.servers[0]), token=token, dc="", deadline=10.0
    ) as api:
        api.delete(f"/v1/kv/{KEY}")
    record.current().change(f"consul {dc.name}", "vault maintenance ended", before="marked")
