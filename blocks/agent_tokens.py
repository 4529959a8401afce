"""
The ACL tokens that Consul's agents carry: which there are, and what each grants.

Pure. The boot makes them and hands them out, a rotation replaces them; both
know them by the same names, descriptions and places in Vault.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

if TYPE_CHECKING:
    from blocks.topology import Datacenter, Mesh

# As the agent's API calls them: PUT /v1/agent/token/KIND.
AgentKind = Literal["agent", "default", "replication", "config_file_service_registration"]
KINDS: tuple[AgentKind, ...] = get_args(AgentKind)

FOLDER = "consul/tokens"  # below `vault.kv_mount`
CATALOG_POLICY = "mesh-catalog-read"
REPLICATION_POLICY = "mesh-replication"


class AgentToken(NamedTuple):
    """One token, and the agents that carry it."""

    kind: AgentKind
    name: str  # "agent-us-consul-1", "default-us-app-1", "replication-eu-west-1"
    description: str
    datacenter: str
    hosts: tuple[str, ...]
    nodes: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Where Vault keeps its secret."""
        return f"{FOLDER}/{self.name}"


def of_the_boot(mesh: Mesh) -> Iterator[AgentToken]:
    """Every token that day 0 hands to agents, datacenter by datacenter."""
    return (token for token in every(mesh) if token.kind != "config_file_service_registration")


def every(mesh: Mesh) -> Iterator[AgentToken]:
    """
    Every token that agents may carry.

    Tokens for services that are registered by files exist since Consul 1.15;
    the boot makes none, `default` tokens do the same.
    """
    for dc in mesh.datacenters:
        clients = mesh.client_hosts(dc.name)
        for host in [*dc.consul.servers, *clients]:
            yield AgentToken(
                "agent", f"agent-{host}", f"agent of {host}", dc.name, (host,), nodes=(host,)
            )
        for host in clients:
            services = _services(mesh, dc, host)
            yield AgentToken(
                "default",
                f"default-{host}",
                f"services of {host}",
                dc.name,
                (host,),
                nodes=(host,),
                services=services,
                policies=(CATALOG_POLICY,),
            )
            yield AgentToken(
                "config_file_service_registration",
                f"registration-{host}",
                f"registration of the services of {host}",
                dc.name,
                (host,),
                services=services,
            )
        if dc.name != mesh.primary:
            yield AgentToken(
                "replication",
                f"replication-{dc.name}",
                f"ACL replication of {dc.name}",
                dc.name,
                tuple(dc.consul.servers),
                policies=(REPLICATION_POLICY,),
            )


def _services(mesh: Mesh, datacenter: Datacenter, host: str) -> tuple[str, ...]:
    names = sorted({s.name for s in mesh.services if s.host == host})
    gateways = [g for g in datacenter.gateways if g.host == host]
    return (*names, *(["mesh-gateway"] if gateways else []))
