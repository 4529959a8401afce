"""A lab in a directory of its own, driven as an operator drives it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NETWORK = "127.86"
LONGEST = 900.0


@dataclass(frozen=True)
class Ran:
    """One runbook to its end: the whole command's seconds, and what its report says."""

    wall: float
    report: dict[str, Any]

    @property
    def megabytes(self) -> float:
        """Peak memory of the flow's process."""
        return float(self.report["measures"]["peak_rss_mb"])


class Lab:
    """One lab; its machines boot at once, for a simulated wait is nobody's time."""

    def __init__(self, directory: Path, size: str, **environ: str) -> None:
        self.size, self.directory = size, directory
        # As installed: with modules compiled once, on both sides of a pair.
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self.environ = kept | {
            "MESH_LAB_DIR": str(directory),
            "MESH_LAB_NETWORK": NETWORK,
            "MESH_LAB_BOOT_SECONDS": "0",
            **environ,
        }

    def python(self, *arguments: str, module: str = "deployments.cli") -> str:
        """Run a module to its end; its output."""
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
        if done.returncode:
            told = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            raise SystemExit(f"{module} {' '.join(arguments)}: {told}")
        return done.stdout

    def mesh(self, *arguments: str) -> str:
        """Run a `mesh` command to its end; its output."""
        return self.python(*arguments)

    def run(self, runbook: str, *options: str, mesh: str = "lab", engine: str = "none") -> Ran:
        """One runbook to a good end."""
        began = time.monotonic()
        out = self.mesh("run", runbook, "--mesh", mesh, "--json", "--engine", engine, *options)
        return Ran(time.monotonic() - began, json.loads(out.splitlines()[-1]))

    def boot(self, *options: str) -> Ran:
        """One verified cold boot."""
        return self.run("cold-boot", *options)

    def restart(self, *options: str) -> Ran:
        """Everything dark at once, then one cold boot."""
        self.mesh("lab", "power-cut")
        return self.boot(*options)
