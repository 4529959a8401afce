"""`mesh deploy` on a bare server: everything is there, twice is once, and nothing tells a secret."""

from __future__ import annotations

import importlib
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.conftest import Deployed
from tests.deploy.server import (
    MESH,
    ROOT,
    SECRETS,
    PrefectServer,
    await_,
    environment,
    leaked,
    leaked_below,
    mesh,
    topology,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

RUNBOOKS = (
    "boot-readiness",
    "cold-boot",
    "snapshot",
    "token-audit",
    "token-rotation",
    "vault-maintenance",
)
SLUGS = ("aws-account", "host-access", "mesh-topology", "proxmox-cluster")


def test_a_second_run_says_that_nothing_changed(deployed: Deployed):
    first, second = deployed.first, deployed.second

    assert "0 updated" in first.stdout
    assert second.returncode == 0
    assert f"{MESH}: nothing changed" in second.stdout
    assert "created" not in second.stdout
    assert "updated" not in second.stdout


def test_every_runbook_is_deployed_and_its_entrypoint_imports(
    prefect_server: PrefectServer, deployed: Deployed
):
    found = {d["name"]: d for d in prefect_server.post("/deployments/filter")}

    assert sorted(found) == [f"{name}-{MESH}" for name in RUNBOOKS]
    for deployment in found.values():
        module, _, name = deployment["entrypoint"].rpartition(".")
        flow = getattr(importlib.import_module(module), name)
        known = deployment["parameter_openapi_schema"]["properties"]
        assert f"{flow.name}-{MESH}" == deployment["name"]
        assert deployment["parameters"]["mesh"] == MESH
        assert set(deployment["parameters"]) <= set(known)
        assert all(known[p].get("description") for p in known), (
            "each field of the form is explained"
        )
        assert deployment["description"]
        assert MESH in deployment["tags"]
        assert deployment["work_pool_name"] == "mesh"
        assert not deployment["pull_steps"]
        assert not deployment["path"]
        assert deployment["enforce_parameter_schema"] is True
        assert deployment["global_concurrency_limit"]["limit"] == 1
        assert deployment["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_what_is_started_by_hand_changes_nothing_unless_told_to(
    prefect_server: PrefectServer, deployed: Deployed
):
    for name in ("cold-boot", "vault-maintenance"):
        found = prefect_server.get(f"/deployments/name/{name}/{name}-{MESH}")
        assert found["parameters"]["mode"] == "plan"
        assert found["schedules"] == []


def test_a_wrong_value_is_refused_at_creation(prefect_server: PrefectServer, deployed: Deployed):
    found = prefect_server.get(f"/deployments/name/cold-boot/cold-boot-{MESH}")

    with pytest.raises(httpx.HTTPStatusError) as refused:
        prefect_server.post(
            f"/deployments/{found['id']}/create_flow_run", {"parameters": {"fallback": "hope"}}
        )

    assert refused.value.response.status_code == 409


@pytest.mark.parametrize(
    ("name", "hour"),
    [("snapshot", 2), ("token-rotation", 3), ("token-audit", 5), ("boot-readiness", 6)],
)
def test_a_schedule_really_produces_runs(
    prefect_server: PrefectServer, deployed: Deployed, name: str, hour: int
):
    """With another SQLAlchemy the scheduler fails on every pass, and nothing else shows it."""
    found = prefect_server.get(f"/deployments/name/{name}/{name}-{MESH}")

    def runs() -> Any:
        return prefect_server.post(
            "/flow_runs/filter",
            {
                "deployments": {"id": {"any_": [found["id"]]}},
                "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
            },
        )

    scheduled = await_(runs, 60)

    when = {datetime.fromisoformat(r["expected_start_time"]).strftime("%H:%M") for r in scheduled}
    assert when == {f"{hour:02}:00"}
    assert all(r["auto_scheduled"] and r["parameters"]["mesh"] == MESH for r in scheduled)


def test_a_schedule_switched_off_in_the_ui_stays_off(
    prefect_server: PrefectServer, deployed: Deployed, tmp_path: Path
):
    path = f"/deployments/name/snapshot/snapshot-{MESH}"
    found = prefect_server.get(path)
    schedule = found["schedules"][0]
    httpx.patch(
        f"{prefect_server.url}/deployments/{found['id']}/schedules/{schedule['id']}",
        json={"active": False},
    ).raise_for_status()
    httpx.patch(
        f"{prefect_server.url}/deployments/{found['id']}", json={"description": "edited by hand"}
    ).raise_for_status()

    again = mesh(["deploy", "--mesh", str(deployed.topology)], prefect_server.environ)

    assert f"deployment      updated    snapshot-{MESH}" in again.stdout
    stands = prefect_server.get(path)
    assert stands["description"] != "edited by hand"
    assert [s["active"] for s in stands["schedules"]] == [False]
    httpx.patch(
        f"{prefect_server.url}/deployments/{found['id']}/schedules/{stands['schedules'][0]['id']}",
        json={"active": True},
    ).raise_for_status()


def test_block_documents_load_back(
    prefect_server: PrefectServer, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
):
    """As a worker does it: by name, from Prefect alone."""
    environ = prefect_server.environ | {"MESH_LAB_DIR": "/nonexistent"}

    found = mesh(["validate", MESH], environ, cwd=prefect_server.home)
    assert found.returncode == 2, "`mesh validate` reads files only"

    from prefect.settings import PREFECT_API_URL, temporary_settings

    from blocks.mesh import connect, load_mesh

    monkeypatch.chdir(prefect_server.home)
    with temporary_settings({PREFECT_API_URL: prefect_server.url}):
        loaded = load_mesh(MESH, environ={})
        with connect(loaded, environ={}, use_prefect=True) as connections:
            key = connections.aws("aws").secret_access_key
            token = connections.proxmox("proxmox", loaded.datacenters[1].cloud).token_value  # type: ignore[arg-type]

    folder = deployed.topology.parent
    assert [h.name for _, h in loaded.hosts()] == [
        h["name"] for d in topology()["datacenters"] for h in d["hosts"]
    ]
    assert loaded.vault.holders[0].path == str(folder / "a.key"), "a worker runs somewhere else"
    assert loaded.vault.snapshots.directory == str(folder / "snapshots")
    assert key is not None
    assert key.get_secret_value() == SECRETS["aws"]
    assert token is not None
    assert token.get_secret_value() == SECRETS["proxmox"]


def test_no_secret_shows(prefect_server: PrefectServer, deployed: Deployed):
    body = {"block_types": {"slug": {"any_": list(SLUGS)}}}
    masked = prefect_server.post("/block_documents/filter", body)
    names = {d["name"] for d in masked}

    assert names == {MESH, f"{MESH}-aws", f"{MESH}-hosts", f"{MESH}-proxmox"}
    assert not leaked(str(masked))
    # This would see them: asked for secrets, the API gives them out.
    shown = prefect_server.post("/block_documents/filter", body | {"include_secrets": True})
    assert leaked(str(shown)) == list(SECRETS)
    assert not leaked("".join(r.stdout + r.stderr for r in (deployed.first, deployed.second)))
    assert not leaked_below(prefect_server.home), "the database holds them encrypted"


def test_the_limit_that_runs_hold_exists(prefect_server: PrefectServer, deployed: Deployed):
    limit = prefect_server.get(f"/v2/concurrency_limits/mesh-{MESH}")

    assert (limit["limit"], limit["active"], limit["active_slots"]) == (1, True, 0)


def test_prefects_own_command_makes_the_same_of_the_file(
    prefect_server: PrefectServer, deployed: Deployed
):
    """Whoever knows Prefect uses `prefect deploy`: neither undoes what the other did."""
    program = Path(sys.executable).with_name("prefect")

    theirs = subprocess.run(
        [str(program), "--no-prompt", "deploy", "--all"],
        cwd=ROOT,
        env=prefect_server.environ | {"MESH": MESH},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    ours = mesh(["deploy", "--mesh", str(deployed.topology)], prefect_server.environ)

    assert theirs.returncode == 0, theirs.stdout + theirs.stderr
    assert "nothing changed" in ours.stdout


@pytest.mark.parametrize(
    ("url", "name", "said"),
    [
        ("", MESH, "PREFECT_API_URL is not set"),
        ("http://127.0.0.1:1/api", MESH, "127.0.0.1:1/api does not answer"),
        ("SERVER", "atlantis", "atlantis: no such mesh"),
        ("SERVER", "/nowhere/x.yaml", "there is no such topology file"),
    ],
)
def test_bad_input_is_one_line(
    prefect_server: PrefectServer, tmp_path: Path, url: str, name: str, said: str
):
    environ = environment(tmp_path, prefect_server.url if url == "SERVER" else url)

    result = mesh(["deploy", "--mesh", name], environ)

    assert result.returncode == 2
    assert result.stderr.startswith("mesh: ")
    assert said in result.stderr
    assert len(result.stderr.splitlines()) == 1
