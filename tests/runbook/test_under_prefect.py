"""The same runbook as a Prefect flow: its form, its names, its states, its artifacts."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterKey,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import FlowRun, State
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL

from flows import journal, under_prefect
from flows.report import Report
from flows.run import Run
from flows.runbook import as_runbook, execute
from tasks.record import Event, Recorder
from tests.runbook.sample import CANARY, MANY, TOUCHED, sample

pytestmark = pytest.mark.usefixtures("prefect_api")


def call(acme: str, behaviour: str, **parameters: Any) -> tuple[State[Any], FlowRun, Report]:
    """One flow run, as Prefect knows it and as the journal has it."""
    given = {"mode": "apply", "behaviour": behaviour, **parameters}
    state = sample(mesh=acme, **given, return_state=True)
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
    lines = journal.read(journal.home() / "journal.jsonl")
    return state, run, Report.model_validate(lines[-1])


def artifact(key: str, run: FlowRun) -> Any:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                key=ArtifactFilterKey(any_=[key]),
                flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]),
            )
        )
    assert len(found) == 1
    return found[0]


def test_it_is_a_flow_for_whoever_imports_it():
    assert isinstance(sample, Flow)
    assert sample is load_flow_from_entrypoint("tests.runbook.sample.sample")
    assert sample._entrypoint == "tests.runbook.sample:sample"
    assert as_runbook(sample).name == "sample"


def test_its_form_can_be_filled_without_the_docs():
    form = sample.parameters.properties

    assert list(form) == ["mesh", "mode", "behaviour", "hosts", "seconds", "marker", "loud"]
    assert sample.parameters.required == ["mesh"]
    assert (form["mode"]["enum"], form["mode"]["default"]) == (["plan", "apply"], "plan")
    assert "change" in form["behaviour"]["enum"]
    assert [form[name]["type"] for name in ("hosts", "seconds", "loud")] == [
        "array",
        "number",
        "boolean",
    ]
    assert all(field["description"] for field in form.values())
    assert re.sub(r"\s+", " ", form["behaviour"]["description"]) == "What to do, and how to end."


@pytest.mark.parametrize(
    ("behaviour", "kind", "name"),
    [
        ("change", "COMPLETED", "Completed"),
        ("nothing", "COMPLETED", "Completed"),
        ("refuse", "CANCELLED", "Refused"),
        ("bad-input", "FAILED", "BadInput"),
        ("fail", "FAILED", "Failed"),
        ("check", "FAILED", "Failed"),
    ],
)
def test_each_end_has_a_state_of_its_own(acme: str, behaviour: str, kind: str, name: str):
    state, run, report = call(acme, behaviour)

    assert (kind, name) == (run.state_type, run.state_name)
    assert str(run.id) == report.run_id
    assert run.state is not None
    assert state.message == run.state.message
    if report.problem is not None:
        assert report.problem.error in (run.state.message or "")


def test_a_run_is_named_by_what_it_does(acme: str):
    _, run, _ = call(acme, "nothing")
    _, plan, _ = call(acme, "nothing", mode="plan")

    assert (run.name, plan.name) == ("sample acme (nothing)", "sample acme (plan, nothing)")
    assert plan.state_name == "Planned"


@pytest.mark.parametrize("behaviour", ["change", "nothing", "refuse", "fail", "check", "defect"])
def test_the_report_is_the_same_with_and_without_prefect(acme: str, behaviour: str):
    _, run, under = call(acme, behaviour)
    alone = execute(sample, mesh=acme, options={"behaviour": behaviour})

    assert under.measures.pop("under_prefect")
    assert not alone.measures.pop("under_prefect")
    assert str(run.id) in under.links.get("run", str(run.id))
    theirs, ours = under.model_dump(), alone.model_dump()
    for report in (theirs, ours):
        for passing in ("run_id", "started", "ended", "links"):
            report.pop(passing)
        for measure in ("seconds", "peak_rss_mb"):
            report["measures"].pop(measure)
        for change in report["changes"]:
            change.pop("seconds")
        report["changes"].sort(key=lambda change: change["target"])
    assert ours == theirs


def test_steps_are_task_runs_named_by_their_host(acme: str):
    _, run, _ = call(acme, "change")

    with get_client(sync_client=True) as client:
        filter_ = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        for _attempt in range(100):
            names = sorted(t.name for t in client.read_task_runs(flow_run_filter=filter_))
            if len(names) == 4:
                break
            time.sleep(0.1)
    assert names == ["look at a-1", "look at a-2", "touch a-1", "touch a-2"]


def test_the_plan_and_the_report_are_artifacts(acme: str):
    _, run, _ = call(acme, "change")

    plan, report = artifact("sample-acme-plan", run), artifact("sample-acme-report", run)
    assert '"action": "touch"' in str(plan.data)
    assert "acme: 2 hosts" in plan.description
    assert "# sample acme: done and verified" in report.data


def test_what_became_of_each_of_many_is_a_table_whose_first_page_has_the_failures(acme: str):
    _, run, report = call(acme, "many")

    pages = [artifact(f"sample-acme-items{end}", run) for end in ("", "-2", "-3")]
    tables = [json.loads(page.data) for page in pages]
    assert [len(table) for table in tables] == [1000, 1000, MANY - 2000]
    assert tables[0][0]["outcome"] == "failed at prove"
    assert len({row["item"] for table in tables for row in table}) == MANY
    assert pages[0].description == "Each by itself 1 of 3: 1 failed at prove, 999 done"
    assert len(report.changes) < 5


@pytest.fixture
def limit() -> Iterator[str]:
    """The limit that `mesh deploy` creates for each mesh."""
    name = "mesh-acme"
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(
            GlobalConcurrencyLimitCreate(name=name, limit=1, active=True)
        )
        yield name
        client.delete_global_concurrency_limit_by_name(name)


def test_the_global_limit_refuses_a_second_machine_with_the_holders_name(
    acme: str, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Another machine has a lock file of its own, so only Prefect can tell."""
    second: list[FlowRun] = []

    class Meanwhile:
        """Starts the same runbook as if on another machine, once the first one holds the mesh."""

        def begin(self, run: Run) -> None:
            monkeypatch.setenv("MESH_STATE_DIR", str(tmp_path / "another machine"))
            nobody = under_prefect._caller.set(None)
            second.append(call(acme, "change")[1])
            under_prefect._caller.reset(nobody)

        def plan(self, run: Run, header: Sequence[str]) -> None: ...
        def event(self, event: Event) -> None: ...
        def end(self, report: Report, recorder: Recorder) -> None: ...

    TOUCHED.clear()
    options = {"behaviour": "change", "hosts": ["a-1", "a-2"]}
    report = under_prefect.call_here(sample, acme, "apply", options, Meanwhile())

    assert report.outcome == "verified"
    assert second[0].state_name == "Refused"
    assert second[0].state is not None
    told = second[0].state.message or ""
    assert "another runbook holds the mesh: sample acme (change), since 2" in told
    assert sorted(TOUCHED) == ["a-1", "a-2"]


