"""
The figures of the README, as ratios measured in one run on one machine.

    python -m benchmarks [--runs N] [--only PART]

Whole commands are timed, the start of Python included, from the dark to the end
of the runbook's process and to the last proof of the bare script. The lab's machines
boot without the simulated wait of 0.3 s that they have otherwise: the bare script has no
machines. A pair is measured in turn, A B A B, so that a machine whose speed drifts slows both; the median of
the pairs' ratios is what counts. Results go to benchmarks/results/*.json.
`BENCH=full` rotates ten thousand tokens too.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import bare_boot, planning, rotation
from benchmarks.lab import Lab

RESULTS = Path(__file__).parent / "results"
BARE_NETWORK = "127.87"
LONGEST = 600.0
MOST_RATIO = 1.25
MOST_MEGABYTES = 250
MOST_PLAN_SECONDS = 1.0


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
    parser.add_argument("--only", choices=sorted(PARTS), help="one part of all")
    given = parser.parse_args(argv)
    RESULTS.mkdir(exist_ok=True)
    missed = 0
    for name in [given.only] if given.only else PARTS:
        with tempfile.TemporaryDirectory(prefix="mesh-bench-") as scratch:
            found, rows = PARTS[name](Path(scratch), given.runs)
        at = datetime.now(UTC).isoformat(timespec="seconds")
        machine = {"cpus": os.cpu_count(), "python": sys.version.split()[0], "at": at}
        text = json.dumps({"machine": machine, **found}, indent=1)
        (RESULTS / f"{name}.json").write_text(text + "\n")
        for row in rows:
            missed += _told(*row)
    return 1 if missed else 0


def _told(name: str, value: float, least: float | None = None, most: float | None = None) -> bool:
    """Print a figure and its bound; whether it is missed."""
    bound = f"at most {most}" if most is not None else f"at least {least}" if least else ""
    over = (most is not None and value > most) or (least is not None and value < least)
    print(f"  {name:<52} {value:>8}  {bound}{'  MISSED' if over else ''}", flush=True)
    return over


Rows = list[tuple[str, float, float | None, float | None]]


def _planning(_scratch: Path, _runs: int) -> tuple[dict[str, Any], Rows]:
    found = planning.measure()
    return found, [
        ("planning 1,000 hosts in process, s", found["seconds"], None, MOST_PLAN_SECONDS)
    ]


def _cold_boot(scratch: Path, runs: int) -> tuple[dict[str, Any], Rows]:
    booted = cold_boot(scratch, runs)
    return booted, [
        (
            "cold boot, whole command / bare script, 3 servers",
            booted["runbook_to_bare"],
            None,
            MOST_RATIO,
        ),
        (
            "cold boot, whole command / bare script, 1 server",
            booted["runbook_to_bare_small"],
            None,
            None,
        ),
        ("cold boot, 3 servers a role / 1", booted["three_servers_to_one"], None, None),
        ("  the same of the bare script", booted["three_servers_to_one_bare"], None, None),
        ("cold boot, 2 datacenters / 1", booted["two_datacenters_to_one"], None, None),
        ("peak memory of the flow's process, MB", booted["peak_megabytes"], None, MOST_MEGABYTES),
    ]


def _rotation(scratch: Path, _runs: int) -> tuple[dict[str, Any], Rows]:
    cache = Path(__file__).parents[1] / ".lab"
    found = rotation.measure(scratch, full=os.environ.get("BENCH") == "full", cache=cache)
    return found, rotation.rows(found)


PARTS = {"planning": _planning, "cold_boot": _cold_boot, "rotation": _rotation}


if __name__ == "__main__":
    raise SystemExit(main())
