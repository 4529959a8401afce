"""What Prefect adds to a run: states by name, artifacts, a log, a limit across machines."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from prefect import Flow, get_run_logger
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import ConcurrencyLeaseHolder, State, StateType
from prefect.concurrency.sync import concurrency
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.utilities.urls import url_for

from blocks.errors import Unreachable, Unsafe
from flows import lock, markdown
from flows.execution import Order, carry_out
from flows.report import Report
from flows.run import Mode, Onlooker, Run
from tasks.record import Event, ItemRow, Recorder

if TYPE_CHECKING:
    from flows.runbook import Runbook

LEASE_SECONDS = 60.0
PAGE = 1000  # rows of a table; more are slow to show, and a large request to a small server
PACE_SECONDS = 10.0  # how often the log hears how far a long stage is


@dataclass
class Caller:
    """Who called the flow in this very process, and gets to see more than its state."""

    onlookers: Sequence[Onlooker] = ()
    begun: bool = False
    report: Report | None = None


_caller: ContextVar[Caller | None] = ContextVar("caller", default=None)


class NotBegun(Exception):
    """Prefect could not so much as begin the run; nothing was done."""


def call_here(
    flow: Flow[..., Any], mesh: str, mode: Mode, options: dict[str, Any], onlooker: Onlooker
) -> Report:
    """
    Call a runbook's flow in this very process, watched by `onlooker`; gives its report.

    Whatever becomes of Prefect after the run began, the report is the run's own.

    Raises:
        NotBegun: Prefect failed before the run began.
    """
    caller = Caller([onlooker])
    token = _caller.set(caller)
    try:
        flow(mesh=mesh, mode=mode, **options, return_state=True)
    except Exception as error:  # noqa: BLE001 - whatever Prefect's client raises
        if not caller.begun:
            raise NotBegun(type(error).__name__) from None
    except BaseException:
        if caller.report is None:
            raise
    finally:
        _caller.reset(token)
    if caller.report is None:
        raise RuntimeError("the run left no report")
    return caller.report


def flow_run_id() -> str | None:
    """The id of the flow run this thread works for, if it works for one."""
    context = FlowRunContext.get()
    return str(context.flow_run.id) if context and context.flow_run else None


def as_flow(book: Runbook, body: Callable[..., Any]) -> Flow[..., Any]:
    """The Prefect flow of a runbook; `flow.runbook` leads back."""

    def run_name() -> str:
        given = dict(flow_run.parameters or {})
        return book.run_name(given.pop("mesh", ""), given.pop("mode", "plan"), given)

    flow: Flow[..., Any] = Flow(
        body,
        name=book.name,
        flow_run_name=run_name,
        retries=0,  # a rerun looks afresh; an engine's retry would do so unasked
        persist_result=False,
        log_prints=False,
    )
    flow.runbook = book  # type: ignore[attr-defined]
    return flow


def carry_out_in_flow(book: Runbook, mesh: str, mode: Mode, options: dict[str, Any]) -> State[Any]:
    """Run a runbook as the flow run of this thread; the state says what came of it."""
    caller = _caller.get() or Caller()
    caller.begun = True
    identity = cast(str, flow_run_id())
    order = Order(
        mesh=mesh,
        mode=mode,
        options=options,
        onlookers=[_Artifacts(), _Log(), *caller.onlookers],
        run_id=identity,
        use_prefect=True,
        links={"run": url} if (url := url_for("flow-run", obj_id=identity)) else {},
        locks=[_limit],
        hands_on_sigterm=_caller.get() is None,
    )
    caller.report = carry_out(book, order)
    return state_of(caller.report)


def state_of(report: Report) -> State[Any]:
    """
    The state that tells a report's outcome.

    Returned and never raised: Prefect logs and pickles what a flow raises.
    A refused run is cancelled by a gate, not failed.
    """
    problem = report.problem
    if problem is not None:
        told = "; ".join(filter(None, [problem.error, *problem.details]))
        told += f"; do: {problem.do}" if problem.do else ""
        if problem.bad_input:
            return Failed(name="BadInput", message=told)
        if report.outcome == "refused":
            return Cancelled(name="Refused", message=told)
        return Failed(message=f"{problem.step}: {told}" if problem.step else told)
    if report.outcome in {"undone", "failed"}:
        return Failed(message=markdown.VERDICTS[report.outcome])
    good = sum(check.ok for check in report.checks)
    message = (
        f"{markdown.VERDICTS[report.outcome]}: {report.changed} changes, "
        f"{good} of {len(report.checks)} checks, {report.seconds:.1f} s"
    )
    return Completed(name="Planned" if report.outcome == "planned" else None, message=message)


class _Artifacts:
    """The plan as a table before anything is done, the report with its picture after."""

    def begin(self, run: Run) -> None: ...

    def event(self, event: Event) -> None: ...

    def plan(self, run: Run, header: Sequence[str]) -> None:
        create_table_artifact(
            table=[row.model_dump() for row in run.plan],
            key=f"{run.runbook}-{run.mesh.name}-plan",
            description="\n".join([*header, *(f"- {line}" for line in run.notices)]),
        )

    def end(self, report: Report, recorder: Recorder) -> None:
        self._items(report, list(recorder.items()))
        # Inside the text: a worker's file is nothing a browser could load.
        file = report.links.get("picture")
        image = f"![What was up when]({markdown.data_uri(Path(file))})" if file else ""
        create_markdown_artifact(
            markdown=markdown.text(report, image),
            key=f"{report.runbook}-{report.mesh}-report",
            description=markdown.VERDICTS[report.outcome],
        )

    def _items(self, report: Report, items: list[ItemRow]) -> None:
        """What became of each; those that failed first, so that no page must be turned for them."""
        items.sort(key=lambda item: item.outcome == "done")
        pages = [items[n : n + PAGE] for n in range(0, len(items), PAGE)]
        for number, page in enumerate(pages, 1):
            which = f" {number} of {len(pages)}" if len(pages) > 1 else ""
            told = Counter(item.outcome for item in page)
            create_table_artifact(
                table=[asdict(item) for item in page],
                key=f"{report.runbook}-{report.mesh}-items" + (f"-{number}" if number > 1 else ""),
                description=f"Each by itself{which}: "
                + ", ".join(f"{count} {outcome}" for outcome, count in told.items()),
            )


class _Log:
    """The run's progress in Prefect's log, a line where something came, went or is waited for."""

    def __init__(self) -> None:
        # Bound here: events come from any thread.
        self._log = cast("logging.LoggerAdapter[Any]", get_run_logger())
        self._told = 0.0

    def begin(self, run: Run) -> None: ...

    def plan(self, run: Run, header: Sequence[str]) -> None:
        for line in header:
            self._log.info("%s", line)
        for row in run.plan:
            self._log.info("plan %s: %s %s", row.step, row.action, row.targets)

    def event(self, event: Event) -> None:
        told = f"{event.subject}: {event.text}" if event.subject else event.text
        match event.kind:
            case "stage" if event.data["state"] == "running":
                # One line now and then of what takes long, as a terminal shows it all the time.
                if event.data["pace"] and event.at - self._told >= PACE_SECONDS:
                    self._told = event.at
                    self._log.info(
                        "%s: %s of %s, %s %s",
                        *(event.subject, event.data["done"], event.data["of"], event.data["pace"]),
                        event.text,
                    )
            case "stage" if not (event.data["part"] and event.data["state"] == "done"):
                of = f" {event.data['done']} of {event.data['of']}" if event.data["of"] else ""
                self._log.info("%s: %s%s %s", event.subject, event.data["state"], of, event.text)
            case "waiting":
                self._log.info("waiting for %s (%.0f s left)", told, event.data["deadline"])
            case "change" | "arrived":
                self._log.info("%s", told)
            case "check" if not event.data["ok"]:
                self._log.error("check failed: %s", told)
            case "seen":
                self._log.log(logging.INFO if event.subject else logging.WARNING, "%s", told)

    def end(self, report: Report, recorder: Recorder) -> None: ...


@contextmanager
def _limit(run: Run) -> Iterator[None]:
    """
    Hold Prefect's global limit `mesh-NAME`, if there is one.

    Raises:
        Unsafe: another run holds it, on whichever machine.
        Unreachable: Prefect's API cannot be asked.
    """
    name = f"mesh-{run.mesh.name}"
    holder = ConcurrencyLeaseHolder(type="flow_run", id=UUID(run.run_id))
    slot = concurrency(name, max_retries=0, lease_duration=LEASE_SECONDS, holder=holder)
    try:
        with get_client(sync_client=True) as client:
            limit = client.read_global_concurrency_limit_by_name(name)
            if limit.active and limit.active_slots >= limit.limit:
                raise lock.held_by(_holder(name))
        slot.__enter__()
    except ObjectNotFound:
        yield
        return
    except Unsafe:
        raise
    except Exception as error:  # noqa: BLE001 - Prefect has no narrower one for "taken"
        answer = getattr(error.__cause__, "response", None)
        if answer is not None and answer.status_code == HTTPStatus.LOCKED:
            raise lock.held_by(_holder(name)) from None
        raise Unreachable(
            f"the limit {name} could not be asked for", where="Prefect's API"
        ) from None
    try:
        # Only a name for whoever is refused meanwhile.
        with suppress(Exception), get_client(sync_client=True) as client:
            client.update_flow_run(UUID(run.run_id), tags={*(flow_run.tags or []), _tag(name)})
        yield
    finally:
        # The server may be gone by now; the lease ends by itself.
        with suppress(Exception):
            slot.__exit__(None, None, None)


def _tag(limit: str) -> str:
    return f"holds:{limit}"


def _holder(limit: str) -> str:
    """The run that holds a limit and since when, as far as Prefect knows."""
    running = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[_tag(limit)]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])),
    )
    with suppress(Exception), get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=running, limit=1):
            since = f"{run.start_time:%Y-%m-%d %H:%M:%S} UTC" if run.start_time else "just now"
            return f"{run.name}, since {since} (run {str(run.id)[:8]})"
    return ""
