"""Save snapshots of Vault and of every Consul datacenter."""

from __future__ import annotations

from flows.report import PlanRow
from flows.runbook import Run, runbook
from tasks import snapshots, survey
from tasks.step import fan_out


@runbook("snapshot")
def snapshot(run: Run) -> None:
    """
    Save a raft snapshot of Vault and of every Consul datacenter, and check each.

    1. See that Vault and Consul serve.
    2. Save each, complete and with right checksums, for its owner only.

    Without a snapshot `fallback=restore-vault` has nothing to restore. Nothing on
    the servers is changed, and no older snapshot is removed.
    """
    mesh, connections = run.mesh, run.connections
    with run.stage("survey"):
        seen, access = survey.look(connections)
    targets = ["vault", *(f"consul-{dc.name}" for dc in mesh.datacenters)]
    if access.vault is None or access.consul is None or seen.vault.active is None:
        run.refuse(
            "Vault does not serve, or does not let the runbooks in",
            do="run cold-boot first; `mesh run boot-readiness` says what is missing",
        )
    folder = snapshots.directory(mesh)
    run.show_plan(
        [PlanRow(step=1, action="save", targets=" ".join(targets), reason=f"into {folder}")]
    )
    vault_token, consul_token = access.vault, access.consul
    with run.stage("save", step=1, of=len(targets)) as stage:
        path = snapshots.save_vault(connections, vault_token)
        run.recorder.check("vault snapshot restorable", True, path.name)
        stage.done(path.name)

        def consul(name: str) -> None:
            saved = snapshots.save_consul(connections, mesh.datacenter(name), consul_token)
            run.recorder.check(f"consul {name} snapshot restorable", True, saved.name)
            stage.done(saved.name)

        fan_out(consul, [dc.name for dc in mesh.datacenters])
