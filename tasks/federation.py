"""Whether datacenters reach each other through their gateways, and replication is current."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from blocks.errors import MeshError, Transient
from blocks.topology import Datacenter, Gateway
from tasks import consul, record
from tasks.step import step
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.mesh import Connections


def gateway_registered(
    connections: Connections, datacenter: Datacenter, gateway: Gateway, token: SecretStr
) -> bool:
    """Whether a gateway is in the catalog for federation, with its checks passing."""
    found = consul.operator_get(
        connections, datacenter, token, "/v1/health/service/mesh-gateway", passing="1"
    )
    return any(
        f"{e['Service']['Address']}:{e['Service']['Port']}" == gateway.lan
        and (e["Service"].get("Meta") or {}).get("consul-wan-federation") == "1"
        for e in found or []
    )


@step("wait for gateways of {datacenter.name}")
def await_gateways(
    connections: Connections, datacenter: Datacenter, token: SecretStr, *, deadline: float = 60.0
) -> None:
    """
    Wait until every declared gateway is registered for federation and passes its check.

    Raises:
        NotConverged: with the gateways missing.
    """
    for gateway in datacenter.gateways:
        wait_until(
            lambda gateway=gateway: gateway_registered(connections, datacenter, gateway, token),  # type: ignore[misc]
            "the gateway to be registered and passing",
            deadline=deadline,
            where=gateway.host,
            stage="gateways",
            remedy="its agent registers it with the default token: look at both units' logs",
        )
        record.current().seen(gateway.host, "gateway up")


@step("federation of {source.name} and {target.name}")
def await_reach(
    connections: Connections,
    source: Datacenter,
    target: Datacenter,
    token: SecretStr,
    *,
    deadline: float = 180.0,
) -> str:
    """
    Wait until `?dc=target` asked in `source` answers; what it answered.

    The deadline is above serf's own reconnect timer: after a long outage of
    both gateways one direction took 116 s.

    Raises:
        NotConverged: not within `deadline` seconds.
    """
    return wait_until(
        lambda: consul.reaches(connections, source, target, token),
        f"?dc={target.name} to answer",
        deadline=deadline,
        where=source.name,
        stage="federation",
        every=0.1,
        remedy="only the gateways carry this: are both up, and do they reach each other's WAN address?",
    )


def replication_gap(
    connections: Connections, primary: Datacenter, secondary: Datacenter, token: SecretStr
) -> tuple[bool, str]:
    """Whether a secondary has every ACL token and policy of the primary, and by how much not."""
    status: dict[str, Any] = (
        consul.operator_get(connections, secondary, token, "/v1/acl/replication") or {}
    )
    if not status.get("Enabled") or not status.get("Running"):
        return False, "replication does not run"
    newest = {
        what: max((int(x["ModifyIndex"]) for x in found), default=0)
        for what, found in (
            ("tokens", _all(connections, primary, token, "/v1/acl/tokens")),
            ("policies", _all(connections, primary, token, "/v1/acl/policies")),
        )
    }
    have = {
        "tokens": int(status.get("ReplicatedTokenIndex") or 0),
        "policies": int(status.get("ReplicatedIndex") or 0),
    }
    behind = [
        f"{what} at {have[what]} of {newest[what]}" for what in newest if have[what] < newest[what]
    ]
    return not behind, ", ".join(behind) or f"tokens at {have['tokens']}"


def _all(
    connections: Connections, datacenter: Datacenter, token: SecretStr, path: str
) -> list[dict[str, Any]]:
    found = consul.operator_get(connections, datacenter, token, path)
    # Local tokens stay in their datacenter.
    return [x for x in found or [] if not x.get("Local")]


@step("replication to {secondary.name}")
def await_replication(
    connections: Connections,
    primary: Datacenter,
    secondary: Datacenter,
    token: SecretStr,
    *,
    deadline: float = 180.0,
) -> str:
    """
    Wait until ACL replication to a secondary has caught up; where it stands.

    A secondary whose leader began before it saw that the primary's servers have
    left legacy ACL mode looks again only with the next full exchange of gossip,
    60 to 100 s later (seen on 1.8.7); hence the deadline.

    Raises:
        NotConverged: not within `deadline` seconds.
    """

    def current() -> str | None:
        ok, detail = replication_gap(connections, primary, secondary, token)
        if not ok:
            raise Transient(detail, where=secondary.name)
        return detail

    return wait_until(
        current,
        "ACL replication to catch up",
        deadline=deadline,
        where=secondary.name,
        stage="federation",
        every=0.2,
        remedy="does its replication token live? its leader's log says what replication fails on",
    )


@step("index {index} in {secondary.name}")
def await_index(
    connections: Connections,
    secondary: Datacenter,
    token: SecretStr,
    index: int,
    *,
    deadline: float = 60.0,
) -> None:
    """
    Wait until ACL replication to a secondary has come to one change of a token.

    Asks for no list, so that thousands of tokens cost as little as one. A token
    must not be used there before: the refusal is remembered for `acl.token_ttl`.

    Raises:
        NotConverged: not within `deadline` seconds.
    """

    def there() -> bool:
        status = consul.operator_get(connections, secondary, token, "/v1/acl/replication") or {}
        have = int(status.get("ReplicatedTokenIndex") or 0)
        if have < index:
            raise Transient(f"tokens at {have} of {index}", where=secondary.name)
        return True

    wait_until(
        there,
        "ACL replication to catch up",
        deadline=deadline,
        where=secondary.name,
        every=0.1,
        remedy="does its replication token live? its leader's log says what replication fails on",
    )


def look_at_reach(
    connections: Connections, source: Datacenter, target: Datacenter, token: SecretStr
) -> tuple[bool, str]:
    """One direction, never an error."""
    try:
        return True, consul.reaches(connections, source, target, token)
    except MeshError as error:
        return False, str(error)
