"""What people see: nobody waits without knowing for what, and the last lines tell the truth."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deployments import words
from deployments.display import Display
from deployments.progress import Progress
from flows.report import CheckRow, Outcome, PlanRow, Problem, Report
from flows.runbook import execute
from tasks.record import Event
from tests.runbook.sample import sample


def stage(at: float, name: str, state: str, text: str = "", done: int = 0, of: int = 0) -> Event:
    return Event(at, "stage", name, text, name, {"state": state, "done": done, "of": of})


def waiting(at: float, subject: str, text: str, deadline: float, stage: str = "") -> Event:
    return Event(at, "waiting", subject, text, stage, {"deadline": deadline})


def lines_after(*events: Event, now: float) -> list[str]:
    progress = Progress()
    for event in events:
        progress.take(event)
    return [line.line(now) for line in progress.stages.values()]


def report(outcome: Outcome, **fields: Any) -> Report:
    began = datetime(2026, 5, 1, 3, 12, 41, tzinfo=UTC)
    return Report(
        runbook="cold-boot", mesh="acme", run_id="7f3a", outcome=outcome,
        started=began, ended=began + timedelta(seconds=21.4), **fields,
    )  # fmt: skip


def test_a_stage_says_how_many_of_how_many_and_how_long():
    lines = lines_after(
        stage(0.0, "power on", "running", of=13),
        stage(4.1, "power on", "done", done=13, of=13),
        stage(4.2, "vault", "running", of=3),
        now=5.0,
    )

    assert lines == ["  ✓ power on     13 of 13    4.1 s", "  … vault        0 of 3"]


def test_a_wait_says_for_whom_for_what_since_when_and_until_when():
    lines = lines_after(
        stage(0.0, "consul", "running", of=3),
        waiting(2.0, "us-consul-2", "no quorum yet, 2 of 3 voters", 118.0, "consul"),
        now=8.0,
    )

    assert lines == [
        (
            "  … consul       0 of 3    "
            "waits for us-consul-2: no quorum yet, 2 of 3 voters (6 s, gives up in 112 s)"
        )
    ]


def test_a_stage_that_failed_says_what_it_waited_for():
    lines = lines_after(
        stage(0.0, "consul", "running"),
        waiting(2.0, "us-consul-2", "a leader", 118.0, "consul"),
        stage(120.0, "consul", "failed"),
        now=121.0,
    )

    assert lines == ["  ✗ consul                 120.0 s   waited for us-consul-2: a leader"]


def test_of_several_waits_the_longest_is_told_and_what_has_come_is_not():
    begun = (
        stage(0.0, "hosts", "running"),
        waiting(1.0, "a", "ssh", 60.0, "hosts"),
        waiting(2.0, "b", "ssh", 60.0, "hosts"),
    )

    assert "waits for a: ssh (4 s, gives up in 56 s), and 1 more" in lines_after(*begun, now=5.0)[0]
    came = Event(4.0, "arrived", "a", "ssh")
    assert "waits for b: ssh (3 s, gives up in 57 s)" in lines_after(*begun, came, now=5.0)[0]


def test_a_plan_is_a_table_that_fits():
    rows = [
        PlanRow(step=1, action="power on", targets="vault-1..3", reason="off in ec2"),
        PlanRow(step=10, action="hold", targets="consul on " + "host " * 30, waits_for="1, 2"),
    ]

    lines = list(words.plan_lines(rows, 80))

    assert lines[0].startswith("Plan")
    assert lines[0].endswith("waits for")
    assert lines[1].startswith("   1 power on  vault-1..3: off in ec2")
    assert all(len(line) <= 80 for line in lines)
    assert lines[2].index("1, 2") == lines[0].index("waits for")


@pytest.mark.parametrize(
    ("ended", "line"),
    [
        (report("verified"), "acme is up and verified in 21.4 s"),
        (
            report("verified", measures={"servers_seconds": 18.0}),
            "acme is up and verified in 21.4 s (servers' own path 18.0 s)",
        ),
        (report("nothing"), "acme is up and verified, nothing needed changing (21.4 s)"),
        (report("planned"), "Nothing was changed. Run without --plan to apply."),
        (
            report("refused", problem=Problem(error="too few shares")),
            "refused: too few shares   (nothing was changed)",
        ),
        (
            report("failed", problem=Problem(error="no quorum", where="c-3", step="step 4 of 7")),
            "failed at step 4 of 7: c-3: no quorum",
        ),
    ],
)
def test_the_headline_tells_how_it_ended(ended: Report, line: str):
    assert words.headline(ended, "is up and verified") == line


def test_a_failure_that_must_not_be_rerun_says_so_before_what_to_do():
    problem = Problem(error="lost", do="discard the data of vault-1", safe_to_rerun=False)

    lines = list(words.problem_lines(report("failed", problem=problem)))

    assert lines[-2:] == [
        "  safe     NO, not before this is done:",
        "  do       discard the data of vault-1",
    ]


def test_the_figures_count_changes_and_checks_and_link_the_report():
    checks = [CheckRow(name="a", ok=True), CheckRow(name="b", ok=False)]
    ended = report("failed", checks=checks, links={"report": "/r.md", "run": "http://ui/run"})

    assert words.figures(ended) == (
        "  0 changes, 1 of 2 checks. Report: /r.md   Run: http://ui/run"
    )


def test_in_a_log_there_are_plain_lines(acme: str):
    stream = io.StringIO()
    execute(sample, mesh=acme, onlookers=[Display(stream)])

    text = stream.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert re.search(r"  ✓ touch        2 of 2 {5,}\d\.\d s   a-\d\n", text)
    assert text.index("Plan") < text.index("✓ touch") < text.index("acme is done and verified")


def test_a_log_is_not_flooded(acme: str):
    stream = io.StringIO()
    hosts = [f"h-{n}" for n in range(200)]
    execute(sample, mesh=acme, options={"hosts": hosts}, onlookers=[Display(stream)])

    told = [
        line for line in stream.getvalue().splitlines() if " touch " in line and "of 200" in line
    ]
    assert 2 <= len(told) <= 10


def test_a_notice_is_told_once(acme: str):
    stream = io.StringIO()
    execute(sample, mesh=acme, onlookers=[Display(stream)])

    assert stream.getvalue().count("  ! a notice\n") == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_stage_is_rewritten_in_place(acme: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    execute(
        sample, mesh=acme, options={"behaviour": "hang", "seconds": 0.6},
        onlookers=[Display(stream)],
    )  # fmt: skip

    text = stream.getvalue()
    assert "\x1b[1A" in text or "\x1b[2K" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    assert "waits for a-1: an answer that never comes (0 s, gives up in" in plain
    assert "\x1b[1;32macme is done and verified in" in text
    assert text.rstrip().endswith(".md")


def test_without_colour_where_none_is_wanted(acme: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    execute(sample, mesh=acme, onlookers=[Display(stream)])

    assert "acme is done and verified in" in stream.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*3\dm", stream.getvalue())
