"""
A rotation as one writes it first with Prefect: a task for each token. Needs a Prefect API.

The very steps of `token-rotation`, either each mapped over the tokens, a task a token and
step, with one wait for replication in between; or a task that takes one token through
all of them, and waits for replication by itself.

    python -m benchmarks.task_per_token MESH.yaml --each step --at-once 16
    python -m benchmarks.task_per_token MESH.yaml --each cycle --at-once 64

The last line is JSON: seconds, and how many tasks.
"""

from __future__ import annotations

import argparse
import contextvars
import json
import sys
import time
from collections.abc import Sequence
from typing import cast

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from blocks.mesh import connect, load_mesh
from tasks import federation, rotation_steps, token_survey
from tasks.planning.rotation import NEW, ORDER, RETIRE, Do, plan_rotation
from tasks.planning.rotation_plan import Options
from tasks.rotation_steps import Item


def rotate(mesh_file: str, each: str, at_once: int, roles: int) -> int:
    """Replace tokens of a mesh; how many tasks that were."""
    mesh = load_mesh(mesh_file)
    connections = connect(mesh)
    management = token_survey.management(connections)
    tasks = 0

    def replicated(index: int) -> None:
        for dc in mesh.secondaries if index else []:
            federation.await_index.fn(connections, dc, management, index)

    def carry_out(item: Item, what: Do) -> int:
        index = rotation_steps.carry_out.fn(connections, what, [item], management, workers=1)
        if item.failed_at:
            raise SystemExit(f"{item.name}: {item.failed_at}: {item.error}")
        return index

    def through(item: Item) -> None:
        reached = 0
        for what in item.plan.steps:
            if what != "soak" and (index := carry_out(item, cast(Do, what))) > reached:
                replicated(reached := index)

    # Outside of Prefect's context: within it each look and wait would be a task of its own.
    @task(task_run_name="{what} {role}", cache_policy=NO_CACHE, persist_result=False)
    def one(role: str, what: str) -> int:
        if what == "rotate":
            contextvars.Context().run(through, items[role])
            return 0
        return contextvars.Context().run(carry_out, items[role], cast(Do, what))

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=at_once), persist_result=False)  # type: ignore[arg-type]
    def all_of_them() -> None:
        nonlocal tasks
        steps = [what for what in ORDER if what in {*NEW, *RETIRE} and what != "soak"]
        reached = 0
        for what in steps if each == "step" else ["rotate"]:
            done = [one.submit(role, what) for role in items]
            tasks += len(done)
            if (index := max(each.result() for each in done)) > reached:
                contextvars.Context().run(replicated, reached := index)

    declared = mesh.tokens[:roles]
    seen = contextvars.Context().run(token_survey.look.fn, connections, declared, management)
    options = Options(tuple(token.role for token in declared), older_than_hours=0)
    items = {
        token.role: Item(token, mesh.token(token.role), seen.documents[token.role])
        for token in plan_rotation(mesh, seen.tokens, options).todo
    }
    with connections:
        all_of_them()
    return tasks


def main(argv: Sequence[str] | None = None) -> int:
    """Rotate every token of a mesh once."""
    parser = argparse.ArgumentParser(prog="benchmarks.task_per_token", description=__doc__)
    parser.add_argument("mesh")
    parser.add_argument("--each", choices=("step", "cycle"), default="step")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--roles", type=int, default=1_000_000, help="the first so many")
    given = parser.parse_args(argv)
    began = time.monotonic()
    count = rotate(given.mesh, given.each, given.at_once, given.roles)
    print(json.dumps({"seconds": round(time.monotonic() - began, 3), "tasks": count}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
