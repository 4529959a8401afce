"""
Waiting is not retrying.

A retry repeats a call that failed; waiting asks again until the world has
become what it is becoming. Transient errors while waiting are part of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from blocks.errors import NotConverged, Transient
from tasks import record, stopping

T = TypeVar("T")


def wait_until(
    probe: Callable[[], T | None],
    what: str,
    *,
    deadline: float,
    where: str = "",
    stage: str = "",
    every: float = 0.1,
    remedy: str = "",
) -> T:
    """
    Ask `probe` until it answers something true, and return that.

    `deadline` and `every` are seconds. What is waited for, and since when, is
    shown while it lasts.

    Raises:
        NotConverged: the deadline passed; the message holds the last thing seen.
        Stopped: the run is to stop.
    """
    started = time.monotonic()
    last: Transient | None = None
    told = False
    while True:
        try:
            if answer := probe():
                if told:
                    record.current().arrived(where, what)
                return answer
            last = None
        except Transient as error:
            last = error
        waited = time.monotonic() - started
        if waited > deadline:
            seen = f" (last: {last})" if last else ""
            raise NotConverged(
                f"{what}: not within {deadline:g} s{seen}", where=where, remedy=remedy
            )
        if not told and waited > 0.5:
            record.current().waiting(where, what, stage=stage, deadline=deadline - waited)
            told = True
        stopping.pause(every)
