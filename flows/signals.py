"""Signals that end a process, heeded where a run may stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from tasks.record import Recorder
from tasks.stopping import Stop


@contextmanager
def stop_on_signals(stop: Stop, recorder: Recorder) -> Iterator[Callable[[], None]]:
    """
    Let SIGINT, SIGTERM and SIGHUP stop the run at its next step boundary.

    A second signal meets the handlers that were there before. Gives a function
    that hands a SIGTERM on to whoever was there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        came.append(number)
        name = signal.Signals(number).name
        stop.request(name)
        restore()
        # Not from here: a signal may come while this thread is inside the display.
        line = f"{name}: stopping at the next step boundary; once more cuts off what runs"
        threading.Thread(target=recorder.seen, args=("", line), daemon=True).start()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:  # nohup, or a shell's background job: they meant it
            signal.signal(number, handle)

    def restore() -> None:
        for number, handler in before.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, handler)

    def hand_on() -> None:
        if came and came[0] == signal.SIGTERM and callable(handler := before[signal.SIGTERM]):
            handler(came[0], None)

    try:
        yield hand_on
    finally:
        restore()
