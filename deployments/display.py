"""
A run in the terminal: one line a stage, rewritten in place; plain lines in a log.

On a terminal it is rich's live display; elsewhere lines are appended, without
colours and not more often than a reader of a log would want.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from deployments import words
from deployments.progress import Progress, StageLine
from flows.report import Report
from flows.run import Run
from tasks.planning import timeline
from tasks.record import Event, Recorder

if TYPE_CHECKING:
    from rich.live import Live

REPEAT_SECONDS = 15.0  # how often a log hears again what is still waited for
CALM_SECONDS = 3.0  # how often it hears of one stage's progress
PACE_SECONDS = 10.0  # and of one that says how long it will take


class Display:
    """Shows one run on a stream; an `Onlooker`."""

    def __init__(self, stream: TextIO, errors: TextIO | None = None) -> None:
        self._stream, self._errors = stream, errors or sys.stderr
        self._progress = Progress()
        self._lock = threading.RLock()
        self._told: dict[str, float] = {}
        self._noticed: set[str] = set()
        self._over = threading.Event()
        self._live: Live | None = None
        self._began = time.monotonic()
        self._run: Run | None = None
        self._width = min(shutil.get_terminal_size((words.WIDTH, 24)).columns, 120)
        if stream.isatty():
            from rich.console import Console

            # The lines are laid out already; a path or a bracket is not to be coloured.
            self._console: Any = Console(file=stream, highlight=False, markup=False, emoji=False)
        else:
            self._console = None

    def line(self, text: str, style: str = "") -> None:
        """One line of its own, above what is live; nothing for an empty text."""
        if text:
            self._write([text], style)

    def begin(self, run: Run) -> None:
        """Start to show what the run is at."""
        self._began, self._run = run.recorder.began, run
        self.line(f"{run.runbook} {run.mesh.name}  run {run.run_id[:8]}", "dim")
        if self._console is not None:
            from rich.live import Live

            self._live = Live(
                get_renderable=self._renderable, console=self._console, refresh_per_second=8
            )
            self._live.start()
        else:
            threading.Thread(target=self._repeat, daemon=True).start()

    def plan(self, run: Run, header: Sequence[str]) -> None:
        """The header, the plan, and what the reader must know."""
        self._write(["", *header, *([""] if header else [])])
        self._write(words.plan_lines(run.plan, self._width))
        self._notices(run.notices)
        self.line(" ")

    def event(self, event: Event) -> None:
        """Follow the run."""
        with self._lock:
            stage = self._progress.take(event)
            due = stage is not None and self._console is None and self._is_due(stage, event)
            line = stage.line(event.at) if stage is not None and due else ""
        # Not under the lock: rich holds one of its own while it asks for the lines.
        if event.kind == "seen" and not event.subject:
            self._notices([event.text])
        elif event.kind == "check" and not event.data["ok"]:
            self.line(f"  ✗ {event.subject}: {event.text}", "red")
        self.line(line)

    def end(self, report: Report, recorder: Recorder) -> None:
        """The last lines, which tell the truth."""
        self._over.set()
        if self._live is not None:
            self._live.stop()
            self._live = None
        if report.problem is not None and report.problem.bad_input:
            for line in words.bad_input_lines(report):
                print(line, file=self._errors)
            return
        self._notices(report.notices)
        good = report.outcome in {"planned", "nothing", "verified"}
        done = self._run.done if self._run is not None else ""
        self._write(["", words.headline(report, done)], "bold green" if good else "bold red")
        self._write(words.problem_lines(report))
        rows = timeline.bars(recorder.events, end=report.seconds)
        if rows and recorder.opened and report.outcome != "planned":
            self._write(["", *timeline.terminal(rows, width=self._width)])
        self._write(["", words.figures(report)])

    # appended lines

    def _is_due(self, stage: StageLine, event: Event) -> bool:
        if stage.part and stage.state != "failed" and event.kind == "stage":
            return False  # the whole says how far it is
        since = event.at - self._told.get(stage.name, -REPEAT_SECONDS)
        calm = 1.0 if event.kind == "waiting" else CALM_SECONDS
        if stage.pace:
            calm = PACE_SECONDS
        if stage.state == "running" and stage.name in self._told and since < calm:
            return False
        self._told[stage.name] = event.at
        return True

    def _repeat(self) -> None:
        while not self._over.wait(1.0):
            now = time.monotonic() - self._began
            lines = []
            with self._lock:
                for stage in self._progress.stages.values():
                    silent = now - self._told.get(stage.name, now)
                    if stage.state == "running" and silent >= REPEAT_SECONDS:
                        self._told[stage.name] = now
                        lines.append(stage.line(now))
            self._write(lines)

    # output

    def _renderable(self) -> Any:
        from rich.text import Text

        now = time.monotonic() - self._began
        with self._lock:
            lines = list(self._progress.lines(now))
        return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")

    def _notices(self, notices: Sequence[str]) -> None:
        new = [notice for notice in notices if notice not in self._noticed]
        self._noticed.update(new)
        self._write([f"  ! {notice}" for notice in new], "yellow")

    def _write(self, lines: Iterable[str], style: str = "") -> None:
        if self._console is None:
            if text := "".join(f"{line.rstrip()}\n" for line in lines):
                self._stream.write(text)
                self._stream.flush()
            return
        from rich.text import Text

        for line in lines:
            self._console.print(Text(line, style=style), soft_wrap=True)
