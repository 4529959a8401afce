"""What a run is at, as lines: stages, what they wait for and since when. No terminal here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tasks.record import Event

SIGNS = {"running": "…", "done": "✓", "failed": "✗", "skipped": "-"}
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


@dataclass
class Wait:
    """One thing waited for; times are seconds since the run began."""

    subject: str
    text: str
    since: float
    until: float  # when it gives up; 0 if it does not say

    def told(self, now: float) -> str:
        """`us-consul-2: a leader (6 s, gives up in 114 s)`."""
        about = f"{self.subject}: {self.text}" if self.subject else self.text
        left = f", gives up in {max(self.until - now, 0):.0f} s" if self.until else ""
        return f"{about} ({now - self.since:.0f} s{left})"


@dataclass
class StageLine:
    """One stage as it stands."""

    name: str
    began: float
    state: str = "running"
    done: int = 0
    of: int = 0
    text: str = ""
    pace: str = ""  # "48 a second, 12 s left"
    part: bool = False  # one of many alike, shown while it lasts
    ended: float = 0.0
    waits: dict[tuple[str, str], Wait] = field(default_factory=dict)

    def line(self, now: float, sign: str = "") -> str:
        """The stage on one line."""
        count = f"{self.done:,} of {self.of:,}" if self.of else ""
        head = f"  {sign or SIGNS[self.state]} {self.name:<12} "
        if self.pace and not self.waits:
            return f"{head}{count:<14} {self.pace:<24} {self.text}".rstrip()
        if self.state != "running":
            seconds = f"{self.ended - self.began:.1f} s" if self.state != "skipped" else ""
            return f"{head}{count:<9} {seconds:>7}   {self.text}".rstrip()
        if not self.waits:
            lasts = now - self.began
            what = f"{self.text} ({lasts:.0f} s)".lstrip() if lasts >= 1 else self.text
        else:
            first = min(self.waits.values(), key=lambda wait: wait.since)
            more = f", and {len(self.waits) - 1} more" if len(self.waits) > 1 else ""
            what = f"waits for {first.told(now)}{more}"
        return f"{head}{count:<9} {what}".rstrip()


class Progress:
    """All stages of one run, kept by its events."""

    def __init__(self) -> None:
        self.stages: dict[str, StageLine] = {}

    def take(self, event: Event) -> StageLine | None:
        """Follow one event; gives the stage it moved, if it moved one."""
        if event.kind == "stage":
            return self._stage(event)
        stage = self.stages.get(event.stage) or self._latest()
        if stage is None:
            return None
        if event.kind == "waiting":
            left = float(event.data.get("deadline", 0.0))
            wait = Wait(event.subject, event.text, event.at, event.at + left if left else 0.0)
            stage.waits[event.subject, event.text] = wait
            return stage
        if event.kind == "arrived":
            # Whichever stage it was waited for in.
            for other in self.stages.values():
                if other.waits.pop((event.subject, event.text), None):
                    return other
        return None

    def _stage(self, event: Event) -> StageLine:
        stage = self.stages.get(event.subject)
        if stage is None or (stage.state != "running" and event.data["state"] == "running"):
            stage = self.stages[event.subject] = StageLine(event.subject, event.at)
        stage.state = event.data["state"]
        stage.done, stage.of = event.data["done"], event.data["of"] or stage.of
        stage.text = event.text or stage.text
        stage.pace, stage.part = event.data.get("pace", ""), event.data.get("part", False)
        if stage.state != "running":
            stage.ended = event.at
            if stage.state == "failed" and stage.waits and not stage.text:
                first = min(stage.waits.values(), key=lambda wait: wait.since)
                stage.text = f"waited for {first.subject}: {first.text}"
            stage.waits.clear()
        return stage

    def _latest(self) -> StageLine | None:
        running = [stage for stage in self.stages.values() if stage.state == "running"]
        return running[-1] if running else None

    def lines(self, now: float) -> Iterator[str]:
        """Every stage, running ones with a sign that turns."""
        turn = SPINNER[int(now * 8) % len(SPINNER)]
        for stage in list(self.stages.values()):
            if stage.part and stage.state == "done":
                continue
            yield stage.line(now, turn if stage.state == "running" else "")
