"""Steps: what is retried, where a run may stop, and many at once."""

from __future__ import annotations

import inspect
import threading
import time

import pytest

from blocks.errors import Forbidden, NotConverged, Transient, Unreachable
from tasks import record, step, stopping
from tasks.record import Recorder
from tasks.stopping import Stop, Stopped
from tasks.waiting import wait_until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "pause", lambda seconds: stopping.check())


def failing(times: int, error: Exception) -> tuple[step.Step[[str], str], list[str]]:
    calls: list[str] = []

    @step.step("ask {host}")
    def ask(host: str) -> str:
        """Ask."""
        calls.append(host)
        if len(calls) <= times:
            raise error
        return f"{host} answers"

    return ask, calls


def test_what_passes_by_itself_is_tried_again():
    ask, calls = failing(2, Unreachable("no answer"))

    assert ask("vault-1") == "vault-1 answers"
    assert len(calls) == 3


def test_what_does_not_pass_by_itself_is_not():
    ask, calls = failing(1, Forbidden("403"))

    with pytest.raises(Forbidden):
        ask("vault-1")
    assert len(calls) == 1


def test_retries_have_a_bound_and_end_with_the_error_itself():
    ask, calls = failing(99, Transient("busy"))

    with pytest.raises(Transient, match="busy"):
        ask("vault-1")
    assert len(calls) == step.RETRIES + 1


def test_a_step_keeps_its_name_its_signature_and_its_bare_function():
    ask, _ = failing(0, Transient("never"))

    assert (ask.__name__, ask.__doc__) == ("ask", "Ask.")  # type: ignore[attr-defined]
    assert list(inspect.signature(ask).parameters) == ["host"]
    assert ask.fn("bare") == "bare answers"
    assert (ask.task.name, ask.task.task_run_name) == ("ask", "ask {host}")
    assert ask.task.persist_result is False


def test_a_step_does_not_begin_once_the_run_is_to_stop():
    ask, calls = failing(0, Transient("never"))
    stop = Stop()
    stop.request("SIGTERM")

    with stopping.stoppable(stop), pytest.raises(Stopped, match="stopped by SIGTERM"):
        ask("vault-1")
    with stopping.stoppable(stop), stopping.shielded():
        ask("vault-1")
    assert calls == ["vault-1"]


def test_a_wait_ends_when_the_run_is_to_stop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    stop = Stop()
    threading.Timer(0.1, stop.request, ("SIGTERM",)).start()
    began = time.monotonic()

    with stopping.stoppable(stop), pytest.raises(Stopped):
        wait_until(lambda: None, "a leader", deadline=30.0, every=10.0)
    assert time.monotonic() - began < 5


def test_a_wait_that_is_over_says_what_it_saw_last():
    def probe() -> None:
        raise Unreachable("connection refused", where="us-consul-2")

    with pytest.raises(NotConverged, match="us-consul-2: connection refused"):
        wait_until(probe, "a leader", deadline=0.05)


def test_a_wait_is_told_with_its_stage(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    answers = iter([None] * 8 + ["leader"])
    recorder = Recorder()

    with record.recording(recorder), record.in_stage("consul"):
        wait_until(lambda: next(answers), "a leader", deadline=30.0, where="us-1", every=0.1)

    told = [(e.kind, e.subject, e.text, e.stage) for e in recorder.events]
    assert told == [
        ("waiting", "us-1", "a leader", "consul"),
        ("arrived", "us-1", "a leader", "consul"),
    ]


def test_of_many_at_once_all_are_waited_for_and_the_first_error_is_raised():
    done: list[int] = []

    def work(number: int) -> int:
        if number == 1:
            raise Forbidden("one")
        time.sleep(0.05)
        done.append(number)
        return number

    with pytest.raises(Forbidden, match="one"):
        step.fan_out(work, range(4))
    assert sorted(done) == [0, 2, 3]
    assert step.fan_out(lambda n: n * 2, range(4)) == [0, 2, 4, 6]


def test_in_order_starts_each_once_what_it_needs_is_done():
    done: list[str] = []

    step.in_order({"c": ["a", "b"], "b": ["a"], "a": []}, done.append)

    assert done == ["a", "b", "c"]


def test_in_order_starts_nothing_new_after_a_failure_or_a_stop():
    begun: list[str] = []
    stop = Stop()

    def fail(node: str) -> None:
        begun.append(node)
        raise Forbidden(node)

    def last(node: str) -> None:
        begun.append(node)
        stop.request("SIGINT")

    with pytest.raises(Forbidden, match="a"):
        step.in_order({"b": ["a"], "a": []}, fail)
    with stopping.stoppable(stop), pytest.raises(Stopped):
        step.in_order({"b": ["a"], "a": []}, last)
    assert begun == ["a", "a"]


def test_threads_report_to_the_recorder_and_stage_they_were_started_from():
    recorder = Recorder()

    with record.recording(recorder), record.in_stage("power on"):
        step.fan_out(lambda host: record.current().seen(host, "up"), ["a", "b"])

    assert sorted((e.subject, e.stage) for e in recorder.events) == [
        ("a", "power on"),
        ("b", "power on"),
    ]
