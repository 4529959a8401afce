"""The report all runbooks give: what was planned, changed, proved and measured."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Outcome = Literal["planned", "nothing", "verified", "undone", "refused", "failed"]

EXIT_STATUS: dict[str, int] = {
    "planned": 0,
    "nothing": 0,
    "verified": 0,
    "undone": 1,
    "failed": 1,
    "refused": 3,
}

BAD_INPUT = 2


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PlanRow(_Row):
    """One step of a plan, as a colleague would say it."""

    step: int
    action: str  # "power on", "unseal", "start", "prove"
    targets: str
    reason: str = ""
    waits_for: str = "-"


class ChangeRow(_Row):
    """One thing that was changed."""

    target: str
    did: str
    before: str = ""
    after: str = ""
    seconds: float = 0.0
    times: int = 1  # of many alike that are told as one; `items` in `links` names each


class CheckRow(_Row):
    """One thing that was proved, or not."""

    name: str
    ok: bool
    detail: str = ""


class Problem(_Row):
    """Why a run was refused or failed: what was seen, what stands, what to do."""

    error: str
    where: str = ""
    step: str = ""  # "step 4 of 7", or the stage's name
    details: list[str] = []  # a line each: every problem of bad input, every reason of a gate
    seen: str = ""
    do: str = ""
    stands: str = ""
    safe_to_rerun: bool = True
    bad_input: bool = False  # what the operator gave is wrong; exit status 2


class Report(_Row):
    """
    One run of one runbook.

    It is the flow's artifact, the `--json` line and one line of the journal.
    It never holds a secret.
    """

    runbook: str
    mesh: str
    run_id: str
    outcome: Outcome
    started: datetime
    ended: datetime
    plan: list[PlanRow] = []
    changes: list[ChangeRow] = []
    checks: list[CheckRow] = []
    measures: dict[str, Any] = {}
    notices: list[str] = []
    options: dict[str, Any] = {}
    links: dict[str, str] = {}  # "report", "picture", "items": files; "run": its page in Prefect
    problem: Problem | None = None

    @property
    def exit_status(self) -> int:
        """The exit status of the command contract."""
        if self.problem is not None and self.problem.bad_input:
            return BAD_INPUT
        return EXIT_STATUS[self.outcome]

    @property
    def changed(self) -> int:
        """How many things were changed."""
        return sum(change.times for change in self.changes)

    @property
    def seconds(self) -> float:
        """How long the run took."""
        return (self.ended - self.started).total_seconds()
