"""Services as their callers see them: through the sidecar, allowed or denied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import SecretStr

from blocks.errors import MeshError, Transient
from blocks.topology import Datacenter, Mesh, Service, Upstream
from tasks import consul, hosts, record
from tasks.step import step
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.mesh import Connections

Verdict = Literal["answers", "denied", "down"]


class Pair(NamedTuple):
    """One caller's upstream, and whether it is to be answered."""

    caller: Service
    upstream: Upstream
    allowed: bool

    @property
    def label(self) -> str:
        """`web-portal -> payment-processor (eu-west-1)`."""
        where = f" ({self.upstream.datacenter})" if self.upstream.datacenter else ""
        return f"{self.caller.name} -> {self.upstream.service}{where}"


def pairs(mesh: Mesh) -> list[Pair]:
    """Every declared upstream of every service, with what the intentions say; else denied."""
    allowed = {(i.source, i.destination): i.action == "allow" for i in mesh.intentions}

    def may(source: str, destination: str) -> bool:
        for key in ((source, destination), ("*", destination), (source, "*"), ("*", "*")):
            if key in allowed:
                return allowed[key]
        return False

    return [
        Pair(service, upstream, may(service.name, upstream.service))
        for service in mesh.services
        for upstream in service.upstreams
    ]


def ask(connections: Connections, pair: Pair) -> tuple[Verdict, str]:
    """
    Call an upstream as the caller's own process would, from its host's loopback.

    403 from the destination's sidecar is `denied`; anything but a 2xx or that
    is `down`.
    """
    host = connections.topology.host(pair.caller.host)
    try:
        status, _ = hosts.http_through(connections, host, pair.upstream.listen)
    except MeshError as error:
        return "down", str(error)
    if 200 <= status < 300:
        return "answers", f"{status}"
    if status == 403:
        return "denied", "403 from the sidecar"
    return "down", f"{status}"


@step("wait for {pair.label}")
def await_as_declared(connections: Connections, pair: Pair, *, deadline: float = 90.0) -> str:
    """
    Wait until a pair answers, or is really denied, as the intentions declare.

    Raises:
        NotConverged: it still does otherwise after `deadline` seconds.
    """
    wanted: Verdict = "answers" if pair.allowed else "denied"

    def as_declared() -> str | None:
        verdict, detail = ask(connections, pair)
        if verdict != wanted:
            raise Transient(f"{verdict}: {detail}", where=pair.caller.host)
        return detail

    detail = wait_until(
        as_declared,
        f"{pair.label} to be {'answered' if pair.allowed else 'denied'}",
        deadline=deadline,
        where=pair.caller.host,
        stage="services",
        remedy="look at the sidecars' logs on both hosts and at the intentions",
    )
    record.current().seen(
        pair.caller.host, f"{'answered' if pair.allowed else 'denied'} by {pair.upstream.service}"
    )
    return detail


@step("wait for {service.name} on {service.host}")
def await_registered(
    connections: Connections,
    datacenter: Datacenter,
    service: Service,
    token: SecretStr,
    *,
    deadline: float = 60.0,
) -> None:
    """
    Wait until an instance is in the catalog with all its checks passing.

    Raises:
        NotConverged: not within `deadline` seconds.
    """

    def passing() -> bool:
        return service.host in passing_hosts(connections, datacenter, service.name, token)

    wait_until(
        passing,
        f"{service.name} to pass its checks",
        deadline=deadline,
        where=service.host,
        stage="services",
        remedy=f"look at the log of {service.units[0]} on {service.host}",
    )
    record.current().seen(service.host, "serving")


def passing_hosts(
    connections: Connections, datacenter: Datacenter, name: str, token: SecretStr
) -> set[str]:
    """Hosts on which a service passes all its checks."""
    found = consul.operator_get(
        connections, datacenter, token, f"/v1/health/service/{name}", passing="1"
    )
    return {str(e["Node"]["Node"]) for e in found or []}
