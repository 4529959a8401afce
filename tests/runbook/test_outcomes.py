"""Whatever happens inside, a run ends in a report, a journal line and an exit status."""

from __future__ import annotations

import json
import os
import signal
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import BadInput
from flows import journal
from flows.report import Report
from flows.run import Planned
from flows.runbook import execute
from tests.runbook.sample import CANARY, TOUCHED, sample


def run(acme: str, behaviour: str = "change", **more: Any) -> Report:
    options = {"behaviour": behaviour, **more.pop("options", {})}
    return execute(sample, mesh=acme, options=options, **more)


@pytest.mark.parametrize(
    ("behaviour", "outcome", "status"),
    [
        ("change", "verified", 0),
        ("nothing", "nothing", 0),
        ("check", "failed", 1),
        ("fail", "failed", 1),
        ("defect", "failed", 1),
        ("defect-early", "failed", 1),
        ("unsafe-late", "failed", 1),
        ("not-safe", "failed", 1),
        ("refuse", "refused", 3),
        ("refuse-many", "refused", 3),
        ("bad-input", "refused", 2),
        ("forbidden-early", "refused", 2),
        ("unreachable-early", "refused", 2),
    ],
)
def test_each_end_has_its_outcome_status_and_journal_line(
    acme: str, state: Path, behaviour: str, outcome: str, status: int
):
    report = run(acme, behaviour)

    assert (outcome, status) == (report.outcome, report.exit_status)
    assert [json.loads(report.model_dump_json())] == journal.read(state / "journal.jsonl")


def test_a_good_run_tells_what_it_planned_changed_proved_and_measured(acme: str):
    report = run(acme)

    assert [row.action for row in report.plan] == ["touch", "prove"]
    assert sorted(change.target for change in report.changes) == ["a-1", "a-2"]
    assert [(check.name, check.ok) for check in report.checks] == [("all touched", True)]
    assert (report.measures["calls"], report.measures["mutating_calls"]) == (4, 2)
    assert 0 < report.measures["peak_rss_mb"] < 4096
    assert report.measures["seconds"] == pytest.approx(report.seconds, abs=0.01)
    assert report.notices == ["a notice"]
    assert report.options["mode"] == "apply"


def test_the_report_is_a_file_beside_the_journal(acme: str, state: Path):
    report = run(acme)

    text = Path(report.links["report"]).read_text()
    assert Path(report.links["report"]).parent == state / "reports"
    assert "# sample acme: done and verified" in text
    assert "| 1 | touch | a-1 a-2 | they are off | - |" in text
    assert state.stat().st_mode & 0o777 == 0o700
    assert (state / "journal.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_plan_ends_after_the_plan(acme: str):
    report = run(acme, mode="plan")

    assert (report.outcome, report.exit_status) == ("planned", 0)
    assert len(report.plan) == 2
    assert report.measures["mutating_calls"] == 0
    assert report.changes == []


def test_a_plan_lets_no_call_through_that_changes_something(acme: str):
    TOUCHED.clear()

    report = run(acme, "plan-changes", mode="plan")

    assert (report.outcome, TOUCHED) == ("refused", [])
    assert report.problem is not None
    assert report.problem.error == "a plan changes nothing, yet touch a-1 was about to"


def test_no_except_clause_of_a_body_swallows_the_end_of_a_plan():
    assert not issubclass(Planned, Exception)


def test_a_refusal_tells_every_reason(acme: str):
    one, many = run(acme, "refuse").problem, run(acme, "refuse-many").problem

    assert one is not None
    assert many is not None
    assert one.error == "2 of the 3 shares needed can be reached"
    assert one.details == ['holder "ops-b": AccessDenied', 'holder "ops-c": mode 0644']
    assert one.do == "chmod 0400 the file"
    assert many.details == ["x: first; do: A", "second"]
    assert many.do == "what each line says"


def test_a_failure_tells_where_what_stands_and_what_to_do(acme: str):
    problem = run(acme, "fail").problem

    assert problem is not None
    assert (problem.step, problem.where) == ("step 2 of 2", "us-consul-3")
    assert problem.stands == "a-1 a-2 up"
    assert problem.do == "see its log"
    assert problem.safe_to_rerun


def test_an_error_may_forbid_the_rerun(acme: str):
    problem = run(acme, "not-safe").problem

    assert problem is not None
    assert not problem.safe_to_rerun


@pytest.mark.parametrize("behaviour", ["leak", "leak-text", "defect", "defect-early"])
def test_no_text_of_a_foreign_error_gets_out(acme: str, state: Path, behaviour: str):
    report = run(acme, behaviour)

    assert report.outcome == "failed"
    assert CANARY not in report.model_dump_json()
    for file in state.rglob("*"):
        assert not file.is_file() or CANARY not in file.read_text()


def test_a_defect_is_named_by_its_kind_and_place(acme: str):
    problem = run(acme, "defect").problem

    assert problem is not None
    assert problem.error == "a defect in the runbook: KeyError"
    assert "sample.py" in problem.seen


def test_an_unknown_mesh_is_bad_input_and_leaves_no_trace(state: Path, tmp_path: Path):
    report = execute(sample, mesh=str(tmp_path / "nowhere.yaml"))

    assert report.exit_status == 2
    assert report.problem is not None
    assert report.problem.bad_input
    assert not (state / "journal.jsonl").exists()


def test_a_journal_that_cannot_be_written_is_found_before_anything_is_done(acme: str, state: Path):
    (state / "journal.jsonl").mkdir(parents=True)

    report = run(acme)

    assert report.exit_status == 2
    assert report.problem is not None
    assert "journal" in report.problem.error
    assert report.changes == []


def test_an_unknown_or_wrong_option_is_refused_before_anything(acme: str, state: Path):
    with pytest.raises(BadInput) as caught:
        execute(sample, mesh=acme, options={"behaviuor": "change", "seconds": "soon"})

    assert len(caught.value.problems) == 2
    assert "did you mean behaviour?" in caught.value.problems[0]
    assert not state.exists()


def test_a_torn_line_of_a_killed_run_costs_no_other_line(state: Path):
    state.mkdir()
    file = state / "journal.jsonl"
    file.write_text('{"runbook":"cold-bo')
    now = datetime.now(UTC)
    report = Report(
        runbook="sample", mesh="acme", run_id="1", outcome="nothing", started=now, ended=now
    )

    journal.append(file, report)

    assert [line["runbook"] for line in journal.read(file)] == ["sample"]


def test_a_failing_onlooker_does_not_touch_the_run(acme: str):
    class Blind:
        def __getattr__(self, name: str) -> Any:
            raise BrokenPipeError(name)

    report = run(acme, onlookers=[Blind()])

    assert report.outcome == "verified"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_at_the_next_step_boundary(acme: str, number: signal.Signals):
    if (inherited := signal.getsignal(number)) is signal.SIG_IGN:  # by `nohup`, or a shell's `&`
        signal.signal(number, signal.SIG_DFL)
    before = signal.getsignal(number)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), number))
    timer.start()
    report = run(acme, "hang", options={"seconds": 20.0})

    assert (report.outcome, report.exit_status) == ("failed", 1)
    assert report.seconds < 5
    assert report.problem is not None
    assert f"stopped by {number.name}" == report.problem.error
    assert report.problem.safe_to_rerun
    assert len(report.changes) == 2
    assert before == signal.getsignal(number)
    signal.signal(number, inherited)


def test_what_puts_back_runs_although_the_run_is_to_stop(acme: str):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()

    report = run(acme, "cleanup", options={"seconds": 20.0})

    assert report.outcome == "failed"
    assert "put-back" in [change.target for change in report.changes]
