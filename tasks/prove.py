"""
What "the mesh is back" means, proved one by one (B13).

A leader alone proves little: each check here is a thing that was seen to fail
while everything looked up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from pydantic import SecretStr

from blocks.errors import Forbidden, MeshError, NotConverged, Transient
from blocks.topology import Component, Datacenter
from tasks import components, connect_ca, consul, federation, intentions, record, services, vault
from tasks.step import fan_out, step
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.mesh import Connections

Verdict = tuple[bool, str]
Proof = Callable[[], Verdict]


def proofs(connections: Connections, token: SecretStr, vault_token: SecretStr) -> dict[str, Proof]:
    """Every check of a mesh that is up as declared, by name."""
    mesh = connections.topology
    checks: dict[str, Proof] = {"vault unsealed": partial(_vault, connections)}
    if mesh.vault.storage == "raft":
        checks["vault raft voters"] = partial(_voters, connections, vault_token)
    for dc in mesh.datacenters:
        checks[f"{dc.name} quorum"] = partial(_quorum, connections, dc)
        checks[f"{dc.name} autopilot"] = partial(_autopilot, connections, dc, token)
        checks[f"{dc.name} ACLs"] = partial(_acls, connections, dc, token)
        checks[f"{dc.name} leaf signed"] = partial(_leaf, connections, dc, token)
        for other in mesh.datacenters:
            if other is not dc:
                name = f"{dc.name} -> {other.name}"
                checks[name] = partial(_reach, connections, dc, other, token)
        if dc.name != mesh.primary:
            checks[f"{dc.name} replication"] = partial(_replication, connections, dc, token)
            checks[f"{dc.name} intentions"] = partial(_intentions, connections, dc, token)
            checks[f"{dc.name} same root"] = partial(_same_root, connections, dc, token)
    for pair in services.pairs(mesh):
        name = f"{pair.caller.name}@{pair.caller.host}: {pair.label}"
        name += " answers" if pair.allowed else " denied"
        checks[name] = partial(_pair, connections, pair)
    for component in mesh.components:
        checks[f"{component.name} answers"] = partial(_component, connections, component)
    return checks


def _quorum(connections: Connections, dc: Datacenter) -> Verdict:
    leader = consul.await_quorum(connections, dc, deadline=30.0)
    return True, f"leader {leader}, consistent read"


def _autopilot(connections: Connections, dc: Datacenter, token: SecretStr) -> Verdict:
    def healthy() -> str:
        ok, detail = consul.autopilot_healthy(connections, dc, token)
        if not ok:
            raise Transient(detail, where=dc.name)
        return detail

    # It looks at its servers every few seconds only.
    detail = wait_until(
        healthy,
        "autopilot to call every server healthy",
        deadline=60.0,
        where=dc.name,
        stage="prove",
        every=0.1,
        remedy="look at the log of the server it names",
    )
    return True, detail


def _acls(connections: Connections, dc: Datacenter, token: SecretStr) -> Verdict:
    return True, consul.await_acls(connections, dc, token)


def _leaf(connections: Connections, dc: Datacenter, token: SecretStr) -> Verdict:
    root = connect_ca.await_leaf(connections, dc, token, deadline=30.0)
    name, _ = connect_ca.provider(connections, dc, token)
    return True, f"by {name}, chains to root {root}"


def _reach(
    connections: Connections, source: Datacenter, target: Datacenter, token: SecretStr
) -> Verdict:
    return True, federation.await_reach(connections, source, target, token)


def _replication(connections: Connections, dc: Datacenter, token: SecretStr) -> Verdict:
    mesh = connections.topology
    primary = mesh.datacenter(mesh.primary)
    return True, federation.await_replication(connections, primary, dc, token)


def _intentions(connections: Connections, dc: Datacenter, token: SecretStr) -> Verdict:
    mesh = connections.topology
    missing = intentions.missing_in(connections, mesh.datacenter(mesh.primary), dc, token)
    return not missing, f"missing: {', '.join(missing)}" if missing else "as in the primary"


def _pair(connections: Connections, pair: services.Pair) -> Verdict:
    return True, services.await_as_declared(connections, pair)


def _component(connections: Connections, component: Component) -> Verdict:
    detail = component.url or "units active"
    return components.look(connections, component) == "answering", detail


def _vault(connections: Connections) -> Verdict:
    nodes = vault.look_at_all(connections)
    states = ", ".join(f"{n.host} {n.state}" for n in nodes)
    return all(n.unsealed for n in nodes) and any(n.state == "active" for n in nodes), states


def _voters(connections: Connections, vault_token: SecretStr) -> Verdict:
    return True, f"{vault.await_voters(connections, vault_token)} healthy"


def _same_root(connections: Connections, dc: Datacenter, token: SecretStr) -> Verdict:
    mesh = connections.topology
    here = connect_ca.active_root(connections, dc, token)
    there = connect_ca.active_root(connections, mesh.datacenter(mesh.primary), token)
    return here == there, f"root {here}, in {mesh.primary} {there}"


@step("{name}")
def _prove(name: str, proof: Proof) -> record.Check:
    """One check; an error is a failed check, with its reason."""
    try:
        ok, detail = proof()
    except MeshError as error:
        return record.current().check(name, False, str(error))
    return record.current().check(name, ok, detail)


def prove(connections: Connections, token: SecretStr, vault_token: SecretStr) -> list[record.Check]:
    """
    Run every check, at once where they do not disturb each other.

    Raises:
        NotConverged: one failed; all are in the report.
    """
    results = _all(connections, proofs(connections, token, vault_token))
    # Proven by what went through them, which is when the timeline may say so.
    mesh = connections.topology
    for gateway in (g for dc in mesh.datacenters for g in dc.gateways):
        record.current().seen(gateway.host, "gateway up")
    for service in mesh.services:
        record.current().seen(service.host, "serving")
    return results


def without_connect(connections: Connections) -> list[record.Check]:
    """
    What can be proven of a mesh under break-glass: quorum, and ACLs that hold.

    The management token lies in the Vault that is away, so nothing is written.

    Raises:
        NotConverged: one failed; all are in the report.
    """
    mesh = connections.topology
    todo: dict[str, Proof] = {
        f"{dc.name} quorum, Connect off": partial(_quorum, connections, dc)
        for dc in mesh.datacenters
    }
    # Only there: without the gateways a secondary may not learn of the primary's ACLs.
    todo[f"{mesh.primary} ACLs hold"] = partial(_denied, connections, mesh.datacenter(mesh.primary))
    return _all(connections, todo)


def _denied(connections: Connections, dc: Datacenter) -> Verdict:
    try:
        consul.operator_get(connections, dc, None, "/v1/kv/mesh-runbooks/probe", consistent="1")
    except Forbidden:
        return True, "an anonymous read is denied"
    return False, "an anonymous caller may read KV"


def _all(connections: Connections, todo: dict[str, Proof]) -> list[record.Check]:
    results = fan_out(lambda name: _prove(name, todo[name]), todo)
    if failed := [c for c in results if not c.ok]:
        raise NotConverged(
            f"{len(failed)} of {len(results)} checks failed: "
            + "; ".join(f"{c.name}: {c.detail}" for c in failed[:3]),
            where=connections.topology.name,
            remedy="what failed names its own remedy in the report; run cold-boot again afterwards",
        )
    return results
