"""
The figures of the README, as ratios measured in one run on one machine.

    python -m benchmarks [--runs N]

Whole commands are timed, the start of Python included, from the dark to the end
of the runbook's process and to the last proof of the bare script. The lab's machines
boot without the simulated wait of 0.3 s that they have otherwise: the bare script has no
machines. A pair is measured in turn, A B A B, so that a machine whose speed drifts slows both; the median of
the pairs' ratios is what counts. Results go to benchmarks/results/*.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import bare_boot, planning

RESULTS = Path(__file__).parent / "results"
NETWORK, BARE_NETWORK = "127.86", "127.87"
LONGEST = 600.0
MOST_RATIO = 1.25
MOST_MEGABYTES = 250
MOST_PLAN_SECONDS = 1.0


@dataclass(frozen=True)
class Boot:
    """One cold boot from the dark: whole command, and what its report says."""

    wall: float
    report: dict[str, Any]

    @property
    def megabytes(self) -> float:
        """Peak memory of the flow's process."""
        return float(self.report["measures"]["peak_rss_mb"])


class Lab:
    """A lab in a directory of its own, driven as an operator drives it."""

    def __init__(self, directory: Path, size: str) -> None:
        self.size = size
        self.environ = os.environ | {
            "MESH_LAB_DIR": str(directory),
            "MESH_LAB_NETWORK": NETWORK,
            "MESH_LAB_BOOT_SECONDS": "0",  # a simulated wait is nobody's time
        }

    def mesh(self, *arguments: str) -> str:
        """Run a `mesh` command to its end; its output."""
        done = subprocess.run(
            [sys.executable, "-m", "deployments.cli", *arguments],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=LONGEST,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"mesh {' '.join(arguments)}: {done.stderr[-3000:]}")
        return done.stdout

    def boot(self, *options: str) -> Boot:
        """One verified cold boot."""
        began = time.monotonic()
        out = self.mesh("run", "cold-boot", "--mesh", "lab", "--json", "--engine", "none", *options)
        return Boot(time.monotonic() - began, json.loads(out.splitlines()[-1]))

    def restart(self, *options: str) -> Boot:
        """Everything dark at once, then one cold boot."""
        self.mesh("lab", "power-cut")
        return self.boot(*options)


def bare(directory: Path, size: str, boot: str, *, keep: bool = False) -> dict[str, Any]:
    """One boot by the bare script, from the start of its processes to its proofs."""
    began = time.monotonic()
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.bare_boot", boot, "--size", size,
            "--network", BARE_NETWORK, "--directory", str(directory),
            *(["--keep"] if keep else []),
        ],
        capture_output=True, text=True, timeout=LONGEST, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"bare {boot}: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    # The start of Python counts on both sides; the end of the bare script's servers on neither.
    started = found["began"] - began - bare_boot.BALANCER_SECONDS
    return found | {"command": started + found["seconds"]}


def speed(scratch: Path, size: str, runs: int) -> dict[str, Any]:
    """All-dark to verified, against the bare script, in turn."""
    lab = Lab(scratch / f"lab-{size}", size)
    lab.mesh("lab", "up", "--size", size)
    try:
        first = lab.boot("--set", "initialise=true")
        bare(scratch / f"bare-{size}", size, "day0")
        pairs = []
        for number in range(runs):
            ours = lab.restart()
            lab.mesh("lab", "power-cut")  # its processes must not slow the bare ones
            floor = bare(scratch / f"bare-{size}", size, "restart")
            pairs.append({
                "runbook_seconds": round(ours.wall, 2),
                "bare_seconds": round(floor["command"], 2),
                "ratio": round(ours.wall / floor["command"], 3),
                "megabytes": ours.megabytes,
            })  # fmt: skip
            print(f"  {size} {number + 1}: {pairs[-1]}", flush=True)
        one = [lab.restart("--set", "without=eu-west-1").wall for _ in range(runs)]
    finally:
        lab.mesh("lab", "down", "--wipe")
    return {
        "size": size,
        "pairs": pairs,
        "ratio": statistics.median(p["ratio"] for p in pairs),
        "runbook_seconds": statistics.median(p["runbook_seconds"] for p in pairs),
        "bare_seconds": statistics.median(p["bare_seconds"] for p in pairs),
        "one_datacenter_seconds": round(statistics.median(one), 2),
        "day0_seconds": round(first.wall, 2),
        "megabytes": max(p["megabytes"] for p in pairs),
    }


def cold_boot(scratch: Path, runs: int) -> dict[str, Any]:
    """Speed, growth and memory of the cold boot."""
    small, full = (speed(scratch, size, runs) for size in ("small", "full"))
    return {
        "sizes": {"small": small, "full": full},
        "runbook_to_bare": full["ratio"],
        "runbook_to_bare_small": small["ratio"],
        "three_servers_to_one": round(full["runbook_seconds"] / small["runbook_seconds"], 2),
        "three_servers_to_one_bare": round(full["bare_seconds"] / small["bare_seconds"], 2),
        "two_datacenters_to_one": round(
            full["runbook_seconds"] / full["one_datacenter_seconds"], 2
        ),
        "peak_megabytes": full["megabytes"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the results and print the ratios; 1 if a bound is missed."""
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="pairs a size")
    given = parser.parse_args(argv)
    RESULTS.mkdir(exist_ok=True)
    planned = planning.measure()
    with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch:
        booted = cold_boot(Path(scratch), given.runs)
    at = datetime.now(UTC).isoformat(timespec="seconds")
    machine = {"cpus": os.cpu_count(), "python": sys.version.split()[0], "at": at}
    for name, found in (("cold_boot", booted), ("planning", planned)):
        text = json.dumps({"machine": machine, **found}, indent=1)
        (RESULTS / f"{name}.json").write_text(text + "\n")
    rows = [
        (
            "cold boot, whole command / bare script, 3 servers",
            booted["runbook_to_bare"],
            MOST_RATIO,
        ),
        ("cold boot, whole command / bare script, 1 server", booted["runbook_to_bare_small"], None),
        ("cold boot, 3 servers a role / 1", booted["three_servers_to_one"], None),
        ("  the same of the bare script", booted["three_servers_to_one_bare"], None),
        ("cold boot, 2 datacenters / 1", booted["two_datacenters_to_one"], None),
        ("peak memory of the flow's process, MB", booted["peak_megabytes"], MOST_MEGABYTES),
        ("planning 1,000 hosts in process, s", planned["seconds"], MOST_PLAN_SECONDS),
    ]
    missed = 0
    for name, value, most in rows:
        bound = f"at most {most}" if most is not None else ""
        over = most is not None and value > most
        missed += over
        print(f"  {name:<52} {value:>8}  {bound}{'  MISSED' if over else ''}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
