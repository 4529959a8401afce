"""Is every ACL token known, wanted and as declared? A verdict with reasons, and no changes."""

from __future__ import annotations

from dataclasses import replace

from flows.report import PlanRow
from flows.runbook import Run, runbook
from tasks import audit_survey, token_survey
from tasks.planning.token_audit import AuditSeen, confirmed, judge
from tasks.planning.verdict import Verdict


@runbook("token-audit", exclusive=False)
def token_audit(run: Run) -> None:
    """
    Say whether every ACL token of the mesh is one that somebody answers for.

    1. Look at all tokens of every datacenter, at what Vault keeps of them, and at
       the services that run. A list that is not whole ends the audit.
    2. Give each finding with what to do, the worst first: tokens too old, too
       mighty, not as declared, without expiry, orphaned, or with nobody behind.

    Makes no change. Fails if a finding is bad, so that a schedule can alarm.
    """
    # Shown first, so that whatever ends the look is a failure, which alarms, and no refusal.
    run.show_plan(
        [PlanRow(step=1, action="judge", targets=run.mesh.name, reason="nothing is changed")]
    )
    with run.stage("look"):
        unfit = token_survey.unfit(run.connections)
        for reason in unfit:
            detail = f"{reason.error}; do: {reason.do}"
            run.recorder.check(f"{reason.where} can be looked at", False, detail)
        if unfit:
            return
        seen, verdict = _look(run)
    _tell(run, verdict)
    tokens = seen.tokens.tokens
    run.measures |= {
        "good": verdict.good,
        "tokens": {name: len(found) for name, found in tokens.items()},
        "findings": {
            level: sum(f.level == level for f in verdict.findings) for level in ("fail", "warn")
        },
    }


def _look(run: Run) -> tuple[AuditSeen, Verdict]:
    """What is not good is looked at twice: a rotation may be under way."""
    management = token_survey.management(run.connections)
    seen = audit_survey.look(run.connections, management)
    verdict = judge(run.mesh, seen)
    if verdict.good:
        return seen, verdict
    again = audit_survey.look(run.connections, management)
    # Judged at the same moment, so that the same finding has the same words.
    again = replace(again, tokens=replace(again.tokens, at=seen.tokens.at))
    return again, confirmed(verdict, judge(run.mesh, again))


def _tell(run: Run, verdict: Verdict) -> None:
    for finding in verdict.findings:
        remedy = f"; do: {finding.do}" if finding.do and finding.level != "ok" else ""
        if finding.level == "warn":
            run.notice(f"{finding.subject}: {finding.text}{remedy}")
        else:
            run.recorder.check(finding.subject, finding.level == "ok", f"{finding.text}{remedy}")
