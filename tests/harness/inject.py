"""
`mesh` with something going wrong at its remote calls: run as a module.

    python -m tests.harness.inject KIND:FOLDER -- run cold-boot --mesh lab

Every call passes `blocks.calls`, so an observer there can let one go wrong
without a hook in the product. What a call is, its identity, is the server and
what is asked of it, with whatever is new in every run (ids, times) taken out.
`FOLDER` is kept over several runs: an identity that went wrong there does not
again. A crash is the exception: what an uninterrupted run does several times
(`limits.json`) is crashed at as often, and at each place in a run's sequence.

| kind | what happens at a call |
|---|---|
| `trace` | nothing; the calls are written down, as with every other kind |
| `crash` | SIGKILL of this process after a mutating call was carried out |
| `lost` | it is carried out, and the answer does not arrive |
| `hang` | it does not leave, and its deadline passes (in a moment instead) |
| `reset` | it does not leave: the connection is reset |
| `truncated` | it is carried out, and half of the answer arrives |
| `500`, `503`, `429` | it is not carried out; the server answers this status |

Statuses are given to the client as answers, so that the product's own reading
of them is what is tried; SSH has none and is left alone by those kinds.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from blocks import calls, engine, files, http
from blocks.errors import BadAnswer, Unreachable

Kind = Literal["trace", "crash", "lost", "hang", "reset", "truncated", "500", "503", "429"]
STATUSES = ("500", "503", "429")
HANG_SECONDS = 0.3  # a deadline that passes; how long it is changes nothing but the run's length

FILES = "file"  # stands for a server where a store is a file of this machine

TRACE, DONE, LIMITS = "trace.jsonl", "done.jsonl", "limits.json"

_PARTS: tuple[tuple[str, str], ...] = (
    (r"UPID:\S+?(?=/|$)", "<upid>"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<uuid>"),
    (r"\d{8}T\d{6}Z?", "<time>"),
    (r"mesh-runbooks-probe-[0-9a-f]+", "mesh-runbooks-probe-<n>"),
    (r"\bi-[0-9a-f]{8,}", "<instance>"),
    (r"\b127\.\d+\.", "<net>."),
)


class Identity(NamedTuple):
    """A call, whatever run it is made in."""

    server: str
    what: str

    def __str__(self) -> str:
        return f"{self.server}: {self.what}"


def identity(call: calls.Call) -> Identity:
    """What stays the same of a call from run to run."""
    server, what = call.server, call.what
    for pattern, name in _PARTS:
        server, what = re.sub(pattern, name, server), re.sub(pattern, name, what)
    return Identity(server, what)


@dataclass(frozen=True)
class Entry:
    """One line of a trace."""

    identity: Identity
    mutates: bool
    event: Literal["sent", "answered", "injected"]
    pid: int
    place: int = 0  # the how manieth of its identity in its run, of those injected


def read(file: Path) -> list[Entry]:
    """The lines of a trace; the last may be half, its writer was killed."""
    entries = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            server, what, *rest = json.loads(line)
        except ValueError:
            continue
        entries.append(Entry(Identity(server, what), *rest))
    return entries


def answered(entries: list[Entry], *, mutating: bool = False) -> Counter[Identity]:
    """How often each call was carried out, of those that change something or of all."""
    return Counter(
        e.identity for e in entries if e.event == "answered" and (e.mutates or not mutating)
    )


def carried_out(entries: list[Entry], kind: Kind) -> Counter[Identity]:
    """How often a server did what it was asked; a status that was injected is none of its own."""
    done = answered(entries)
    if kind in STATUSES:
        done -= Counter(e.identity for e in entries if e.event == "injected")
    return done


class Injector:
    """An observer that lets each call go wrong once, in its own way."""

    def __init__(self, kind: Kind, folder: Path) -> None:
        self.kind = kind
        self._lock = threading.Lock()
        done = read(folder / DONE)
        self._done = Counter(e.identity for e in done)
        self._places = {(e.identity, e.place) for e in done}
        self._here: Counter[Identity] = Counter()
        limits = folder / LIMITS
        found: list[list[Any]] = json.loads(limits.read_text()) if limits.exists() else []
        self._limits = {Identity(server, what): int(times) for server, what, times in found}
        folder.mkdir(parents=True, exist_ok=True)
        # One write a line: lines of several threads do not mix, and a kill loses none.
        self._trace, self._record = (
            os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for name in (TRACE, DONE)
        )

    def before(self, call: calls.Call) -> None:
        """The call is about to leave."""
        self._note(call, "sent")
        if self.kind == "hang" and self._take(call):
            time.sleep(HANG_SECONDS)
            raise Unreachable(f"{call.what}: no answer within 10 s (injected)", where=call.server)
        if self.kind == "reset" and self._take(call):
            raise Unreachable(f"{call.what}: connection reset (injected)", where=call.server)

    def after(self, call: calls.Call) -> None:
        """It was carried out, and its answer is not used yet."""
        self._note(call, "answered")
        if self.kind == "crash" and call.mutates:
            with self._lock:  # two that crash at once would both count as tried
                if self._take(call, locked=True):
                    os.kill(os.getpid(), signal.SIGKILL)
        elif self.kind == "lost" and self._take(call):
            raise Unreachable(f"{call.what}: the answer was lost (injected)", where=call.server)
        elif self.kind == "truncated" and self._take(call):
            raise BadAnswer(f"{call.what}: the answer was cut short (injected)", where=call.server)

    def status(self, call: calls.Call) -> http.Answer | None:
        """What the server says instead of carrying it out; None if it does as asked."""
        if self.kind not in STATUSES or not self._take(call):
            return None
        status = int(self.kind)
        return http.Answer(
            status, b'{"errors":["injected"]}', {}, "injected", call.what, call.server
        )

    def _take(self, call: calls.Call, *, locked: bool = False) -> bool:
        if not locked:
            with self._lock:
                return self._take(call, locked=True)
        this = identity(call)
        if this.server == FILES and self.kind != "crash":
            return False  # a disk of this machine does not time out
        self._here[this] += 1
        limit, place = self._limits.get(this, 1), self._here[this]
        tried = place > limit or (this, place) in self._places or self.kind != "crash"
        if self._done[this] >= limit and tried:
            return False
        self._done[this] += 1
        self._note(call, "injected", self._record, place)
        self._note(call, "injected")
        return True

    def _note(self, call: calls.Call, event: str, to: int | None = None, place: int = 0) -> None:
        line = [*identity(call), call.mutates, event, os.getpid(), place]
        os.write(self._trace if to is None else to, f"{json.dumps(line)}\n".encode())


def _announce_files() -> None:
    """
    Make the stores that are files calls like all others.

    They are on this machine, so the product does not announce them; but a kill
    between two of them is what the order of their writing is for.
    """
    from blocks import keys

    write = files.write_secret

    def announced(path: Path, data: bytes) -> None:
        with calls.call(FILES, f"write {path.name}", mutates=True):
            write(path, data)

    setattr(keys, "write_secret", announced)  # noqa: B010 - a name of that module's own


def _one_at_a_time() -> None:
    """
    Let mutating calls leave one after the other.

    Of several under way at once all would be carried out when the first is
    crashed at, and the states between them never be seen.
    """
    turn, announce = threading.RLock(), calls.call

    @contextmanager
    def queued(server: str, what: str, *, mutates: bool) -> Iterator[None]:
        with turn if mutates else nullcontext(), announce(server, what, mutates=mutates):
            yield

    calls.call = queued


def _answer_statuses(injector: Injector) -> None:
    exchange = http.Api.exchange

    def wrapped(self: http.Api, verb: str, url: str, **options: Any) -> http.Answer:
        call = calls.Call(self.server, options["what"], options["mutates"])
        if (answer := injector.status(call)) is not None:
            with calls.call(self.server, call.what, mutates=call.mutates):
                return answer
        return exchange(self, verb, url, **options)

    http.Api.exchange = wrapped  # type: ignore[method-assign]


def main(words: list[str]) -> int:
    """Run `mesh` so; its exit status."""
    spec, dashes, *arguments = words
    kind, _, folder = spec.partition(":")
    assert dashes == "--", "KIND:FOLDER -- ARGUMENTS of mesh"
    engine.do_without_prefect()  # before any block is imported, as `mesh run` does
    injector = Injector(kind, Path(folder))  # type: ignore[arg-type]
    _announce_files()
    if kind == "crash":
        _one_at_a_time()
    if kind in STATUSES:
        _answer_statuses(injector)
    calls.observe(injector)
    from deployments.cli import main as mesh

    return mesh(arguments)


def limits(folder: Path, wanted: Counter[Identity]) -> None:
    """Say how often each call is to go wrong; once, where nothing is said."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [[*this, times] for this, times in sorted(wanted.items())]
    (folder / LIMITS).write_text(json.dumps(rows))


def hit(folder: Path) -> Counter[Identity]:
    """How often each call went wrong so far."""
    return Counter(e.identity for e in read(folder / DONE))


def table(counted: Counter[Identity]) -> str:
    """Calls and how often, a line each."""
    return "\n".join(f"{times:4} {this}" for this, times in sorted(counted.items()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
