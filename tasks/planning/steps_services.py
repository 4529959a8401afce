"""Steps of a cold boot: services, components, and the proof of it all."""

from __future__ import annotations

from graphlib import TopologicalSorter

from blocks.boot_edges import service_node
from blocks.topology import Datacenter
from tasks.planning.draft import Boot


def clients(boot: Boot, dc: Datacenter) -> None:
    """
    Start what waits for Consul by itself: agents, gateways, services, sidecars.

    Early, and so that a gateway is there before the servers are: a leader that
    finds the gateway's agent gone drops the gateway, and the way to the other
    datacenters comes back many seconds later.
    """
    targets = [
        name
        for name in boot.mesh.client_hosts(dc.name)
        if any(not boot.runs(name, unit) for unit in boot.client_units(dc, name))
    ]
    boot.draft.add(
        f"clients:{dc.name}",
        "clients",
        "start agents",
        targets,
        "with their gateways, services and sidecars, which wait for Consul by themselves",
        boot.on(targets),
        datacenter=dc.name,
        expected=any(boot.survey.host(n).dark for n in targets),
        hosts=targets,
    )


def intentions(boot: Boot) -> None:
    """Declare who may call whom, where that is not so."""
    fresh = "bootstrap" in boot.draft
    pairs = (
        [(i.source, i.destination) for i in boot.mesh.intentions]
        if fresh
        else boot.survey.pairs_wrong
    )
    boot.draft.add(
        "intentions",
        "services",
        "declare",
        [f"{source}>{destination}" for source, destination in pairs],
        "who may call whom" if fresh else "not as declared",
        [
            *boot.consul_up(boot.mesh.primary),
            "bootstrap",
            f"tokens:{boot.mesh.primary}",
            f"ca:{boot.mesh.primary}",
            # They count once every datacenter has them.
            *(f"secondary:{dc.name}" for dc in boot.mesh.secondaries),
        ],
        datacenter=boot.mesh.primary,
    )


def services(boot: Boot, dc: Datacenter) -> None:
    """Start the instances that do not answer through the mesh."""
    mine = [
        s
        for s in boot.mesh.services
        if s.datacenter == dc.name and boot.survey.service(s.name, s.host) != "answering"
    ]
    waits = [*boot.on(s.host for s in mine), f"clients:{dc.name}", f"ca:{dc.name}"]
    waits += [f"agents:{dc.name}", "intentions"]
    for service in mine:
        waits += boot.after(service_node(service))
    waits.append(f"secondary:{dc.name}")
    if any("gateways:" in w for w in waits):
        waits += [f"secondary:{d.name}" for d in boot.mesh.secondaries]
    boot.draft.add(
        f"services:{dc.name}",
        "services",
        "see services",
        [f"{s.name}@{s.host}" for s in mine],
        "answer through the mesh",
        waits,
        datacenter=dc.name,
        expected=any(boot.survey.host(s.host).dark for s in mine),
        hosts=[s.host for s in mine],
    )


def components(boot: Boot) -> None:
    """Start what else must boot, in the order of its needs."""
    components = {f"component:{c.name}": c for c in boot.mesh.components}
    among = {node: [n for n in boot.needs[node] if n in components] for node in components}
    without = {"vault", "gateways", "service"} if boot.broken else set()
    left_out: set[str] = set()
    for node in TopologicalSorter(among).static_order():
        needed = boot.needs[node]
        if any(n.partition(":")[0] in without or n in left_out for n in needed):
            left_out.add(node)
            continue
        component = components[node]
        if boot.survey.components.get(component.name) == "answering":
            continue
        boot.draft.add(
            node,
            "components",
            "start component",
            (component.name,),
            f"on {component.host}",
            boot.after(node),
            datacenter=boot.home[component.host],
            expected=boot.survey.host(component.host).dark,
            hosts=(component.host,),
        )


def prove(boot: Boot) -> None:
    """Prove it all; the only step of a plan for a healthy mesh."""
    targets = [d.name for d in boot.mesh.datacenters]
    if boot.broken:
        reason = "leaders, KV, catalog and ACL; Connect is off on purpose"
    else:
        targets = ["vault", *targets, *dict.fromkeys(s.name for s in boot.mesh.services)]
        reason = "leaders, quorum, a signed leaf, federation both ways, services as declared"
    boot.draft.add("prove", "prove", "prove", targets, reason, boot.draft.last())
