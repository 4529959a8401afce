"""A run through a worker, as in production: on a mesh where nothing answers it ends by itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.conftest import Deployed
from tests.deploy.server import (
    MESH,
    PrefectServer,
    await_,
    default_signals,
    end,
    leaked,
    leaked_below,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def worker(prefect_server: PrefectServer, deployed: Deployed) -> Iterator[Path]:
    """A process worker of the pool; its log."""
    log = prefect_server.home / "worker.log"
    program = Path(sys.executable).with_name("prefect")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(program), "worker", "start", "--pool", "mesh", "--name", "tests"],
            stdout=output,
            stderr=output,
            env=prefect_server.environ,
            cwd=prefect_server.home,
            start_new_session=True,
            preexec_fn=default_signals,  # noqa: PLW1509 - forks once, before any thread matters
        )
    try:
        yield log
    finally:
        end(process)


def _run(server: PrefectServer, name: str, log: Path, **parameters: Any) -> dict[str, Any]:
    """Start a deployment and wait until its run has ended."""
    found = server.get(f"/deployments/name/{name}/{name}-{MESH}")
    started = server.post(
        f"/deployments/{found['id']}/create_flow_run",
        {"parameters": found["parameters"] | parameters, "state": {"type": "SCHEDULED"}},
    )

    def ended() -> Any:
        run = server.get(f"/flow_runs/{started['id']}")
        final = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
        return run if run["state_type"] in final else None

    return await_(ended, 90, lambda: log.read_text()[-4000:])


def _logs(server: PrefectServer, run: dict[str, Any]) -> str:
    body = {"logs": {"flow_run_id": {"any_": [run["id"]]}}}
    return "\n".join(line["message"] for line in server.post("/logs/filter", body))


def test_a_boot_that_cannot_see_the_clouds_is_refused_in_a_state_of_its_own(
    prefect_server: PrefectServer, worker: Path
):
    run = _run(prefect_server, "cold-boot", worker)

    assert (run["state_name"], run["state_type"]) == ("Refused", "CANCELLED"), run["state"]
    assert run["name"] == f"cold-boot {MESH} (plan, fallback wait)"
    assert "do: " in run["state"]["message"]
    assert run["total_run_time"] < 60
    assert "Traceback" not in _logs(prefect_server, run)


def test_a_run_leaves_no_secret_behind(prefect_server: PrefectServer, worker: Path):
    run = _run(prefect_server, "snapshot", worker)

    assert run["state_name"] == "Refused", run["state"]
    left = [
        str(run),
        _logs(prefect_server, run),
    ]
    left.append(str(prefect_server.post("/artifacts/filter")))
    left.append(str(prefect_server.post("/flow_runs/filter")))
    assert not leaked("".join(left))
    assert not leaked_below(prefect_server.home)
