"""Thousands of like items: a sum in the journal, each by itself in a table, a pace while it lasts."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deployments.progress import Progress
from flows.report import Report
from flows.run import Stage
from flows.runbook import execute
from tasks import record
from tasks.record import Event, Recorder
from tasks.step import fan_out
from tests.runbook.sample import MANY, sample


def many(mesh: str) -> Report:
    return execute(sample, mesh=mesh, options={"behaviour": "many"})


def following(progress: Progress) -> Callable[[Event], None]:
    def follow(event: Event) -> None:
        progress.take(event)

    return follow


def test_changes_that_are_alike_are_one_line_of_the_journal(acme: str):
    report = many(acme)

    (summed,) = [change for change in report.changes if change.times > 1]
    assert (summed.target, summed.did) == ("vault", "token of 2,499 roles promoted")
    assert summed.after == "item-0000, item-0001, item-0002 and 2,496 more"
    assert report.changed == MANY - 1 + 2  # and the two hosts
    assert len(report.model_dump_json()) < 5000


def test_each_item_is_in_a_table_beside_the_report(acme: str):
    report = many(acme)

    with Path(report.links["items"]).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == MANY
    assert rows[0] == {
        "item": "item-0000", "outcome": "done", "why": "due", "age_seconds": "60",
        "before": "old", "after": "new", "seconds": "0.0", "error": "",
    }  # fmt: skip
    assert rows[-1]["outcome"] == "failed at prove"


def test_a_run_without_items_leaves_no_table(acme: str):
    assert "items" not in execute(sample, mesh=acme, options={"behaviour": "change"}).links


def test_what_was_done_before_an_error_is_told_all_the_same():
    recorder = Recorder()

    def one(name: str) -> None:
        record.current().changed_one("vault", "token of {} promoted", name)
        if name == "c":
            raise KeyError(name)

    with record.recording(recorder), pytest.raises(KeyError), recorder.summed():
        fan_out(one, ["a", "b", "c"], workers=1)

    assert [(c.did, c.times) for c in recorder.changes] == [("token of 3 roles promoted", 3)]


def test_a_few_are_told_one_by_one():
    recorder = Recorder()

    with record.recording(recorder), recorder.summed(whole=False):
        recorder.changed_one("vault", "token of {} promoted", "web", after="new")

    (change,) = recorder.changes
    assert (change.did, change.after, change.times) == ("token of web promoted", "new", 1)


def test_a_stage_of_thousands_tells_a_pace_and_not_every_item(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("flows.run.time.monotonic", lambda: now[0])
    recorder, progress = Recorder(clock=lambda: now[0]), Progress()
    recorder.listen(following(progress))
    stage = Stage(recorder, "prove 3 of 10", 1000, "")
    for _ in range(500):
        now[0] += 0.02
        stage.done()

    assert 20 < len(recorder.events) <= 10.0 / 0.25 + 1
    line = progress.stages["prove 3 of 10"].line(now[0])
    assert "prove 3 of 10" in line
    assert line.endswith("of 1,000   50 a second, 10 s left")


def test_the_whole_of_many_batches_tells_how_long_all_of_it_takes(monkeypatch: pytest.MonkeyPatch):
    """No item is through before its batch is; how far they are is known by their steps."""
    now = [0.0]
    monkeypatch.setattr("flows.run.time.monotonic", lambda: now[0])
    stage = Stage(Recorder(), "tokens", 10_000, "")
    now[0] = 30.0
    stage.advance(0.2)

    assert (stage.count, stage.pace) == (0, "67 a second, 120 s left".replace("120 s", "2 min"))


def test_few_items_have_no_pace(monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr("flows.run.time.monotonic", lambda: now[0])
    recorder = Recorder()
    stage = Stage(recorder, "vault", 3, "")
    now[0] = 30.0
    stage.done()

    assert stage.pace == ""
    assert [event.data["done"] for event in recorder.events] == [1]


def test_parts_of_a_whole_are_shown_while_they_last():
    recorder, progress = Recorder(), Progress()
    recorder.listen(following(progress))
    recorder.stage("tokens", "running", of=2000)
    recorder.stage("store 1 of 2", "done", done=1000, of=1000, part=True)
    recorder.stage("create 1 of 2", "running", of=1000, part=True)

    shown = "\n".join(progress.lines(1.0))
    assert "tokens" in shown
    assert "create 1 of 2" in shown
    assert "store 1 of 2" not in shown


def test_the_journal_line_is_what_the_report_says(acme: str):
    report = many(acme)
    line = json.loads(report.model_dump_json())

    assert Report.model_validate(line) == report
