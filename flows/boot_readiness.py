"""If everything went dark now, would it come back? A verdict with reasons, and no changes."""

from __future__ import annotations

from flows.report import PlanRow
from flows.runbook import Run, runbook
from tasks import closer, survey
from tasks.planning.overview import overview
from tasks.planning.readiness import judge


@runbook("boot-readiness", exclusive=False)
def boot_readiness(run: Run) -> None:
    """
    Say whether this mesh would come back if everything went dark now.

    1. Look at everything a cold boot needs: the boot graph, the clouds, key
       shares at their holders, snapshots, certificates, the life left in Consul's
       CA token, the gateways' addresses, and fallbacks that still stand.
    2. Give each finding with what to do, the worst first.

    Makes no change. Fails if the answer is no, so that a schedule can alarm.
    """
    with run.stage("look"):
        seen, access = survey.look(run.connections)
        look = closer.look(run.connections, access)
    verdict = judge(run.mesh, seen, look)
    run.show_plan(
        [PlanRow(step=1, action="judge", targets=run.mesh.name, reason="nothing is changed")],
        header=overview(run.mesh, seen),
    )
    for finding in verdict.findings:
        remedy = f"; do: {finding.do}" if finding.do and finding.level != "ok" else ""
        if finding.level == "warn":
            run.notice(f"{finding.subject}: {finding.text}{remedy}")
        else:
            ok = finding.level == "ok"
            run.recorder.check(finding.subject, ok, f"{finding.text}{remedy}")
    run.measures["ready"] = verdict.ready
