"""What came of a run: which outcome, and how it is put to whoever must act on it."""

from __future__ import annotations

from blocks.errors import BadInput, Defect, MeshError, Refused, Transient, Unsafe
from flows.report import Outcome, Problem
from flows.run import RefusedByGate, Run


def before_all(error: Exception) -> tuple[Outcome, Problem]:
    """What came of a run whose mesh could not be loaded or connected."""
    if not isinstance(error, MeshError):
        return "failed", _problem(Defect.of(error))
    problem = _problem(error)
    problem.bad_input = not isinstance(error, Unsafe)
    return "refused", problem


def verdict(run: Run) -> tuple[Outcome, Problem | None]:
    """What came of a body that went through to its end."""
    checks = run.recorder.checks
    failed = [check for check in checks if not check.ok]
    if failed:
        problem = Problem(
            error=f"{len(failed)} of {len(checks)} checks failed",
            step="verify",
            details=[f"{check.name}: {check.detail}".rstrip(": ") for check in failed],
            stands=run.what_stands(),
            do="look at what these checks name",
        )
        return "failed", problem
    changed = run.recorder.changes or run.ledger.mutations
    return ("verified" if changed else "nothing"), None


def after(error: Exception, run: Run) -> tuple[Outcome, Problem]:
    """What came of a body that an error ended."""
    if not isinstance(error, MeshError):
        error = Defect.of(error)
    problem = _problem(error)
    if isinstance(error, Defect):
        problem.where, problem.seen = "", error.where
    untouched = not run.ledger.mutations
    if untouched and isinstance(error, Unsafe):
        return "refused", problem
    # Wrong credentials or an unreachable cloud: what the operator gave, and nothing was touched.
    before_plan = isinstance(error, Refused | Transient) and not run.planned
    if untouched and (isinstance(error, BadInput) or before_plan):
        problem.bad_input = True
        return "refused", problem
    problem.step = run.failed_at
    problem.stands = _stands(run)
    return "failed", problem


def _stands(run: Run) -> str:
    try:
        return run.what_stands()
    except Exception:  # noqa: BLE001 - an error while telling of an error must not hide it
        return ""


def _problem(error: MeshError) -> Problem:
    if isinstance(error, RefusedByGate):
        return error.problem.model_copy()
    if isinstance(error, BadInput):
        details = error.problems if len(error.problems) > 1 else []
        line = f"{len(details)} problems with what was given" if details else error.message
        return Problem(error=line, details=details)
    return Problem(
        error=error.message,
        where=error.where,
        do=error.remedy,
        safe_to_rerun=error.safe_to_rerun,
    )
