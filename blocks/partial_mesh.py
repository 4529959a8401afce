"""What is left of a mesh when machines cannot come back for now: pure."""

from __future__ import annotations

from collections.abc import Iterable

from blocks.errors import BadInput
from blocks.topology import Mesh, Upstream


def without(mesh: Mesh, names: Iterable[str]) -> Mesh:
    """
    The mesh that is left when hosts or whole datacenters are given up for now.

    Everything that stood on them is left out. Quorums are counted of what
    remains, so this is for a person to decide.

    Raises:
        BadInput: a name is neither host nor datacenter, or nothing could boot
            without it: the primary, all Vault nodes, all servers or gateways of
            a datacenter that is to come up.
    """
    given = set(names)
    datacenters = {d.name for d in mesh.datacenters}
    hosts = {h.name for _, h in mesh.hosts()}
    problems = [
        f"without: {name} is neither a host nor a datacenter of {mesh.name}"
        for name in sorted(given - datacenters - hosts)
    ]
    if mesh.primary in given:
        problems.append(f"without: {mesh.primary} is the primary; nothing boots without it")
    gone = {h.name for d, h in mesh.hosts() if h.name in given or d.name in given}

    def left(listed: list[str]) -> list[str]:
        return [name for name in listed if name not in gone]

    if not left(mesh.vault.nodes):
        problems.append("without: no Vault node is left")
    kept = []
    for dc in (d for d in mesh.datacenters if d.name not in given):
        servers = left(dc.consul.servers)
        gateways = [g for g in dc.gateways if g.host not in gone]
        if not servers:
            problems.append(f"without: no Consul server of {dc.name} is left; leave all of it out")
        if dc.gateways and not gateways and len(datacenters - given) > 1:
            problems.append(f"without: no mesh gateway of {dc.name} is left; leave all of it out")
        kept.append(
            dc.model_copy(
                update={
                    "hosts": [h for h in dc.hosts if h.name not in gone],
                    "consul": dc.consul.model_copy(update={"servers": servers}),
                    "gateways": gateways,
                }
            )
        )
    if problems:
        raise BadInput(problems)
    services = [s for s in mesh.services if s.host not in gone]
    there = {(s.name, s.datacenter) for s in services}

    def reachable(upstream: Upstream) -> bool:
        return any(
            name == upstream.service and upstream.datacenter in {None, where}
            for name, where in there
        )

    return mesh.model_copy(
        update={
            "datacenters": kept,
            "vault": mesh.vault.model_copy(update={"nodes": left(mesh.vault.nodes)}),
            "services": [
                s.model_copy(update={"upstreams": [u for u in s.upstreams if reachable(u)]})
                for s in services
            ],
            "certificates": [c for c in mesh.certificates if c.host not in gone],
            "components": [c for c in mesh.components if c.host not in gone],
        }
    )
