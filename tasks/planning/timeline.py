"""
What was up when: the events of a run as a bar for each host, and in a terminal.

A host's states come from `record.seen(host, state)`: `off`, `powered`, `ssh`,
`vault listening`, `unsealed`, `active`, `standby`, `consul up`, `leader`,
`gateway up`, `serving` (or `NAME serving`); and, right after the survey, those
of `opening`, so that a host that served all along is not drawn as one that came.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from blocks.topology import Mesh
from tasks.planning.survey import Survey
from tasks.record import Event

Phase = Literal["off", "booting", "up", "serving"]

# In the order in which a host goes through them; `up` lets us in, and does not serve yet.
PHASES: tuple[Phase, ...] = ("off", "booting", "up", "serving")
MEANING: dict[Phase, str] = {
    "off": "off",
    "booting": "booting",
    "up": "up, not serving",
    "serving": "serving",
}
# A terminal's shades are hard to tell apart, so what is on the way up has one.
GLYPHS: dict[Phase, str] = {"off": "░", "booting": "▒", "up": "▒", "serving": "█"}
ASCII: dict[Phase, str] = {"off": ".", "booting": "-", "up": "-", "serving": "#"}
LEGEND: dict[Phase, str] = {"off": "off", "booting": "coming up", "serving": "serving"}

_STATES: dict[str, Phase] = {
    "off": "off",
    "powered": "booting",
    "ssh": "up",
    "vault listening": "up",
    "unsealed": "serving",
    "active": "serving",
    "standby": "serving",
    "consul up": "serving",
    "leader": "serving",
    "gateway up": "serving",
    "serving": "serving",
    "already serving": "serving",
}
# What only a host's last role serves with; an agent below it is then on the way.
_LAST = ("gateway up", "serving")
_LEADS = ("leader", "active")


@dataclass(frozen=True)
class Segment:
    """A stretch of one phase, in seconds since the run began."""

    start: float
    end: float
    phase: Phase


@dataclass(frozen=True)
class Bar:
    """One host's way up."""

    subject: str
    segments: tuple[Segment, ...]
    reached: tuple[tuple[float, str], ...]  # states since it was off last, each when first seen
    leads_at: float | None = None

    @property
    def served_at(self) -> float | None:
        """When it last came to serve; None if it does not."""
        last = self.segments[-1]
        return last.start if last.phase == "serving" else None

    @property
    def note(self) -> str:
        """`up at 4.2 s, unsealed at 7.9 s`."""
        words = [f"up at {at:.1f} s" for at, state in self.reached if state == "ssh"][:1]
        serving = [(at, state) for at, state in self.reached if phase_of(state) == "serving"]
        if self.served_at is None:
            now = {"off": "off", "booting": "does not let us in", "up": "does not serve"}
            return ", ".join([*words, now[self.segments[-1].phase]])
        told = [(at, state) for at, state in serving if at >= self.served_at] or serving
        at, state = told[0]
        return ", ".join([*words, f"{_told(state)} at {at:.1f} s"])


def phase_of(state: str) -> Phase | None:
    """The phase that a state stands for; None if it is none of a host's."""
    return _STATES.get(state) or ("serving" if state.endswith(" serving") else None)


def opening(mesh: Mesh, survey: Survey) -> dict[str, str]:
    """The states to record when a run begins: hosts that are off, and those that serve already."""
    served: dict[str, list[bool]] = {host.name: [] for _, host in mesh.hosts()}
    for name in mesh.vault.nodes:
        served[name].append(survey.node(name).unsealed)
    for dc in mesh.datacenters:
        seen = survey.datacenter(dc.name)
        for name in dc.consul.servers:
            served[name].append(seen.state == "serving" and name in seen.up)
        for gateway in dc.gateways:
            served[gateway.host].append(bool(seen.gateways.get(gateway.host)))
    for service in mesh.services:
        served[service.host].append(survey.service(service.name, service.host) == "answering")
    found = {}
    for host, roles in served.items():
        if survey.host(host).power in {"off", "changing"}:
            found[host] = "off"
        elif roles and all(roles):
            found[host] = "already serving"
    return found


