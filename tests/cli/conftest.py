from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.runbook.acme import write_topology

MODULE = [sys.executable, "-m", "tests.cli.mesh"]


@dataclass
class Ran:
    """What a `mesh` that has ended said."""

    status: int
    out: str
    err: str


@dataclass
class Command:
    """`mesh` in processes of its own, in a directory and with a home of its own."""

    directory: Path
    environ: dict[str, str]

    @property
    def journal(self) -> Path:
        return self.directory / "state" / "journal.jsonl"

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*MODULE, *arguments],
            cwd=self.directory,
            env=self.environ,
            text=True,
            stdin=subprocess.DEVNULL,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )

    def __call__(self, *arguments: str, **environ: str) -> Ran:
        process = subprocess.run(
            [*MODULE, *arguments],
            cwd=self.directory,
            env={**self.environ, **environ},
            text=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )
        return Ran(process.returncode, process.stdout, process.stderr)


@pytest.fixture
def mesh(tmp_path: Path) -> Command:
    """The command, with `acme.yaml` in its working directory and nothing of this machine's own."""
    write_topology(tmp_path / "acme.yaml")
    environ = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "HOME": str(tmp_path / "home"),
        "MESH_STATE_DIR": str(tmp_path / "state"),
    }
    return Command(tmp_path, environ)


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any], str], Any]:
    """Wait for something to become true, up to a deadline."""
    import time

    def wait(probe: Callable[[], Any], what: str, deadline: float = 30.0) -> Any:
        until = time.monotonic() + deadline
        while time.monotonic() < until:
            if found := probe():
                return found
            time.sleep(0.02)
        raise AssertionError(f"{what}: not within {deadline} s")

    return wait
