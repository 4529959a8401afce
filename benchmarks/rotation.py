"""
Thousands of service tokens through the whole cycle, as ratios in one run on the same servers.

The cycle: store, create, prove in both datacenters, promote, read back, disarm,
revoke, prove 403 in both datacenters, forget. All tokens are due each time; what one
measurement leaves the next replaces. Whole commands are timed, the start of Python
included.

- against a bare threaded script that makes the same calls, at its best concurrency
- against one Prefect task a token, in each step or for all of them, with the same Prefect server
- against an Ansible playbook that creates, stores and deletes tokens, and proves nothing:
  for the same three steps (ours check-and-set, and prove 403 in both datacenters), and
  for the whole cycle, for which even the bare script takes too long to be 100 times as fast
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks import ansible_tokens
from benchmarks.lab import Lab, Ran

COUNT, FULL = 1000, 10_000
POLICY = "rotation-bench"
RULES = 'key_prefix "app/" { policy = "read" }'
WORKERS = (8, 16, 32)
AT_ONCE_STEP, OF_STEPS = (16,), 200
AT_ONCE_CYCLE = (64,)
OF_ANSIBLE = 20
RUNS = 3

LEAST_TO_BARE = 0.8
LEAST_TO_TASKS = 4.0
LEAST_TO_ANSIBLE = 100.0
MOST_GROWTH = 1.2
MOST_MEGABYTES = 300


def declare(lab: Lab, count: int) -> str:
    """The lab's topology with so many roles of its own; its file."""
    document: dict[str, Any] = yaml.safe_load((lab.directory / "mesh.yaml").read_text())
    document["tokens"] = [
        {
            "role": f"service-{number:05}",
            "kind": "service",
            "policies": [POLICY],
            "path": f"services/service-{number:05}",
            "consumers": ["payment-processor"],
            "may": ["kv read app/x"],
            "may_not": ["kv write app/x"],
            "overlap_seconds": 0,
            "soak_seconds": 0,
        }
        for number in range(count)
    ]
    file = lab.directory / f"mesh-{count}.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return str(file)


def policy(mesh_file: str) -> None:
    """The one policy that the roles have."""
    from blocks.mesh import connect, load_mesh
    from tasks import token_survey

    with connect(load_mesh(mesh_file)) as connections:
        management = token_survey.management(connections)
        dc = connections.consul(connections.topology.primary)
        with dc.client(token=management, dc="") as api:
            api.put("/v1/acl/policy", json={"Name": POLICY, "Rules": RULES})


def rotated(lab: Lab, mesh_file: str, *, engine: str = "none") -> Ran:
    """Every token replaced by the runbook."""
    ran = lab.run("token-rotation", "--set", "older_than=0", mesh=mesh_file, engine=engine)
    if ran.report["outcome"] != "verified" or ran.report["measures"]["failed"]:
        raise SystemExit(f"rotation: {ran.report['outcome']}: {ran.report['problem']}")
    return ran


def bare(lab: Lab, mesh_file: str, workers: int) -> dict[str, Any]:
    """Every token replaced by the bare script."""
    began = time.monotonic()
    out = lab.python(mesh_file, "--workers", str(workers), module="benchmarks.bare_rotation")
    wall = time.monotonic() - began
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found | {"command": round(wall, 2), "workers": workers}


