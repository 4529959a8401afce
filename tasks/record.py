"""
What a run has done, seen and waits for: one recorder, found by the context.

Steps report to `current()`; the terminal display, the timeline and the report
read it. Without a run (a unit test, a shell) the reports go nowhere.
Nothing given to a recorder ever holds a secret.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

StageState = Literal["running", "done", "failed", "skipped"]


@dataclass(frozen=True)
class Event:
    """One thing that happened, in seconds since the run began."""

    at: float
    kind: Literal["seen", "change", "check", "waiting", "arrived", "stage"]
    subject: str  # host, cluster or stage
    text: str
    stage: str = ""
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One thing a run changed; `before` and `after` are without secrets."""

    target: str
    did: str  # "nothing" is the commonest good result
    before: str = ""
    after: str = ""
    seconds: float = 0.0
    times: int = 1  # of many alike that are told as one


@dataclass(frozen=True)
class Check:
    """One thing a run proved, or failed to prove."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class ItemRow:
    """What became of one of many: a row in a table of its own, never in the journal."""

    item: str
    outcome: str  # "done", "failed at prove", "not begun"
    why: str = ""
    age_seconds: int | None = None
    before: str = ""
    after: str = ""
    seconds: float = 0.0
    error: str = ""


class Recorder:
    """Collects the events of one run; safe to use from many threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.RLock()
        self.began = clock()
        self.events: list[Event] = []
        self.changes: list[Change] = []
        self.checks: list[Check] = []
        self.items: Callable[[], Iterable[ItemRow]] = tuple  # asked when the run is over
        self.opened = False  # whether the state at the beginning was recorded
        self._listeners: list[Callable[[Event], None]] = []

    def listen(self, listener: Callable[[Event], None]) -> None:
        """Call `listener` with each event from now on (the terminal display)."""
        with self._lock:
            self._listeners.append(listener)

    def _add(self, kind: Any, subject: str, text: str, stage: str = "", **data: Any) -> None:
        stage = stage or _stage.get()
        event = Event(self._clock() - self.began, kind, subject, text, stage, data)
        with self._lock:
            self.events.append(event)
            listeners = list(self._listeners)
        for listener in listeners:
            listener(event)

    def stage(
        self,
        name: str,
        state: StageState,
        text: str = "",
        *,
        done: int = 0,
        of: int = 0,
        pace: str = "",
        part: bool = False,
    ) -> None:
        """
        A stage began, moved on or ended: `done` of `of`, and at which pace.

        `part`: it is one of many alike, of interest while it lasts.
        """
        self._add("stage", name, text, name, state=state, done=done, of=of, pace=pace, part=part)

    def seen(self, subject: str, text: str) -> None:
        """A host or cluster was seen to have reached a state ("up", "unsealed", "leader")."""
        self._add("seen", subject, text)

    def waiting(self, subject: str, text: str, *, stage: str = "", deadline: float = 0.0) -> None:
        """The run waits for something; `deadline` is the seconds left."""
        self._add("waiting", subject, text, stage, deadline=deadline)

    def arrived(self, subject: str, text: str) -> None:
        """What was waited for has come."""
        self._add("arrived", subject, text)

    def change(
        self,
        target: str,
        did: str,
        *,
        before: str = "",
        after: str = "",
        seconds: float = 0.0,
        times: int = 1,
    ) -> Change:
        """Something was changed on a server (or found to need no change)."""
        change = Change(target, did, before, after, seconds, times)
        if did != "nothing":
            with self._lock:
                self.changes.append(change)
            self._add("change", target, did, seconds=seconds)
        return change

    def changed_one(
        self, target: str, did: str, of: str, *, before: str = "", after: str = ""
    ) -> None:
        """One of many alike was changed; `did` has a place for which: `token of {} created`."""
        if (many := _sum.get()) is None:
            self.change(target, did.format(of), before=before, after=after)
        else:
            many.add(target, did, of)

    @contextmanager
    def summed(self, whole: bool = True) -> Iterator[None]:
        """
        Tell the changes inside as one for each kind, however the inside ends.

        Ten thousand tokens would else be sixty thousand lines in a log and one of
        ten megabytes in the journal. Whoever sums keeps a list of its own.
        """
        if not whole:
            yield
            return
        many = _Sum()
        token = _sum.set(many)
        try:
            yield
        finally:
            _sum.reset(token)
            for (target, did), (count, first) in many.alike.items():
                about = ", ".join(first) + (
                    f" and {count - len(first):,} more" * (count > len(first))
                )
                roles = "1 role" if count == 1 else f"{count:,} roles"
                self.change(target, did.format(roles), after=about, times=count)

    def check(self, name: str, ok: bool, detail: str = "") -> Check:
        """Something was proved, or not."""
        check = Check(name, ok, detail)
        with self._lock:
            self.checks.append(check)
        self._add("check", name, detail, ok=ok)
        return check


class _Sum:
    """Changes that are alike, counted; of each kind the first are named."""

    NAMED = 3

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.alike: dict[tuple[str, str], tuple[int, tuple[str, ...]]] = {}

    def add(self, target: str, did: str, of: str) -> None:
        with self._lock:
            count, first = self.alike.get((target, did), (0, ()))
            self.alike[target, did] = (count + 1, first if count >= self.NAMED else (*first, of))


_sum: ContextVar[_Sum | None] = ContextVar("sum", default=None)
_stage: ContextVar[str] = ContextVar("stage", default="")
_current: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


def current() -> Recorder:
    """The recorder of the run this thread works for."""
    return _current.get() or Recorder()


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Make `recorder` the current one; threads inherit it by copying the context."""
    token = _current.set(recorder)
    try:
        yield recorder
    finally:
        _current.reset(token)


@contextmanager
def in_stage(name: str) -> Iterator[None]:
    """Make `name` the stage of all that is reported inside without one."""
    token = _stage.set(name)
    try:
        yield
    finally:
        _stage.reset(token)
