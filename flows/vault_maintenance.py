"""Planned Vault work without a certificate outage: the CA moves away, and back."""

from __future__ import annotations

from typing import Literal

from flows.report import PlanRow
from flows.runbook import Run, runbook
from tasks import connect_ca, maintenance, record, survey
from tasks.survey import Access
from tasks.vault_setup import ca_token

Direction = Literal["begin", "end"]


@runbook("vault-maintenance", title="{direction}")
def vault_maintenance(run: Run, *, direction: Direction = "begin", hours: float = 8.0) -> None:
    """
    Move Connect's CA to Consul's built-in provider before Vault work, and back afterwards.

    1. See that Vault serves: Consul must read the old root either way.
    2. begin: mark the maintenance with its end, move every datacenter's CA.
       end: move every datacenter's CA back to Vault, take the mark away.
    3. Prove by a leaf signed in each datacenter that chains to the shared root.

    Leaves stay valid throughout: the old root stays trusted until the leaves
    under it have ended. While it lasts a cold boot does not need Vault for
    Consul to elect a leader.

    Args:
        direction: Whether the Vault work is about to begin or has ended.
        hours: Begin only: after so many hours the readiness check calls it forgotten.
    """
    mesh, connections = run.mesh, run.connections
    with run.stage("survey"):
        seen, access = survey.look(connections)
    if seen.vault.active is None or access.consul is None or access.vault is None:
        run.refuse(
            "Vault does not serve: the CA can be moved only while it does",
            do="run cold-boot; if Vault cannot come back, cold-boot with fallback=break-glass",
        )
    if not_serving := [n for n, c in seen.consul.items() if c.state != "serving"]:
        run.refuse(f"no quorum in {', '.join(not_serving)}", do="run cold-boot first")
    wanted = "builtin" if direction == "begin" else "ok"
    # The primary first: a secondary follows its root.
    order = [mesh.datacenter(mesh.primary), *mesh.secondaries]
    found = seen.consul
    todo = [
        dc
        for dc in order
        if found[dc.name].ca != wanted or (direction == "end" and found[dc.name].issuer == "fixed")
    ]
    marked = bool(seen.maintenance)
    run.show_plan(_rows(direction, [dc.name for dc in todo], marked=marked))
    _apply(run, direction, [dc.name for dc in todo], access, hours=hours, marked=marked)
    with run.stage("prove", of=len(order)) as stage:
        roots = set()
        for dc in order:
            assert access.consul is not None
            root = connect_ca.await_leaf(connections, dc, access.consul, deadline=60.0)
            provider, _ = connect_ca.provider(connections, dc, access.consul)
            roots.add(root)
            record.current().check(f"{dc.name} leaf signed", True, f"by {provider}, root {root}")
            stage.done(dc.name)
        record.current().check(
            "one root in all datacenters", len(roots) == 1, ", ".join(sorted(roots))
        )


def _rows(direction: Direction, todo: list[str], *, marked: bool) -> list[PlanRow]:
    begin = direction == "begin"
    to = "to Consul's own provider" if begin else "to Vault"
    steps = [("move CA of", name, to) for name in todo]
    if marked != begin:
        mark = ("mark" if begin else "unmark", "maintenance", "in Consul's KV, with its end")
        steps = [mark, *steps] if begin else [*steps, mark]
    return [
        PlanRow(
            step=i, action=action, targets=targets, reason=reason,
            waits_for=str(i - 1) if i > 1 else "-",
        )
        for i, (action, targets, reason) in enumerate(steps, 1)
    ]  # fmt: skip


def _apply(
    run: Run, direction: Direction, todo: list[str], access: Access, *, hours: float, marked: bool
) -> None:
    assert access.vault is not None
    assert access.consul is not None
    connections = run.connections
    # The mark goes up before the first move and down after the last, so that a
    # killed run is seen as maintenance, never as a CA that left by itself.
    if direction == "begin" and not marked:
        maintenance.mark(connections, access.consul, hours=hours)
    with run.stage("move the CA", of=len(todo)) as stage:
        for name in todo:
            dc = run.mesh.datacenter(name)
            if direction == "begin":
                connect_ca.ensure_built_in(connections, dc, access.consul)
            else:
                token = ca_token(connections, access.vault)
                connect_ca.ensure_on_vault(connections, dc, access.consul, token, access.vault)
            stage.done(name)
    if direction == "end" and marked:
        maintenance.unmark(connections, access.consul)
