"""A day 0 cut short while Vault was being set up, with everything else already running."""

from __future__ import annotations

from dataclasses import replace

from tasks.planning.cold_boot import Options, plan_cold_boot
from tasks.planning.survey import ConsulSeen, HolderSeen, HostSeen, NodeSeen, healthy
from tests.planning.meshes import NOW, mesh

MESH = mesh()


def test_nothing_that_needs_the_runbooks_credential_runs_beside_the_set_up() -> None:
    """Until the set-up has made that credential, no step can use Vault or Consul's token."""
    whole = healthy(MESH, NOW)
    nodes = {name: NodeSeen("standby") for name in MESH.vault.nodes}
    nodes[MESH.vault.nodes[0]] = NodeSeen("active")
    consul = {
        dc.name: ConsulSeen("serving", up=frozenset(dc.consul.servers)) for dc in MESH.datacenters
    }
    cut_short = replace(
        whole,
        hosts={name: HostSeen("on", "ok", units=seen.units) for name, seen in whole.hosts.items()},
        vault=replace(
            whole.vault,
            nodes=nodes,
            holders={h.name: HolderSeen("held", shares=h.shares) for h in MESH.vault.holders},
            setup="partial",
            credential="none",
        ),
        consul=consul,
    )

    plan = plan_cold_boot(MESH, cut_short, Options(initialise=True))

    assert not plan.refusals
    beside = {step.id.partition(":")[0] for step in plan.horizon()}
    assert "setup" in beside
    assert beside <= {"setup", "clients", "component"}, beside