def bars(events: Iterable[Event], *, end: float | None = None) -> list[Bar]:
    """
    A bar for each host that changed during a run, in the order they came to serve.

    `end` is the run's length in seconds; without it, the last event's time.
    """
    seen: dict[str, list[tuple[float, str]]] = {}
    last = 0.0
    for event in events:
        last = max(last, event.at)
        if event.kind == "seen" and event.subject and phase_of(event.text):
            seen.setdefault(event.subject, []).append((event.at, event.text))
    until = max(end or 0.0, last)
    found = [
        _bar(subject, sorted(states, key=lambda s: s[0]), until) for subject, states in seen.items()
    ]
    # Who served all along is no news.
    return _in_order([b for b in found if len(b.segments) > 1 or b.served_at is None])


def _bar(subject: str, states: Sequence[tuple[float, str]], until: float) -> Bar:
    texts = [text for _, text in states]
    has_role = any(text.endswith(_LAST) for text in texts)
    first = phase_of(texts[0])
    phase: Phase = "off" if first in {"off", "booting"} else "up"
    if texts[0] == "already serving":
        phase = "serving"
    start = 0.0
    segments: list[Segment] = []
    reached: dict[str, float] = {}
    for at, text in states:
        new = phase_of(text)
        assert new is not None
        if new == "off":
            reached.clear()  # what it had reached is gone
        reached.setdefault(text, at)
        if has_role and new == "serving" and not text.endswith(_LAST):
            new = "up"
        # A host is seen to let us in after its servers were seen: no step back, but off.
        if new == phase or (new != "off" and PHASES.index(new) < PHASES.index(phase)):
            continue
        if at > start:
            segments.append(Segment(start, at, phase))
        phase, start = new, at
    if until > start or not segments:
        segments.append(Segment(start, until, phase))
    leads = next((at for text, at in reached.items() if text in _LEADS), None)
    return Bar(subject, tuple(segments), tuple((at, text) for text, at in reached.items()), leads)


def natural(name: str) -> list[tuple[int, str]]:
    """A sort key under which `host-9` stands before `host-10`."""
    return [
        (int(part), "") if part.isdigit() else (-1, part)
        for part in re.split(r"(\d+)", name)
        if part
    ]


def _in_order(found: Sequence[Bar]) -> list[Bar]:
    """Hosts named alike together, whoever served first on top; the rest by name."""
    never = float("inf")
    first: dict[str, float] = {}
    for bar in found:
        served = never if bar.served_at is None else bar.served_at
        first[_role(bar)] = min(first.get(_role(bar), never), served)
    return sorted(found, key=lambda b: (first[_role(b)], _role(b), natural(b.subject)))


def _role(bar: Bar) -> str:
    return bar.subject.rstrip("0123456789")


def _told(state: str) -> str:
    words = {
        "consul up": "consul up",
        "leader": "leads",
        "standby": "unsealed",
        "serving": "answers",
    }
    return words.get(state, state)


def terminal(
    rows: Sequence[Bar], *, width: int = 80, limit: int = 40, glyphs: Mapping[Phase, str] = GLYPHS
) -> list[str]:
    """
    A line for each host, at most `limit`: of more, those that served last are shown.

    `width` is that of the terminal; below 60 columns the notes are left out.
    """
    if not rows:
        return []
    until = max(bar.segments[-1].end for bar in rows)
    late = sorted(rows, key=lambda b: b.served_at if b.served_at is not None else until + 1)[
        -limit:
    ]
    shown = [bar for bar in rows if bar in late]
    label = min(max(len(bar.subject) for bar in shown), 24)
    notes = [bar.note for bar in shown] if width >= 60 else [""] * len(shown)
    room = width - label - max(len(note) for note in notes) - 7
    if room < 12:
        notes, room = [""] * len(shown), max(width - label - 6, 8)
    lines = []
    if len(rows) > limit:
        lines.append(f"  {len(rows) - limit} hosts were up before these")
    for bar, note in zip(shown, notes, strict=True):
        name = bar.subject if len(bar.subject) <= label else bar.subject[: label - 1] + "…"
        lines.append(f"  {name:<{label}} ▕{_drawn(bar, until, room, glyphs)}▏ {note}".rstrip())
    legend = "  ".join(f"{glyphs[phase]} {text}" for phase, text in LEGEND.items())
    lines.append(f"  {'':<{label}}  0{f'{until:.1f} s':>{room - 1}}  {legend}".rstrip())
    return lines


def _drawn(bar: Bar, until: float, room: int, glyphs: Mapping[Phase, str]) -> str:
    cells = []
    for cell in range(room):
        middle = (cell + 0.5) * until / room
        phase = next((s.phase for s in bar.segments if s.start <= middle < s.end), None)
        cells.append(glyphs[phase or bar.segments[-1].phase])
    return "".join(cells)
