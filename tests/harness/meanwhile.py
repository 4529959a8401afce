"""
`mesh` that stands still at one of its calls while a test does something: run as a module.

    python -m tests.harness.meanwhile FOLDER -- run token-rotation --mesh lab

`FOLDER/halts.json` is a list of `{"after": "PUT /v1/acl/token", "nth": 1}`;
`before` halts a call that has not left yet. At the halt number N (from 0) the
run makes the file `N.there` and goes on once there is `N.on`. Waits that the
run would give up after minutes are shortened if `FOLDER/hasty` is there.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, Any

from blocks import calls, engine
from tests.harness import inject

if TYPE_CHECKING:  # a lab imports blocks, and those Prefect, if nothing was said against it
    from tests.harness.lab import Lab, Ran

HASTY_SECONDS = 6.0
HASTY_TTL = 10  # of a session: the least that Consul takes


class Halts:
    """An observer that holds calls up until it is told to go on."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, threading.Lock()
        self._asked: list[dict[str, Any]] = json.loads((folder / "halts.json").read_text())
        self._seen = [0] * len(self._asked)

    def before(self, call: calls.Call) -> None:
        """The call is about to leave."""
        self._halt("before", call)

    def after(self, call: calls.Call) -> None:
        """It was carried out, and its answer is not used yet."""
        self._halt("after", call)

    def _halt(self, when: str, call: calls.Call) -> None:
        for number, asked in enumerate(self._asked):
            if asked.get(when, "\0") not in call.what:
                continue
            with self._lock:
                self._seen[number] += 1
                if self._seen[number] != asked.get("nth", 1):
                    continue
            (self._folder / f"{number}.there").touch()
            while not (self._folder / f"{number}.on").exists():
                time.sleep(0.02)


@dataclass
class Halted:
    """One run that stands still where it was asked to."""

    lab: Lab
    folder: Path
    process: subprocess.Popen[str]

    def wait(self, number: int = 0, deadline: float = 60.0) -> None:
        """Until it stands still there."""

        there, ends = self.folder / f"{number}.there", time.monotonic() + deadline
        while not there.exists():
            if self.process.poll() is not None and not there.exists():
                raise AssertionError(f"it ended before: {self.ended()}")
            assert time.monotonic() < ends, f"not at its halt {number} within {deadline:g} s"
            time.sleep(0.02)

    def go_on(self, number: int = 0) -> None:
        """Let it go on."""
        (self.folder / f"{number}.on").touch()

    def kill(self) -> None:
        """End it by SIGKILL, where it stands."""
        self.process.kill()
        assert self.ended().status == -SIGKILL

    def ended(self, timeout: float = 120.0) -> Ran:
        """Its end."""
        return self.lab.ended(self.process, timeout=timeout)


def start(
    lab: Lab,
    folder: Path,
    words: Sequence[str],
    *halts: dict[str, Any],
    hasty: bool = False,
    fault: str = "",
    **environ: str,
) -> Halted:
    """
    Begin `mesh WORDS` with halts at these calls.

    `fault` is `KIND:FOLDER` as of `inject`: from the first halt until the second
    is reached, which then holds nothing up, each call goes wrong once in all runs
    with that folder.
    """
    folder.mkdir(parents=True)
    (folder / "halts.json").write_text(json.dumps(halts))
    (folder / "fault").write_text(fault)
    if fault:
        (folder / "1.on").touch()
    if hasty:
        (folder / "hasty").touch()
    process = lab.start(*words, module=f"tests.harness.meanwhile {folder} --", **environ)
    return Halted(lab, folder, process)


class Later(inject.Injector):
    """Lets calls go wrong from when one file is there until another is."""

    def __init__(self, kind: inject.Kind, folder: Path, since: Path, until: Path) -> None:
        super().__init__(kind, folder)
        self._since, self._until = since, until

    def _take(self, call: calls.Call, *, locked: bool = False) -> bool:
        now = self._since.exists() and not self._until.exists()
        return now and super()._take(call, locked=locked)


def _make_hasty() -> None:
    from tasks import mesh_lock, rotation_steps, token_proof

    mesh_lock.TTL_SECONDS = HASTY_TTL
    rotation_steps.REFUSED_DEADLINE = HASTY_SECONDS
    rotation_steps.REPLICATED_DEADLINE = HASTY_SECONDS
    rotation_steps.WELL_DEADLINE = HASTY_SECONDS
    token_proof.KNOWN_DEADLINE = HASTY_SECONDS


def main(words: list[str]) -> int:
    """Run `mesh` so; its exit status."""
    folder, dashes, *arguments = words
    assert dashes == "--", "FOLDER -- ARGUMENTS of mesh"
    engine.do_without_prefect()  # before any block is imported, as `mesh run` does
    if (Path(folder) / "hasty").exists():
        _make_hasty()
    if fault := (Path(folder) / "fault").read_text():
        kind, _, kept = fault.partition(":")
        span = Path(folder) / "0.on", Path(folder) / "1.there"
        injector = Later(kind, Path(kept), *span)  # type: ignore[arg-type]
        if kind in inject.STATUSES:
            inject._answer_statuses(injector)
        calls.observe(injector)  # first: a lost answer is none for the halts
    calls.observe(Halts(Path(folder)))
    from deployments.cli import main as mesh

    return mesh(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
