"""One runbook at a time on a mesh, and whoever is refused learns by whom."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from blocks.errors import BadInput, Unsafe
from flows import journal, lock
from flows.runbook import execute
from tests.runbook.sample import sample


def other(run_id: str = "7f3a0000", pid: int = 1) -> lock.Holder:
    return lock.Holder(
        runbook="cold-boot", run_id=run_id, user="ops", host="h", pid=pid, since=datetime.now(UTC)
    )


def test_the_second_run_is_refused_with_the_holders_name_and_since_when(acme: str, state: Path):
    state.mkdir()
    with lock.holding(lock.file_of(state, "acme"), other()) as before:
        report = execute(sample, mesh=acme)

    assert before is None
    assert (report.outcome, report.exit_status) == ("refused", 3)
    assert report.problem is not None
    assert f"cold-boot 7f3a0000, started by ops on h (pid 1), since {datetime.now():%Y-}" in (  # noqa: DTZ005
        report.problem.error
    )
    assert report.measures["calls"] == 0


def test_a_plan_needs_no_lock_but_says_who_holds_it(acme: str, state: Path):
    state.mkdir()
    with lock.holding(lock.file_of(state, "acme"), other()):
        report = execute(sample, mesh=acme, mode="plan")

    assert report.outcome == "planned"
    assert "held at this moment by cold-boot" in report.notices[0]


def test_the_lock_is_free_after_a_run(acme: str, state: Path):
    execute(sample, mesh=acme)

    assert lock.holder_of(lock.file_of(state, "acme")) is None
    assert execute(sample, mesh=acme).outcome == "verified"


@pytest.mark.parametrize("behaviour", ["fail", "defect", "refuse"])
def test_the_lock_is_free_after_a_run_that_failed(acme: str, state: Path, behaviour: str):
    execute(sample, mesh=acme, options={"behaviour": behaviour})

    assert execute(sample, mesh=acme).outcome == "verified"


def test_a_dead_holders_lock_is_free_and_its_run_gets_its_line(acme: str, state: Path):
    state.mkdir()
    lock.file_of(state, "acme").write_text(other().model_dump_json())

    report = execute(sample, mesh=acme)

    assert report.outcome == "verified"
    assert "it was killed: cold-boot 7f3a0000" in report.notices[0]
    lines = journal.read(state / "journal.jsonl")
    assert [("7f3a0000", "failed"), (report.run_id, "verified")] == [
        (line["run_id"], line["outcome"]) for line in lines
    ]


def test_a_run_that_died_after_its_line_gets_no_second_one(acme: str, state: Path):
    first = execute(sample, mesh=acme)
    lock.file_of(state, "acme").write_text(other(first.run_id).model_dump_json())

    execute(sample, mesh=acme)

    ids = [line["run_id"] for line in journal.read(state / "journal.jsonl")]
    assert ids.count(first.run_id) == 1


def test_of_many_at_once_exactly_one_gets_it(tmp_path: Path):
    file, start, got = tmp_path / "acme.lock", threading.Barrier(8), []
    hold = threading.Event()

    def attempt(number: int) -> None:
        start.wait()
        try:
            with lock.holding(file, other(str(number))):
                got.append(number)
                hold.wait(10)
        except Unsafe:
            refused.append(number)
            if len(refused) == 7:
                hold.set()

    refused: list[int] = []
    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(got), len(refused)) == (1, 7)


def test_a_lock_that_cannot_be_opened_is_bad_input(tmp_path: Path):
    with pytest.raises(BadInput), lock.holding(tmp_path / "no" / "acme.lock", other()):
        pass
