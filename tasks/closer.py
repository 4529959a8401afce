"""What a readiness check looks at besides the survey."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import TYPE_CHECKING

from blocks.errors import MeshError
from tasks import vault
from tasks.planning.verdict import Closer
from tasks.step import fan_out, step
from tasks.vault_setup import ca_token

if TYPE_CHECKING:
    from blocks.mesh import Connections
    from blocks.topology import Gateway
    from tasks.survey import Access

DIAL_SECONDS = 4.0


@step("closer look at {connections.topology.name}")
def look(connections: Connections, access: Access) -> Closer:
    """The life left in Consul's CA token, and whether each gateway's WAN address is answered."""
    gateways = [g for dc in connections.topology.datacenters for g in dc.gateways]
    found = fan_out(dial, gateways)
    return Closer(
        ca_token=_life(connections, access),
        gateways={g.host: error for g, error in zip(gateways, found, strict=True)},
    )


def dial(gateway: Gateway) -> str:
    """Why a gateway's WAN address cannot be dialled from here; empty if it can."""
    address, _, port = gateway.wan.rpartition(":")
    try:
        socket.create_connection((address, int(port)), timeout=DIAL_SECONDS).close()
    except ValueError:
        return "no address:port"
    except OSError as error:
        return (error.strerror or str(error) or type(error).__name__).lower()
    return ""


def _life(connections: Connections, access: Access) -> timedelta | None:
    """Seconds of life left in the token that Consul signs with; None if it cannot be asked."""
    if access.vault is None:
        return None
    try:
        token = ca_token(connections, access.vault)
        with connections.vault().node(vault.await_active(connections), token=token) as api:
            found = api.get("/v1/auth/token/lookup-self").json(dict)
    except MeshError:
        return None
    return timedelta(seconds=int((found.get("data") or {}).get("ttl") or 0))
