"""What is read before any server is asked: prefect.yaml, the topology and the credentials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from blocks.aws import AwsAccount
from blocks.errors import BadInput, Forbidden, Transient
from blocks.meshes import MeshTopology, read_mesh
from blocks.proxmox import ProxmoxCluster
from blocks.ssh import HostAccess
from blocks.vault import AppRoleAuth, VaultCluster
from deployments import apply, prefect_documents, prefect_file, prefect_objects
from tests.deploy.server import MESH, SECRETS, leaked, write_topology

ENTRY: dict[str, Any] = {
    "name": "x-{{ $MESH }}",
    "entrypoint": "flows.snapshot.snapshot",
    "work_pool": {"name": "mesh"},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": ""}, "deployments[].name: missing"),
        ({"entrypoint": "flows/snapshot.py:snapshot"}, "must be a module's path"),
        ({"work_pool": {}}, "work_pool.name: missing"),
        ({"shedules": []}, "shedules: not known"),
        ({"tags": ["{{ $REGION }}"]}, "{{ $REGION }}: only $MESH is filled in"),
        ({"schedules": [{"cron": "0 2 * * *", "slug": "daily"}]}, "needs slug, cron and timezone"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path: Path, change: dict[str, Any], said: str):
    file = tmp_path / "prefect.yaml"
    file.write_text(yaml.safe_dump({"deployments": [ENTRY | change]}))

    with pytest.raises(BadInput) as refused:
        prefect_file.read("acme", file)

    assert any(said in line for line in refused.value.problems), refused.value.problems


def test_what_is_no_yaml_is_named_with_its_line(tmp_path: Path):
    file = tmp_path / "prefect.yaml"
    file.write_text("deployments:\n  - name: [\n")

    with pytest.raises(BadInput, match="line 3: not YAML"):
        prefect_file.read("acme", file)


def test_the_meshs_name_is_filled_in_everywhere():
    for declared in prefect_file.read("acme"):
        assert declared.name.endswith("-acme")
        assert declared.parameters["mesh"] == "acme"
        assert "$MESH" not in str(declared)


@pytest.mark.parametrize(
    "entrypoint", ["flows.snapshot.nothing", "flows.nowhere.x", "flows.run.Run"]
)
def test_an_entrypoint_that_leads_nowhere_is_refused(entrypoint: str):
    with pytest.raises(BadInput, match=entrypoint):
        prefect_objects.flow_of(entrypoint)


def test_each_credential_that_is_here_becomes_a_document(tmp_path: Path):
    mesh = read_mesh(write_topology(tmp_path))
    environ = {"MESH_VAULT_ROLE_ID": "r", "MESH_VAULT_SECRET_ID": "s"}

    documents, missing = prefect_documents.credential_documents(mesh, environ)

    found = dict(documents)
    assert missing == []
    assert list(found) == [f"{MESH}-{name}" for name in ("hosts", "vault", "aws", "proxmox")]
    vault, aws = found[f"{MESH}-vault"], found[f"{MESH}-aws"]
    assert isinstance(vault, VaultCluster)
    assert isinstance(vault.auth, AppRoleAuth)
    assert isinstance(aws, AwsAccount)
    assert aws.region == "us-east-1", "the topology knows it"
    assert isinstance(found[f"{MESH}-hosts"], HostAccess)
    assert isinstance(found[f"{MESH}-proxmox"], ProxmoxCluster)
    assert not leaked(repr(found))


def test_what_is_not_here_is_listed_and_vault_is_not_missed(tmp_path: Path):
    file = write_topology(tmp_path)
    (tmp_path / "credentials.yaml").unlink()

    documents, missing = prefect_documents.credential_documents(read_mesh(file), {})

    assert documents == []
    assert [name for name, _ in missing] == [f"{MESH}-{n}" for n in ("hosts", "aws", "proxmox")]


def test_half_a_credential_is_refused_and_not_shown(tmp_path: Path):
    file = write_topology(tmp_path)

    with pytest.raises(BadInput) as refused:
        prefect_documents.credential_documents(
            read_mesh(file), {"MESH_AWS_SECRET_ACCESS_KEY": SECRETS["aws"]}
        )

    assert "MESH_AWS_ACCESS_KEY_ID" in str(refused.value)
    assert not leaked(str(refused.value))


def test_relative_paths_of_the_topology_are_made_absolute(tmp_path: Path):
    """A worker starts each run in a fresh directory."""
    file = write_topology(tmp_path)
    document = yaml.safe_load(file.read_text())
    document["vault"]["ca_file"] = "pki/ca.pem"
    document["vault"]["consul_ca_file"] = "tls/ca.pem"  # on the hosts' disks, not here
    file.write_text(yaml.safe_dump(document))

    name, block = prefect_documents.topology_document(read_mesh(file))

    assert name == MESH
    assert isinstance(block, MeshTopology)
    vault = block.mesh().vault
    assert vault.ca_file == str(tmp_path / "pki/ca.pem")
    assert vault.consul_ca_file == "tls/ca.pem"
    assert [h.path for h in vault.holders] == [str(tmp_path / f"{n}.key") for n in "abc"]
    assert vault.snapshots.directory == str(tmp_path / "snapshots")


@pytest.mark.parametrize(
    ("status", "kind", "remedy"),
    [(401, Forbidden, "set PREFECT_API_AUTH_STRING"), (422, Transient, ""), (503, Transient, "")],
)
def test_what_the_api_answers_is_not_repeated(status: int, kind: type[Exception], remedy: str):
    """Its text may quote what was sent to it."""
    request = httpx.Request("POST", "http://prefect.example/api/block_documents/")
    answer = httpx.Response(status, request=request, text=f"input: {SECRETS['aws']}")

    with pytest.raises(kind) as raised, apply._told("http://prefect.example/api"):
        raise httpx.HTTPStatusError(answer.text, request=request, response=answer)

    assert f"/api/block_documents/: {status}" in str(raised.value)
    assert remedy in str(raised.value)
    assert not leaked(str(raised.value))
    assert raised.value.__suppress_context__
