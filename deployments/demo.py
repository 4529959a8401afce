"""
The story `make demo` tells, on real servers on this machine.

A mesh that never ran is booted from nothing, loses its power everywhere at
once, and is brought back; then a third run finds nothing to do. After that its
declared tokens are issued, and all of them replaced while consumers use theirs.
Each act is the very command an operator would type. Exit status 0 only if
every act ended as it must, and no consumer was refused once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from deployments.engine import prepare

MESH = [sys.executable, "-m", "deployments.cli"]
LONGEST_ACT = 600.0


@dataclass(frozen=True)
class Act:
    """One act of the story: what is typed, and how it must end."""

    title: str
    arguments: tuple[str, ...]
    outcome: str
    consumed: bool = False  # the declared tokens are in use meanwhile


ACTS = (
    Act(
        "day 0: a mesh that never ran",
        ("run", "cold-boot", "--mesh", "lab", "--set", "initialise=true"),
        "verified",
    ),
    Act("the power comes back", ("run", "cold-boot", "--mesh", "lab"), "verified"),
    Act("once more, on a healthy mesh", ("run", "cold-boot", "--mesh", "lab"), "nothing"),
    Act("its declared tokens are issued", ("run", "token-rotation", "--mesh", "lab"), "verified"),
    Act(
        "all of them replaced, in use at 20 Hz",
        ("run", "token-rotation", "--mesh", "lab", "--set", "older_than=0"),
        "verified",
        consumed=True,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Tell the story; 0 if every act ended as it must."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("--size", choices=("small", "full"), default=os.environ.get("SIZE", "full"))
    parser.add_argument("--keep", action="store_true", default=os.environ.get("KEEP") == "1")
    given = parser.parse_args(argv)
    console = Console(highlight=False)
    prepare("none")
    with tempfile.TemporaryDirectory(prefix="mesh-demo-") as scratch:
        if "MESH_LAB_DIR" not in os.environ:
            os.environ["MESH_LAB_DIR"] = str(Path(".lab", "demo").absolute())
        try:
            return _tell(console, given.size, Path(scratch))
        finally:
            if given.keep:
                _kept(console)
            else:
                _mesh("lab", "down")


def _tell(console: Console, size: str, scratch: Path) -> int:
    _title(console, f"A lab of real servers, {size} size, every host off")
    if _mesh("lab", "down", "--wipe", quiet=True) or _mesh("lab", "up", "--size", size):
        console.print("the lab did not come up", style="bold red")
        return 1
    reports: list[tuple[Act, dict[str, Any]]] = []
    for number, act in enumerate(ACTS):
        if number == 1:
            _title(console, "Power cut: every process of every host is killed at once")
            if _mesh("lab", "power-cut"):
                return 1
        _title(console, f"{act.title}:  mesh {' '.join(act.arguments)}")
        play = _play_consumed if act.consumed else _play
        report = play(console, act, scratch / f"{number}.json")
        reports.append((act, report))
        if report.get("outcome") != act.outcome:
            break
    _summary(console, reports)
    done = len(reports) == len(ACTS)
    refused = [line for _, r in reports for line in r.get("consumers", {}).get("failures", [])]
    ended = all(r.get("outcome") == a.outcome for a, r in reports)
    return 0 if done and ended and not refused else 1


def _title(console: Console, text: str) -> None:
    console.print()
    console.rule(f"[bold]{text}", align="left")


def _mesh(*arguments: str, quiet: bool = False) -> int:
    out = subprocess.DEVNULL if quiet else None
    done = subprocess.run(
        [*MESH, *arguments], stdout=out, stderr=out, check=False, timeout=LONGEST_ACT
    )
    return done.returncode


def _play(_: Console, act: Act, file: Path) -> dict[str, Any]:
    """Run an act with its progress shown; its report."""
    began = time.monotonic()
    with file.open("wb") as out:
        done = subprocess.run(
            [*MESH, *act.arguments, "--json"], stdout=out, check=False, timeout=LONGEST_ACT
        )
    lines = file.read_text().splitlines()
    try:
        report: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        report = {"outcome": f"exit status {done.returncode}, no report"}
    report["wall"] = time.monotonic() - began
    return report


def _play_consumed(console: Console, act: Act, file: Path) -> dict[str, Any]:
    """The same while consumers use the declared tokens; `consumers` in the report is theirs."""
    from deployments import consumers  # once it is settled that there is no Prefect

    with consumers.consuming(Path(os.environ["MESH_LAB_DIR"], "mesh.yaml")) as at_work:
        report = _play(console, act, file)
        time.sleep(2 * consumers.READ_SECONDS)  # the last have read the new ones
    told = consumers.told(at_work)
    failures: list[str] = told["failures"]
    console.print(
        f"{told['consumers']} consumers (simulated, see deployments/consumers.py) used their tokens "
        f"{told['uses']} times meanwhile, {told['adopted']} took up a new one: "
        f"{len(failures)} failures",
        style="bold red" if failures else "",
    )
    console.print(
        f"{told['leased']} of them asked for leases at the lab's facade: OpenBao has no Consul secrets "
        "engine; tokens and leases are real"
    )
    for line in failures[:5]:
        console.print(f"  {line}", style="red")
    return report | {"consumers": told}


def _summary(console: Console, reports: list[tuple[Act, dict[str, Any]]]) -> None:
    _title(console, "Summary")
    table = Table("act", "outcome", "seconds", "changes", "calls that change", "checks")
    for act, report in reports:
        checks = report.get("checks", [])
        measures = report.get("measures", {})
        table.add_row(
            act.title,
            str(report.get("outcome")),
            f"{report['wall']:.1f}",
            str(len(report.get("changes", []))),
            str(measures.get("mutating_calls", "-")),
            f"{sum(c['ok'] for c in checks)} of {len(checks)}",
        )
    console.print(table)
    console.print("seconds: whole command, start of Python included")


def _kept(console: Console) -> None:
    _title(console, "Left running")
    directory = os.environ["MESH_LAB_DIR"]
    console.print(f"export MESH_LAB_DIR={directory}")
    console.print("mesh lab status      mesh lab power-cut      mesh lab down")


if __name__ == "__main__":
    raise SystemExit(main())
