"""
What every runbook shares: the order of a run, and what comes of it.

Whatever happens inside, a run that was begun ends in a report, a line in the
journal, and the exit status of the contract.
"""

from __future__ import annotations

import resource
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from blocks import calls
from blocks.errors import Unsafe
from flows import endings, journal, lock, markdown
from flows.report import ChangeRow, CheckRow, Outcome, Problem, Report
from flows.run import Mode, Onlooker, Planned, Run
from flows.signals import stop_on_signals
from tasks import record, stopping
from tasks.record import Event, Recorder
from tasks.stopping import Stop, Stopped


class Body(Protocol):
    """What a run needs to know of its runbook."""

    @property
    def name(self) -> str:
        """Its name: `cold-boot`."""

    @property
    def exclusive(self) -> bool:
        """Whether nothing else may run on the mesh meanwhile."""

    @property
    def body(self) -> Callable[..., None]:
        """What it does, given a `Run` and its options."""


@dataclass
class Order:
    """One order to run: which mesh, how far, and who watches."""

    mesh: str
    mode: Mode = "apply"
    options: Mapping[str, Any] = field(default_factory=dict)
    onlookers: Sequence[Onlooker] = ()
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    use_prefect: bool = False
    links: Mapping[str, str] = field(default_factory=dict)
    # Locks beside the one of this machine, such as Prefect's global limit.
    locks: Sequence[Callable[[Run], AbstractContextManager[object]]] = ()
    stop: Stop = field(default_factory=Stop)
    # Whether SIGTERM, once heeded, is for somebody else too: a worker cancels a run by it.
    hands_on_sigterm: bool = False


class _Watch(calls.Ledger):
    """Counts the calls, and lets none that changes something leave a mere plan."""

    def __init__(self, mode: Mode) -> None:
        super().__init__(keep=False)  # of ten thousand tokens there are sixty thousand
        self._mode = mode

    def before(self, call: calls.Call) -> None:
        if call.mutates and self._mode == "plan":
            raise Unsafe(
                f"a plan changes nothing, yet {call.what} was about to",
                where=call.server,
                remedy="report it as a defect of the runbook",
            )
        super().before(call)


def carry_out(runbook: Body, order: Order) -> Report:
    """
    Run one runbook on one mesh, from bad input to the report.

    Holds afterwards: the report is in the journal (unless the mesh could not
    even be loaded), and the mesh is free again.

    Raises:
        BaseException: only what is no `Exception` (an interpreter told to end),
            after the report was written.
    """
    started = datetime.now(UTC)
    try:
        run = _prepared(runbook, order)
    except Exception as error:  # noqa: BLE001 - it becomes the report
        # No server was asked for anything yet, so nothing can have been touched.
        report = _report(runbook, order, started, None, *endings.before_all(error))
        _tell(order.onlookers, "end", report, Recorder())
        return report

    cut_off: BaseException | None = None
    outcome: Outcome
    problem: Problem | None
    with ExitStack() as stack:
        stack.enter_context(record.recording(run.recorder))
        stack.enter_context(stopping.stoppable(order.stop))
        hand_on = stack.enter_context(stop_on_signals(order.stop, run.recorder))
        stack.enter_context(_observed(run.ledger))
        stack.enter_context(run.connections)
        try:
            # Held until the report is written: the next to run must find it.
            stack.enter_context(_locked(runbook, run, order))
            _tell(order.onlookers, "begin", run)
            runbook.body(run, **run.options)
            outcome, problem = endings.verdict(run)
        except Planned:
            outcome, problem = "planned", None
        except Exception as error:  # noqa: BLE001 - it becomes the report
            outcome, problem = endings.after(error, run)
        except BaseException as error:  # noqa: BLE001 - likewise, and is raised again below
            cut_off = error
            outcome, problem = endings.after(Stopped(f"cut off by {type(error).__name__}"), run)
        report = _report(runbook, order, started, run, outcome, problem)
        _leave_traces(report, run, order)
    if cut_off is not None:
        raise cut_off
    if order.hands_on_sigterm:
        hand_on()
    return report


