"""A run through a worker, as in production: on a mesh where nothing answers it ends by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy import server as servers
from tests.deploy.conftest import Deployed
from tests.deploy.server import MESH, PrefectServer, leaked, leaked_below, logs, run_deployment

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def worker(prefect_server: PrefectServer, deployed: Deployed) -> Iterator[Path]:
    """A process worker of the pool; its log."""
    with servers.worker(prefect_server) as log:
        yield log


def test_a_boot_that_cannot_see_the_clouds_is_refused_in_a_state_of_its_own(
    prefect_server: PrefectServer, worker: Path
):
    run = run_deployment(prefect_server, "cold-boot", worker, mesh=MESH)

    assert (run["state_name"], run["state_type"]) == ("Refused", "CANCELLED"), run["state"]
    assert run["name"] == f"cold-boot {MESH} (plan, fallback wait)"
    assert "do: " in run["state"]["message"]
    assert run["total_run_time"] < 60
    assert "Traceback" not in logs(prefect_server, run)


def test_a_run_leaves_no_secret_behind(prefect_server: PrefectServer, worker: Path):
    run = run_deployment(prefect_server, "snapshot", worker, mesh=MESH)

    assert run["state_name"] == "Refused", run["state"]
    left = [
        str(run),
        logs(prefect_server, run),
    ]
    left.append(str(prefect_server.post("/artifacts/filter")))
    left.append(str(prefect_server.post("/flow_runs/filter")))
    assert not leaked("".join(left))
    assert not leaked_below(prefect_server.home)
