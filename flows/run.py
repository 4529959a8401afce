"""What a runbook's body is given: the mesh, the plan's gate, and stages to report to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol

from blocks import calls
from blocks.errors import Unsafe
from blocks.partial_mesh import without
from blocks.topology import Mesh
from flows.report import PlanRow, Problem, Report
from tasks import record, stopping
from tasks.planning.plan import Refusal, compress
from tasks.record import Event, Recorder

if TYPE_CHECKING:
    from blocks.mesh import Connections

Mode = Literal["plan", "apply"]
Reason = str | Problem | Refusal


class Planned(BaseException):
    """The plan was shown and nothing more was asked for; no `except Exception` may catch it."""


class RefusedByGate(Unsafe):
    """A gate said no, with its reasons."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.error, where=problem.where, remedy=problem.do)
        self.problem = problem

    def __reduce__(self) -> tuple[object, ...]:
        return (RefusedByGate, (self.problem,))


class Onlooker(Protocol):
    """Who watches a run: the terminal, the Prefect log. Its own failures never reach the run."""

    def begin(self, run: Run) -> None:
        """The mesh is loaded, connected and locked; the body is about to start."""

    def plan(self, run: Run, header: Sequence[str]) -> None:
        """The plan stands in `run.plan`, its notices in `run.notices`."""

    def event(self, event: Event) -> None:
        """Something happened; called from any thread."""

    def end(self, report: Report, recorder: Recorder) -> None:
        """The run is over and its report is in the journal."""


# Thousands of like items come by the hundred a second; nobody reads as fast.
TELL_SECONDS = 0.25
MANY = 50  # of so many on, a stage tells its pace


class Stage:
    """
    One stage under way: `done` of `of`, and what it is at; safe from many threads.

    `part`: it is one of many alike, of interest while it lasts.
    """

    def __init__(
        self, recorder: Recorder, name: str, of: int, text: str, *, part: bool = False
    ) -> None:
        self._recorder, self._lock = recorder, threading.Lock()
        self.name, self.of, self.text, self.part = name, of, text, part
        self.count = 0
        self.skipped = False
        self._began = time.monotonic()
        self._told = 0.0
        self._share = 0.0  # of all the work, where that is known better than by counting

    def done(self, text: str = "", count: int = 1) -> None:
        """So many more of `of` have arrived."""
        with self._lock:
            self.count += count
            self.text = text or self.text
            if not self._due():
                return
        self._tell("running")

    def say(self, text: str) -> None:
        """What the stage is at, in a few words."""
        self.text = text
        self._tell("running")

    def advance(self, share: float) -> None:
        """So much of all the work is done, of 1; where items go through it together."""
        with self._lock:
            self._share = share
            if not self._due():
                return
        self._tell("running")

    @property
    def pace(self) -> str:
        """`48 a second, 12 s left`; empty for a few items, and while nothing is known."""
        lasted = time.monotonic() - self._began
        share = self._share or (self.count / self.of if self.of else 0.0)
        if self.of < MANY or lasted < 1.0 or not share:
            return ""
        rate = self.of * share / lasted
        left = lasted * (1 - share) / share
        told = f"{rate:.0f} a second" if rate >= 2 else f"{rate * 60:.0f} a minute"
        return f"{told}, {left:.0f} s left" if left < 120 else f"{told}, {left / 60:.0f} min left"

    def _due(self) -> bool:
        now = time.monotonic()
        if self.of >= MANY and now - self._told < TELL_SECONDS:
            return False
        self._told = now
        return True

    def skip(self, text: str) -> None:
        """Nothing of this stage is needed, and why."""
        self.text, self.skipped = text, True

    def _tell(self, state: record.StageState) -> None:
        self._recorder.stage(
            self.name,
            state,
            self.text,
            done=self.count,
            of=self.of,
            pace=self.pace if state == "running" else "",
            part=self.part,
        )


