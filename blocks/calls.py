"""
The one place every remote call passes.

A client announces each call here before it is sent and again when its answer
has been read. That makes three things true in one place: a run knows how many
calls it made that change something, a healthy mesh can be shown to have been
left alone, and a fault or a kill can be injected at any call by a test.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Call:
    """One request to one server. `what` never holds a secret."""

    server: str  # "vault vault-1", "consul us-east-1", "ssh us-app-1", "ec2 us-east-1", "proxmox eu-west-1"
    what: str  # "PUT /v1/sys/unseal", "systemctl start consul", "StartInstances vault-1"
    mutates: bool


class Observer(Protocol):
    """Told of every call; may raise to stand for a network that fails."""

    def before(self, call: Call) -> None:
        """Runs before the request leaves."""

    def after(self, call: Call) -> None:
        """Runs after the server has carried it out, before the answer is used."""


class Ledger:
    """Counts what this process did to the world; `keep`: and keeps each call that changed it."""

    def __init__(self, *, keep: bool = True) -> None:
        self._lock = threading.Lock()
        self._keep = keep
        self.calls = 0
        self.mutations = 0
        self.mutating: list[Call] = []

    def before(self, call: Call) -> None:
        """Count a call as made, whether or not its answer arrives."""
        with self._lock:
            self.calls += 1
            if call.mutates:
                self.mutations += 1
                if self._keep:
                    self.mutating.append(call)

    def after(self, call: Call) -> None:
        """Nothing to add: a call counts from the moment it may have left."""


_observers: list[Observer] = []
_probing: ContextVar[bool] = ContextVar("probing", default=False)


def observe(observer: Observer) -> None:
    """Add an observer for the rest of the process."""
    _observers.append(observer)


def forget(observer: Observer) -> None:
    """Take an observer away again."""
    _observers.remove(observer)


@contextmanager
def probing() -> Iterator[None]:
    """Calls made inside are a look: what they write for it they take back at once."""
    token = _probing.set(True)
    try:
        yield
    finally:
        _probing.reset(token)


@contextmanager
def call(server: str, what: str, *, mutates: bool) -> Iterator[None]:
    """
    Wrap the sending of one request and the reading of its answer.

    Client libraries' own errors must already be translated to `MeshError`
    inside the block.
    """
    this = Call(server, what, mutates and not _probing.get())
    for observer in list(_observers):
        observer.before(this)
    yield
    for observer in list(_observers):
        observer.after(this)
