"""What a readiness check looks at besides the survey."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import TYPE_CHECKING

from pydantic import SecretStr

from blocks.errors import MeshError
from tasks import connect_ca, vault
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
    """
    Life left in the tokens that Consul signs with, the shortest; None if it cannot be asked.

    Those that the datacenters have: half way through a rotation one may still sign with the token
    before, and what Vault keeps would be another. What no datacenter shows is taken from Vault.
    """
    if access.vault is None:
        return None
    try:
        tokens = {ca_token(connections, access.vault).get_secret_value()} | _configured(
            connections, access
        )
        node = vault.await_active(connections)
        return min(_left(connections, node, SecretStr(token)) for token in tokens)
    except MeshError:
        return None


def _configured(connections: Connections, access: Access) -> set[str]:
    if access.consul is None:
        return set()
    found = [
        connect_ca.configuration(connections, dc, access.consul)
        for dc in connections.topology.datacenters
    ]
    tokens = {str(config.get("Token") or "") for name, config in found if name == "vault"}
    return tokens - {"", connect_ca.HIDDEN}


def _left(connections: Connections, node: str, token: SecretStr) -> timedelta:
    with connections.vault().node(node, token=token) as api:
        answer = api.get("/v1/auth/token/lookup-self", answers=(403,))
        if answer.status == 403:
            return timedelta()  # it lives no more
        data = answer.json(dict).get("data") or {}
    if data.get("expire_time") is None and not data.get("ttl"):
        return timedelta.max  # it never ends
    return timedelta(seconds=int(data.get("ttl") or 0))