@dataclass
class Run:
    """
    One run of one runbook, as its body sees it.

    The body may add to `measures`, say in `stands` what a failed run leaves
    standing (otherwise what was last seen of each host and cluster), and in
    `done` what is true of the mesh after a good one.
    """

    runbook: str
    run_id: str
    mesh: Mesh
    connections: Connections
    mode: Mode
    options: dict[str, Any]
    state_dir: Path
    recorder: Recorder = field(default_factory=Recorder)
    ledger: calls.Ledger = field(default_factory=calls.Ledger)
    measures: dict[str, Any] = field(default_factory=dict)
    stands: str | Callable[[], str] = ""
    done: str = "is done and verified"  # "acme is up and verified in 21.4 s"
    plan: list[PlanRow] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    planned: bool = False
    failed_at: str = ""
    on_plan: list[Callable[[Run, Sequence[str]], None]] = field(default_factory=list)

    def show_plan(
        self, rows: Sequence[PlanRow], *, notices: Iterable[str] = (), header: Iterable[str] = ()
    ) -> None:
        """
        Show what is to be done; nothing may be changed before.

        `header` are the lines above the plan, laid out already. No rows: there
        is nothing to do, and the body goes on to verify. In mode `plan` this
        does not return.
        """
        self.plan = list(rows)
        self.notices += notices
        self.planned = True
        for listener in self.on_plan:
            listener(self, list(header))
        if self.mode == "plan":
            raise Planned
        self.checkpoint()

    def give_up(self, names: Sequence[str]) -> None:
        """
        Go on with what is left of the mesh without these hosts or datacenters.

        Raises:
            BadInput: a name is unknown, or nothing could boot without it.
        """
        if not names:
            return
        self.mesh = without(self.mesh, names)
        self.connections.topology = self.mesh
        self.notice(f"left out as asked, neither started nor proven: {', '.join(names)}")

    def notice(self, line: str) -> None:
        """Something the reader of the report must know; shown at once."""
        self.notices.append(line)
        self.recorder.seen("", line)

    def refuse(
        self,
        problems: Reason | Sequence[Reason],
        *,
        details: Iterable[str] = (),
        do: str = "",
    ) -> NoReturn:
        """
        End the run as refused: nothing was changed, and here is why.

        Raises:
            RefusedByGate: always.
        """
        given = [problems] if isinstance(problems, Reason) else problems
        found = [_as_problem(reason) for reason in given]
        if not found:
            raise ValueError("a refusal needs a reason")
        if len(found) == 1:
            only = found[0]
            raise RefusedByGate(
                only.model_copy(update={"details": [*only.details, *details], "do": do or only.do})
            )
        lines = [
            (f"{p.where}: " if p.where else "") + p.error + (f"; do: {p.do}" if p.do else "")
            for p in found
        ]
        raise RefusedByGate(
            Problem(
                error=f"{len(found)} reasons stand against it",
                details=[*lines, *details],
                do=do or "what each line says",
                bad_input=any(p.bad_input for p in found),
            )
        )

    @contextmanager
    def stage(
        self, name: str, *, step: int = 0, of: int = 0, text: str = "", part: bool = False
    ) -> Iterator[Stage]:
        """
        One stage of the run, running inside and done (or failed) afterwards.

        `step` is the number of the plan's row it carries out. A stop point;
        stages may overlap in several threads. `part`: one of many alike.
        """
        self.checkpoint()
        stage = Stage(self.recorder, name, of, text, part=part)
        self.recorder.stage(name, "running", text, of=of, part=part)
        try:
            with record.in_stage(name):
                yield stage
        except Planned:
            self.recorder.stage(name, "done", stage.text, done=stage.count, of=of)
            raise
        except BaseException as error:
            self._failed_in(name, step)
            reason = error.message if isinstance(error, Unsafe) else stage.text
            self.recorder.stage(name, "failed", reason, done=stage.count, of=of, part=part)
            raise
        state: record.StageState = "skipped" if stage.skipped else "done"
        done = stage.count or (0 if stage.skipped else of)
        self.recorder.stage(name, state, stage.text, done=done, of=of, part=part)

    def _failed_in(self, name: str, step: int) -> None:
        steps = max((row.step for row in self.plan), default=0)
        # The innermost and first stage to fail is the one to name.
        self.failed_at = self.failed_at or (f"step {step} of {steps}" if step and steps else name)

    def checkpoint(self) -> None:
        """A point where the run stops if it was asked to; steps, stages and waits are such."""
        stopping.check()

    def what_stands(self) -> str:
        """What the run leaves standing: the body's own words, else the last seen of each."""
        if callable(self.stands):
            return self.stands()
        if self.stands:
            return self.stands
        last: dict[str, str] = {}
        for event in list(self.recorder.events):
            if event.kind == "seen" and event.subject:
                last[event.subject] = event.text
        by_text: dict[str, list[str]] = {}
        for subject, text in last.items():
            by_text.setdefault(text, []).append(subject)
        return "; ".join(f"{compress(sorted(of))} {text}" for text, of in by_text.items())


def _as_problem(reason: Reason) -> Problem:
    match reason:
        case str():
            return Problem(error=reason)
        case Problem():
            return reason
        case Refusal():
            return Problem(
                error=reason.error,
                where=reason.where,
                do=reason.do,
                details=list(reason.details),
                bad_input=reason.bad_input,
            )