@contextmanager
def prefect(directory: Path) -> Iterator[dict[str, str]]:
    """A Prefect server of its own; the environment by which it is found."""
    directory.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environ = {"PREFECT_HOME": str(directory), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    program = Path(sys.executable).with_name("prefect")
    with (directory / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [str(program), "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | environ, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        ends = time.monotonic() + 240
        while not _answers(url):
            if time.monotonic() > ends or server.poll() is not None:
                raise SystemExit(f"Prefect's server: {(directory / 'server.log').read_text()}")
            time.sleep(0.2)
        yield environ | {"PREFECT_API_URL": url, "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR"}
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def to_bare(lab: Lab, mesh_file: str, count: int) -> dict[str, Any]:
    """In turn, A B A B, the script at its best concurrency; the median of the pairs counts."""
    tried = [bare(lab, mesh_file, workers) for workers in WORKERS]
    best = min(tried, key=lambda found: found["command"])["workers"]
    pairs = []
    for _ in range(RUNS):
        ours, floor = rotated(lab, mesh_file), bare(lab, mesh_file, best)
        pairs.append({
            "runbook_seconds": round(ours.wall, 2),
            "bare_seconds": floor["command"],
            "throughput_ratio": round(floor["command"] / ours.wall, 3),
            "runbook_calls": ours.report["measures"]["calls"],
            "bare_calls": floor["calls"],
            "megabytes": ours.megabytes,
            "steps": ours.report["measures"]["seconds_by_step"],
        })  # fmt: skip
        print(f"  {count} tokens: {pairs[-1]}", flush=True)
    return {
        "tokens": count,
        "bare_by_workers": {str(found["workers"]): found["command"] for found in tried},
        "bare_workers": best,
        "bare_phases": floor["phases"],
        "pairs": pairs,
        # What Ansible does is three of the steps; ours prove that the deleted are refused, too.
        "three_steps_milliseconds": round(
            1000
            / count
            * statistics.median(
                sum(p["steps"][step] for step in ("store", "create", "revoke")) for p in pairs
            ),
            2,
        ),
        "throughput_to_bare": statistics.median(p["throughput_ratio"] for p in pairs),
        "milliseconds_a_token": round(
            1000 / count * statistics.median(p["runbook_seconds"] for p in pairs), 2
        ),
        "megabytes": max(p["megabytes"] for p in pairs),
    }


def to_tasks(lab: Lab, mesh_file: str, scratch: Path) -> dict[str, Any]:
    """
    One task a token against the runbook, all as flow runs of one Prefect server.

    A task a token and step is measured on fewer tokens and told by the token: it
    takes minutes. As many are at work as the best of several tries had.
    """
    with prefect(scratch / "prefect") as environ:
        with_prefect = Lab(lab.directory, lab.size, **environ)

        def tasks(each: str, at_once: int, roles: int) -> float:
            began = time.monotonic()
            words = ("--each", each, "--at-once", str(at_once), "--roles", str(roles))
            with_prefect.python(mesh_file, *words, module="benchmarks.task_per_token")
            return round(1000 * (time.monotonic() - began) / roles, 1)

        ours = rotated(with_prefect, mesh_file, engine="prefect")
        by_step = {str(n): tasks("step", n, OF_STEPS) for n in AT_ONCE_STEP}
        by_cycle = {str(n): tasks("cycle", n, COUNT) for n in AT_ONCE_CYCLE}
    own = round(1000 * ours.wall / COUNT, 2)
    found = {
        "runbook_ms": own,
        "task_a_token_and_step_ms": by_step,
        "task_a_token_ms": by_cycle,
        "ratio_step": round(min(by_step.values()) / own, 2),
        "ratio_cycle": round(min(by_cycle.values()) / own, 2),
        "megabytes": ours.megabytes,
    }
    print(f"  tasks, ms a token: {found}", flush=True)
    return found


def measure(scratch: Path, *, full: bool = False, cache: Path | None = None) -> dict[str, Any]:
    """All of it; ten thousand tokens too if `full`."""
    programs = ansible_tokens.install(cache or scratch)
    lab = Lab(scratch / "lab-tokens", "small")
    lab.mesh("lab", "up", "--size", "small")
    try:
        lab.boot("--set", "initialise=true")
        mesh_file = declare(lab, COUNT)
        policy(mesh_file)
        issued = lab.run("token-rotation", mesh=mesh_file)
        compared = to_bare(lab, mesh_file, COUNT)
        tasks = to_tasks(lab, mesh_file, scratch)
        ansible = ansible_tokens.measure(programs, mesh_file, POLICY, OF_ANSIBLE)
        cycle = compared["milliseconds_a_token"] / 1000
        found = {
            "issue_seconds": round(issued.wall, 2),
            "cycle": compared,
            "task_a_token": tasks,
            "ansible_seconds_a_token": round(ansible, 3),
            "ansible_to_cycle": round(ansible / cycle, 1),
            "ansible_to_three_steps": round(
                1000 * ansible / compared["three_steps_milliseconds"], 1
            ),
        }
        if full:
            found["full"] = grown = _full(lab)
            found["growth"] = round(grown["milliseconds_a_token"] / (1000 * cycle), 3)
        return found
    finally:
        lab.mesh("lab", "down", "--wipe")


def _full(lab: Lab) -> dict[str, Any]:
    mesh_file = declare(lab, FULL)
    issued = lab.run("token-rotation", mesh=mesh_file)
    ran = rotated(lab, mesh_file)
    found = {
        "tokens": FULL,
        "issue_seconds": round(issued.wall, 2),
        "runbook_seconds": round(ran.wall, 2),
        "milliseconds_a_token": round(1000 / FULL * ran.wall, 2),
        "megabytes": max(ran.megabytes, issued.megabytes),
    }
    print(f"  {FULL} tokens: {found}", flush=True)
    return found


def rows(found: dict[str, Any]) -> list[tuple[str, float, float | None, float | None]]:
    """What is printed: a name, its figure, and the least and the most that it may be."""
    full: list[tuple[str, float, float | None, float | None]] = []
    if "full" in found:
        full = [
            ("rotation, ms a token at 10,000 / at 1,000", found["growth"], None, MOST_GROWTH),
            ("  peak memory at 10,000, MB", found["full"]["megabytes"], None, MOST_MEGABYTES),
        ]
    cycle = found["cycle"]
    return [
        ("rotation, throughput / bare script's", cycle["throughput_to_bare"], LEAST_TO_BARE, None),
        ("rotation, a task a token in each step / runbook", found["task_a_token"]["ratio_step"], LEAST_TO_TASKS, None),
        ("  a task a token for all of its steps / runbook", found["task_a_token"]["ratio_cycle"], None, None),
        ("rotation, Ansible / the same three steps", found["ansible_to_three_steps"], LEAST_TO_ANSIBLE, None),
        ("  Ansible's three steps / the whole cycle", found["ansible_to_cycle"], None, None),
        ("rotation, ms a token, whole cycle", cycle["milliseconds_a_token"], None, None),
        ("  peak memory at 1,000, MB", cycle["megabytes"], None, None),
        *full,
    ]  # fmt: skip