def _prepared(runbook: Body, order: Order) -> Run:
    from blocks.mesh import connect, load_mesh

    mesh = load_mesh(order.mesh, use_prefect=order.use_prefect)
    run = Run(
        runbook=runbook.name,
        run_id=order.run_id,
        mesh=mesh,
        connections=connect(mesh, use_prefect=order.use_prefect),
        mode=order.mode,
        options=dict(order.options),
        state_dir=journal.state_dir(mesh),
        ledger=_Watch(order.mode),
    )
    journal.require_writable(journal.journal_of(mesh))
    for onlooker in order.onlookers:
        run.recorder.listen(_quietly(onlooker))
    run.on_plan.append(lambda run, header: _tell(order.onlookers, "plan", run, header))
    return run


@contextmanager
def _locked(runbook: Body, run: Run, order: Order) -> Iterator[None]:
    file = lock.file_of(run.state_dir, run.mesh.name)
    if not runbook.exclusive or run.mode == "plan":
        if (holder := lock.holder_of(file)) is not None:
            run.notices.append(f"the mesh is held at this moment by {holder}")
        yield
        return
    with ExitStack() as stack:
        before = stack.enter_context(lock.holding(file, lock.me(run.runbook, run.run_id)))
        if before is not None:
            _record_killed(before, run)
        for enter in order.locks:
            stack.enter_context(enter(run))
        yield


def _record_killed(before: lock.Holder, run: Run) -> None:
    # Nobody writes a last line after kill -9, so the next run does it for the dead.
    file = journal.journal_of(run.mesh)
    if any(known.get("run_id") == before.run_id for known in journal.read(file)):
        return
    run.notices.append(f"the run before did not end by itself, it was killed: {before}")
    report = Report(
        runbook=before.runbook,
        mesh=run.mesh.name,
        run_id=before.run_id,
        outcome="failed",
        started=before.since,
        ended=datetime.now(UTC),
        problem=Problem(
            error="killed: it left no report of its own",
            seen=f"found at the start of {run.runbook} {run.run_id[:8]}",
            do="run it again: it looks at what is there and carries on",
        ),
    )
    with suppress(OSError):
        journal.append(file, report)


def _report(
    runbook: Body,
    order: Order,
    started: datetime,
    run: Run | None,
    outcome: Outcome,
    problem: Problem | None,
) -> Report:
    ended = datetime.now(UTC)
    report = Report(
        runbook=runbook.name,
        mesh=run.mesh.name if run else Path(order.mesh).stem,
        run_id=order.run_id,
        outcome=outcome,
        started=started,
        ended=ended,
        options={"mode": order.mode, **order.options},
        links=dict(order.links),
        problem=problem,
    )
    if run is not None:
        report.plan = run.plan
        report.notices = run.notices
        report.changes = [ChangeRow(**asdict(change)) for change in run.recorder.changes]
        report.checks = [CheckRow(**asdict(check)) for check in run.recorder.checks]
        report.measures = {
            "seconds": round((ended - started).total_seconds(), 3),
            "mutating_calls": run.ledger.mutations,
            "calls": run.ledger.calls,
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
            **run.measures,
        }
    return report


def _leave_traces(report: Report, run: Run, order: Order) -> None:
    """The files of a run, then the word to those who watch; none of it changes the outcome."""
    try:
        report.links |= markdown.write(report, run.recorder, run.state_dir / "reports", run.mesh)
    except OSError as error:
        report.notices.append(f"the report's file could not be written: {error.strerror}")
    try:
        journal.append(journal.journal_of(run.mesh), report)
    except OSError as error:
        report.notices.append(f"this run is NOT in the journal: {error.strerror}")
    _tell(order.onlookers, "end", report, run.recorder)


def _tell(onlookers: Sequence[Onlooker], what: str, *args: Any) -> None:
    for onlooker in onlookers:
        # A closed terminal or a Prefect server that is gone must not end a boot halfway.
        with suppress(Exception):
            getattr(onlooker, what)(*args)


def _quietly(onlooker: Onlooker) -> Callable[[Event], None]:
    return lambda event: _tell([onlooker], "event", event)


@contextmanager
def _observed(ledger: calls.Ledger) -> Iterator[None]:
    calls.observe(ledger)
    try:
        yield
    finally:
        calls.forget(ledger)
