"""
A rotation as one writes it first with Prefect: a task for each token.

The very steps of `token-rotation`, for one role a task, as many at once as are best;
each task waits for replication by itself. Needs a Prefect API.

    python -m benchmarks.task_per_token MESH.yaml --at-once 32

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
from tasks.planning.rotation import Do, plan_rotation
from tasks.planning.rotation_plan import Options
from tasks.rotation_steps import Item


def rotate(mesh_file: str, at_once: int) -> int:
    """Replace every token of a mesh; how many."""
    mesh = load_mesh(mesh_file)
    connections = connect(mesh)
    management = token_survey.management(connections)

    def through(item: Item) -> None:
        waits = 0
        for step in item.plan.steps:
            if step == "soak":
                continue
            index = rotation_steps.carry_out.fn(
                connections, cast(Do, step), [item], management, workers=1
            )
            if index > waits:
                waits = index
                for dc in mesh.secondaries:
                    federation.await_index.fn(connections, dc, management, index)
        if item.failed_at:
            raise SystemExit(f"{item.name}: {item.failed_at}: {item.error}")

    @task(task_run_name="rotate {role}", cache_policy=NO_CACHE, persist_result=False)
    def one(role: str) -> None:
        # Outside of Prefect's context: within it each wait would be a task of its own.
        contextvars.Context().run(through, items[role])

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=at_once), persist_result=False)  # type: ignore[arg-type]
    def all_of_them() -> None:
        for done in [one.submit(role) for role in items]:
            done.result()

    seen = contextvars.Context().run(token_survey.look.fn, connections, mesh.tokens, management)
    plan = plan_rotation(mesh, seen.tokens, Options(older_than_hours=0))
    items = {
        token.role: Item(token, mesh.token(token.role), seen.documents[token.role])
        for token in plan.todo
    }
    with connections:
        all_of_them()
    return len(items)


def main(argv: Sequence[str] | None = None) -> int:
    """Rotate every token of a mesh once."""
    parser = argparse.ArgumentParser(prog="benchmarks.task_per_token", description=__doc__)
    parser.add_argument("mesh")
    parser.add_argument("--at-once", type=int, default=32)
    given = parser.parse_args(argv)
    began = time.monotonic()
    count = rotate(given.mesh, given.at_once)
    print(json.dumps({"seconds": round(time.monotonic() - began, 3), "tasks": count}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