def test_the_global_limit_is_free_again_after_the_run(acme: str, limit: str):
    call(acme, "change")
    _, run, _ = call(acme, "change")

    assert run.state_name == "Completed"
    with get_client(sync_client=True) as client:
        assert client.read_global_concurrency_limit_by_name(limit).active_slots == 0


@pytest.mark.parametrize("behaviour", ["leak", "leak-text", "leak-retry", "defect", "defect-early"])
def test_no_secret_of_a_foreign_error_reaches_prefect(
    acme: str, behaviour: str, capfd: pytest.CaptureFixture[str]
):
    _, run, _ = call(acme, behaviour)

    assert run.state_name == "Failed"
    messages = told_of(run)
    assert CANARY not in "".join([*messages, *capfd.readouterr()])
    url = PREFECT_API_DATABASE_CONNECTION_URL.value()
    assert url is not None
    database = Path(re.sub(r"^sqlite.*:///", "", str(url)))
    with sqlite3.connect(database) as connection:
        dump = "\n".join(connection.iterdump())
    assert str(run.id) in dump
    assert CANARY not in dump
    assert base64.b64encode(CANARY.encode()).decode()[:20] not in dump


def told_of(run: FlowRun) -> list[str]:
    """All log lines and states of a run; Prefect sends both some seconds late."""
    ours = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
    steps = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    until = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while True:
            lines = [log.message for log in client.read_logs(ours, limit=200)]
            states = [task.state for task in client.read_task_runs(flow_run_filter=steps)]
            complete = any(line.startswith("Finished in state Failed") for line in lines)
            if complete and all(state is not None and state.is_final() for state in states):
                return [*lines, *(str(state.message) for state in states if state is not None)]
            assert time.monotonic() < until, f"Prefect did not get the whole run: {lines}"
            time.sleep(0.2)


def test_calling_the_flow_outside_a_run_is_a_plain_run(acme: str):
    report = sample.fn(acme, mode="plan")

    assert isinstance(report, Report)
    assert report.outcome == "planned"
