"""
Stopping a run at its next step boundary.

A signal sets a flag; steps, stages and waits look at it before they begin
something new. What has begun is finished, so nothing is left half-done that a
server would not have left half-done by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from blocks.errors import MeshError


class Stopped(MeshError):
    """The operator, or the machine's shutdown, asked the run to stop."""


class Stop:
    """The flag of one run, and who set it."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.why = ""

    def request(self, why: str) -> None:
        """Ask the run to stop; `why` is what the report says ("SIGTERM")."""
        self.why = self.why or why
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()

    def pause(self, seconds: float) -> None:
        """Sleep, no longer than until somebody asks."""
        self._event.wait(seconds)


_current: ContextVar[Stop | None] = ContextVar("stop", default=None)


@contextmanager
def stoppable(stop: Stop) -> Iterator[Stop]:
    """Make `stop` the flag of what runs inside; threads inherit it by copying the context."""
    token = _current.set(stop)
    try:
        yield stop
    finally:
        _current.reset(token)


def current() -> Stop | None:
    """The flag of the run that this is part of, for a thread that watches over it."""
    return _current.get()


@contextmanager
def shielded() -> Iterator[None]:
    """
    Let what is inside run to its end although the run is to stop.

    For what puts back or cleans up: it must not be what a stop leaves out.
    """
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


def check() -> None:
    """
    A point where a run may stop.

    Raises:
        Stopped: somebody asked it to.
    """
    if (stop := _current.get()) is not None and stop.requested:
        raise Stopped(f"stopped by {stop.why}")


def pause(seconds: float) -> None:
    """
    Sleep for so many seconds, or until the run is to stop.

    Raises:
        Stopped: somebody asked it to.
    """
    if (stop := _current.get()) is None:
        time.sleep(seconds)
        return
    stop.pause(seconds)
    check()
