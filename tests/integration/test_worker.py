"""The runbook as a deployment: a worker brings the lab back, and Prefect's UI has what it shows."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy import server as servers
from tests.deploy.server import PrefectServer, logs, run_deployment
from tests.harness.lab import Lab
from tests.integration.outside import assert_up

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def artifacts(server: PrefectServer, run: dict[str, Any]) -> dict[str, str]:
    """A run's artifacts by key."""
    body = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}}
    return {a["key"]: str(a["data"]) for a in server.post("/artifacts/filter", body)}


def test_a_worker_brings_the_mesh_back(dark: Lab, prefect: PrefectServer):
    """Started by the API with the form's parameters: the same boot, the same report, a picture."""
    topology = dark.directory / "mesh.yaml"
    deployed = servers.mesh(["deploy", "--mesh", str(topology)], prefect.environ)
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr

    with servers.worker(prefect) as log:
        planned = run_deployment(prefect, "cold-boot", log, mesh="lab", mode="plan")
        assert planned["state_type"] == "COMPLETED", planned["state"]
        assert "nothing was changed" in planned["state"]["message"].lower()
        run = run_deployment(prefect, "cold-boot", log, mesh="lab", mode="apply", deadline=240)
        assert run["state_type"] == "COMPLETED", f"{run['state']}\n{logs(prefect, run)[-3000:]}"
        assert run["state"]["message"].startswith("done and verified: "), run["state"]
        again = run_deployment(prefect, "cold-boot", log, mesh="lab", mode="apply")

    assert "nothing needed changing: 0 changes" in again["state"]["message"], again["state"]
    assert_up(dark)
    shown = "\n".join(artifacts(prefect, run).values())
    assert "unseal" in shown
    assert "<svg" in shown or "data:image/svg+xml" in shown
    assert "Traceback" not in logs(prefect, run)
