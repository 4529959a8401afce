"""Which credentials a mesh gets from where, and what is said when there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import SecretStr

from blocks import documents
from blocks.aws import AwsAccount
from blocks.errors import BadInput, Forbidden, Invalid
from blocks.keys import FileStore
from blocks.keys_aws import AwsSecretStore
from blocks.keys_block import BlockStore
from blocks.keys_prompt import PromptStore
from blocks.mesh import Connections, connect, load_mesh
from blocks.meshes import MeshTopology
from blocks.topology import Mesh, ProxmoxCloud, parse
from blocks.vault import AppRoleAuth, CertificateAuth, TokenAuth
from tests.blocks import faults
from tests.blocks.faults import FaultServer

CANARY = "c4nary-credential-0123456789"

HOSTS = ["vault-1", "us-consul-1", "us-gateway-1"]

TOPOLOGY: dict[str, Any] = {
    "name": "acme",
    "primary": "us-east-1",
    "datacenters": [
        {
            "name": "us-east-1",
            "cloud": {"kind": "aws", "region": "us-east-1"},
            "hosts": [{"name": n, "address": f"192.0.2.{i}"} for i, n in enumerate(HOSTS, 1)],
            "consul": {
                "servers": ["us-consul-1"],
                "intermediate_pki_path": "connect-us",
                "ca_file": "pki/ca.pem",
            },
            "gateways": [{"host": "us-gateway-1", "lan": "192.0.2.3:8443", "wan": "w1:8443"}],
        },
        {
            "name": "eu-west-1",
            "cloud": {"kind": "proxmox", "address": "https://pve.example:8006"},
            "hosts": [
                {"name": "eu-consul-1", "address": "192.0.2.21"},
                {"name": "eu-gateway-1", "address": "192.0.2.22"},
            ],
            "consul": {"servers": ["eu-consul-1"], "intermediate_pki_path": "connect-eu"},
            "gateways": [{"host": "eu-gateway-1", "lan": "192.0.2.22:8443", "wan": "w2:8443"}],
        },
    ],
    "vault": {
        "nodes": ["vault-1"],
        "address": "https://vault.example:8200",
        "ca_file": "/etc/ca.pem",
        "holders": [
            {"name": "a", "store": "file", "path": "holders/a", "shares": 2},
            {"name": "b", "store": "aws-secrets-manager", "secret": "s", "connection": "vault-aws"},
            {"name": "c", "store": "block", "block": "acme-c"},
            {"name": "d", "store": "prompt"},
        ],
        "credential": {"name": "runbooks", "store": "file", "path": "runbooks.json"},
    },
}

WHOLE = {
    "MESH_AWS_ACCESS_KEY_ID": "AKIA",
    "MESH_AWS_SECRET_ACCESS_KEY": CANARY,
    "MESH_VAULT_AWS_ACCESS_KEY_ID": "AKIB",
    "MESH_VAULT_AWS_SECRET_ACCESS_KEY": CANARY,
    "MESH_PROXMOX_USER": "ops@pve",
    "MESH_PROXMOX_TOKEN_NAME": "runbooks",
    "MESH_PROXMOX_TOKEN_VALUE": CANARY,
    "MESH_HOSTS_PRIVATE_KEY": CANARY,
}

FILE = {
    "aws": {"access_key_id": "AKIF", "secret_access_key": CANARY},
    "vault-aws": {"profile": "vault"},
    "proxmox": {"user": "root@pam", "password": CANARY},
    "hosts": {"key_file": "id_ed25519", "user": "ops"},
}


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    """A mesh that was read from a file."""
    (tmp_path / "acme.yaml").write_text(yaml.safe_dump(TOPOLOGY))
    return load_mesh(str(tmp_path / "acme.yaml"), use_prefect=False)


def write_credentials(file: Path, content: Any, mode: int = 0o400) -> Path:
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    file.chmod(mode)
    return file


def aws_key(connections: Connections, name: str = "aws") -> str | None:
    return connections.aws(name).access_key_id


# The order of places


def test_the_environment_alone_is_enough(mesh: Mesh):
    with connect(mesh, environ=WHOLE) as connections:
        account, cluster = connections.aws("aws"), connections.proxmox("proxmox", pve_of(mesh))

    assert account.access_key_id == "AKIA"
    assert account.secret_access_key == SecretStr(CANARY)
    assert aws_key(connections, "vault-aws") == "AKIB"
    assert (cluster.user, cluster.token_name) == ("ops@pve", "runbooks")
    assert cluster.address == "https://pve.example:8006"


def pve_of(mesh: Mesh) -> ProxmoxCloud:
    cloud = mesh.datacenter("eu-west-1").cloud
    assert isinstance(cloud, ProxmoxCloud)
    return cloud


def test_the_file_beside_the_topology(mesh: Mesh, tmp_path: Path):
    write_credentials(tmp_path / "credentials.yaml", FILE)

    connections = connect(mesh, environ={})

    assert aws_key(connections) == "AKIF"
    assert connections.aws("vault-aws").profile == "vault"
    assert connections.proxmox("proxmox", pve_of(mesh)).password == SecretStr(CANARY)


def test_the_environment_goes_before_the_file(mesh: Mesh, tmp_path: Path):
    write_credentials(tmp_path / "credentials.yaml", FILE)
    environ = {k: v for k, v in WHOLE.items() if k.startswith("MESH_AWS")}

    assert aws_key(connect(mesh, environ=environ)) == "AKIA"


def test_a_named_file_goes_before_the_one_beside(mesh: Mesh, tmp_path: Path):
    write_credentials(tmp_path / "credentials.yaml", FILE)
    other = {**FILE, "aws": {"access_key_id": "AKIO", "secret_access_key": "x"}}
    named = write_credentials(tmp_path / "other.yaml", other)

    assert aws_key(connect(mesh, environ={"MESH_CREDENTIALS": str(named)})) == "AKIO"
    assert aws_key(connect(mesh, environ={}, credentials_file=named)) == "AKIO"


def test_prefect_goes_last_and_only_when_it_is_used(mesh: Mesh, prefect_api: str):
    account = AwsAccount(access_key_id="AKIP", secret_access_key=SecretStr(CANARY))
    documents.save(account, "acme-aws")
    environ = {k: v for k, v in WHOLE.items() if not k.startswith("MESH_AWS")}
    try:
        found = connect(mesh, environ=environ, use_prefect=True).aws("aws")
        assert found.access_key_id == "AKIP"
        assert found.secret_access_key == SecretStr(CANARY)
        assert aws_key(connect(mesh, environ=WHOLE, use_prefect=True)) == "AKIA"
        with pytest.raises(BadInput, match=r"acme-aws \(no Prefect API is in use\)"):
            connect(mesh, environ=environ, use_prefect=False)
    finally:
        documents.delete(AwsAccount, "acme-aws")


def test_a_prefect_api_that_fails_is_none_and_asked_once(mesh: Mesh, prefect_api: str):
    """It may be down with the mesh."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (
        FaultServer(faults.answer(403, b"no")) as server,
        temporary_settings({PREFECT_API_URL: f"{server.url}/api"}),
    ):
        assert aws_key(connect(mesh, environ=WHOLE, use_prefect=True)) == "AKIA"
        lines = problems(mesh, {}, use_prefect=True)
        asked = len(server.requests)

    assert all("(prefect: load block acme-hosts: 403" in line for line in lines)
    assert sum(b"/block_documents/" in request for request in server.requests) == asked <= 2


# What is said when they are missing or wrong


def problems(mesh: Mesh, environ: dict[str, str], **options: Any) -> list[str]:
    with pytest.raises(BadInput) as caught:
        connect(mesh, environ=environ, **options)
    assert CANARY not in str(caught.value)
    return caught.value.problems


def test_every_missing_credential_has_a_line_with_all_three_places(mesh: Mesh):
    lines = problems(mesh, {})

    assert [line.partition(":")[0] for line in lines] == ["hosts", "aws", "proxmox", "vault-aws"]
    assert lines[1] == (
        "aws: no credentials: neither (MESH_AWS_ACCESS_KEY_ID and MESH_AWS_SECRET_ACCESS_KEY or "
        "MESH_AWS_PROFILE or MESH_AWS_DEFAULT_CHAIN) in the environment, nor a credentials.yaml "
        "(MESH_CREDENTIALS), nor Prefect block acme-aws (no Prefect API is in use)"
    )


def test_the_file_is_named_when_there_is_one(mesh: Mesh, tmp_path: Path):
    file = write_credentials(tmp_path / "credentials.yaml", {"hosts": FILE["hosts"]})

    assert f"nor aws in {file}" in problems(mesh, {})[0]


def test_half_a_credential_is_named_and_never_completed_from_elsewhere(mesh: Mesh, tmp_path: Path):
    write_credentials(tmp_path / "credentials.yaml", FILE)

    assert problems(mesh, {"MESH_AWS_ACCESS_KEY_ID": "AKIA"}) == [
        "MESH_AWS_SECRET_ACCESS_KEY: is not set, though MESH_AWS_ACCESS_KEY_ID is"
    ]


def test_a_region_alone_is_no_credential(mesh: Mesh, tmp_path: Path):
    write_credentials(tmp_path / "credentials.yaml", FILE)

    assert aws_key(connect(mesh, environ={"MESH_AWS_REGION": "us-east-1"})) == "AKIF"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"aws": {"access_key_id": "A"}}, "aws.secret_access_key: is missing"),
        ({"aws": {"acces_key_id": CANARY}}, "acces_key_id: unknown field; did you mean access_key"),
        ({"aws": CANARY}, "aws: must be a mapping"),
        ({"aws": {"profile": [CANARY]}}, "aws.profile: must be a text"),
        ({"aws": {"default_chain": CANARY}}, "aws.default_chain"),
        ([CANARY], "must be a mapping"),
        (f"aws: {{x: {CANARY}", "not YAML"),
        (f"\t{CANARY}: [", "not YAML in line 1"),
    ],
)
def test_a_wrong_file_is_named_without_quoting_it(mesh: Mesh, tmp_path: Path, content, says):
    whole = {k: v for k, v in WHOLE.items() if not k.startswith("MESH_AWS")}
    write_credentials(tmp_path / "credentials.yaml", content)

    assert says in "\n".join(problems(mesh, whole))


@pytest.mark.parametrize("mode", [0o644, 0o440])
def test_a_file_that_others_may_read_is_refused(mesh: Mesh, tmp_path: Path, mode: int):
    file = write_credentials(tmp_path / "credentials.yaml", FILE, mode)

    assert problems(mesh, {}) == [f"{file}: mode {mode:04o}, must be 0400 or 0600"]


def test_a_named_file_that_is_not_there(mesh: Mesh, tmp_path: Path):
    assert problems(mesh, {"MESH_CREDENTIALS": "/nowhere/c.yaml"}) == [
        "MESH_CREDENTIALS=/nowhere/c.yaml: there is no such file"
    ]


def test_an_empty_file_is_as_good_as_none(mesh: Mesh, tmp_path: Path):
    write_credentials(tmp_path / "credentials.yaml", "")

    assert len(problems(mesh, {})) == 4


# What is made of them


def test_addresses_and_files_come_from_the_topology(mesh: Mesh, tmp_path: Path):
    connections = connect(mesh, environ=WHOLE)

    assert connections.vault().nodes == {"vault-1": "https://192.0.2.1:8200"}
    assert connections.vault().ca_file == "/etc/ca.pem"
    consul = connections.consul("us-east-1")
    assert consul.addresses == ["https://192.0.2.2:8501"] == [consul.address]
    assert consul.ca_file == str(tmp_path / "pki/ca.pem")
    assert consul.token is None


def test_each_is_made_once(mesh: Mesh):
    connections = connect(mesh, environ=WHOLE)
    holder = mesh.vault.holders[3]

    assert connections.vault() is connections.vault()
    assert connections.consul("us-east-1") is not connections.consul("eu-west-1")
    assert connections.hosts() is connections.hosts()
    assert connections.store(holder) is connections.store(holder)


def test_stores_by_their_kind(mesh: Mesh, tmp_path: Path):
    connections = connect(mesh, environ=WHOLE)
    a, b, c, d = (connections.store(holder) for holder in mesh.vault.holders)

    assert isinstance(a, FileStore)
    assert a.path == str(tmp_path / "holders/a")
    assert isinstance(b, AwsSecretStore)
    assert b.account is not None
    assert b.account.access_key_id == "AKIB"
    assert isinstance(c, BlockStore)
    assert c.document == "acme-c"
    assert isinstance(d, PromptStore)
    assert (d.holder, d.shares, d.fields) == ("d", 1, [])


def test_a_prompt_for_the_runbooks_own_credential_asks_for_its_fields():
    credential = {"name": "runbooks", "store": "prompt"}
    mesh = parse(TOPOLOGY | {"vault": TOPOLOGY["vault"] | {"credential": credential}})
    assert mesh.vault.credential is not None

    store = connect(mesh, environ=WHOLE).store(mesh.vault.credential)

    assert isinstance(store, PromptStore)
    assert (store.shares, store.fields) == (0, ["role_id", "secret_id"])


def auth_of(mesh: Mesh, **environ: str) -> Any:
    find = connect(mesh, environ={**WHOLE, **environ}).vault()._kept["credential"]
    return find()


def test_vaults_credential_is_read_from_its_store_when_it_is_there(mesh: Mesh, tmp_path: Path):
    connections = connect(mesh, environ=WHOLE)
    with pytest.raises(Forbidden, match="holds no credential"):
        connections.vault().login()
    assert mesh.vault.credential is not None
    connections.store(mesh.vault.credential).write({"role_id": "r", "secret_id": CANARY})

    auth = auth_of(mesh)

    assert isinstance(auth, AppRoleAuth)
    assert (auth.role_id, auth.secret_id) == ("r", SecretStr(CANARY))


def test_a_store_with_half_a_credential_is_invalid(mesh: Mesh):
    connections = connect(mesh, environ=WHOLE)
    assert mesh.vault.credential is not None
    connections.store(mesh.vault.credential).write({"role_id": "r"})

    with pytest.raises(Invalid, match="no role_id and secret_id"):
        auth_of(mesh)


def test_an_explicit_vault_credential_goes_first(mesh: Mesh, tmp_path: Path):
    assert isinstance(auth_of(mesh, MESH_VAULT_TOKEN=CANARY), TokenAuth)
    auth = auth_of(mesh, MESH_VAULT_ROLE_ID="r", MESH_VAULT_SECRET_ID="s", MESH_VAULT_MOUNT="m")
    assert isinstance(auth, AppRoleAuth)
    assert auth.mount == "m"
    auth = auth_of(mesh, MESH_VAULT_CERT_FILE="c.pem", MESH_VAULT_KEY_FILE="/k.pem")
    assert isinstance(auth, CertificateAuth)
    assert (auth.cert_file, auth.key_file) == (str(tmp_path / "c.pem"), "/k.pem")


def test_a_consul_token_for_when_vault_is_gone(mesh: Mesh):
    connections = connect(mesh, environ={**WHOLE, "MESH_CONSUL_TOKEN": CANARY})

    assert connections.consul("us-east-1").token == SecretStr(CANARY)


def test_no_connection_shows_a_secret(mesh: Mesh, tmp_path: Path):
    write_credentials(tmp_path / "credentials.yaml", FILE)
    connections = connect(mesh, environ={**WHOLE, "MESH_CONSUL_TOKEN": CANARY})
    made = [
        connections,
        connections._credentials,
        connections.aws("aws"),
        connections.proxmox("proxmox", pve_of(mesh)),
        connections.consul("us-east-1"),
        connections.vault(),
        connections.hosts(),
    ]

    for one in made:
        assert CANARY not in f"{one!r} {one}"


# Finding a topology


def test_a_topology_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for folder, name in [("named", "one"), (".lab", "two"), ("deployments/meshes", "three")]:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / f"{name}.yaml").write_text(yaml.safe_dump(TOPOLOGY | {"name": name}))
    (tmp_path / ".lab/mesh.yaml").write_text(yaml.safe_dump(TOPOLOGY | {"name": "lab"}))
    environ = {"MESH_TOPOLOGIES": str(tmp_path / "named")}

    for name in ("one", "two", "three", "lab"):
        found = load_mesh(name, environ=environ, use_prefect=False)
        assert found.name == name
        assert found.origin is not None
        assert found.origin.is_file()


def test_another_labs_topology(tmp_path: Path):
    (tmp_path / "mesh.yaml").write_text(yaml.safe_dump(TOPOLOGY | {"name": "lab"}))

    found = load_mesh("lab", environ={"MESH_LAB_DIR": str(tmp_path)}, use_prefect=False)

    assert found.origin == tmp_path / "mesh.yaml"


def test_an_unknown_mesh_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acme-prod.yaml").write_text("")

    with pytest.raises(BadInput) as caught:
        load_mesh("acme-prd", environ={"MESH_TOPOLOGIES": str(tmp_path)}, use_prefect=False)

    said = str(caught.value)
    assert said.startswith("acme-prd: no such mesh; did you mean acme-prod")
    for place in (f"{tmp_path}/acme-prd.yaml", ".lab/acme-prd.yaml", "deployments/meshes/acme"):
        assert place in said


def test_a_topology_of_the_prefect_api(prefect_api: str, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match="and Prefect block elsewhere"):
        load_mesh("elsewhere", environ={})
    documents.save(MeshTopology(document=TOPOLOGY | {"name": "elsewhere"}), "elsewhere")

    found = load_mesh("elsewhere", environ={})

    assert (found.name, found.origin) == ("elsewhere", None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "acme.yaml: not YAML"),
        ("[]", "acme.yaml: topology: must be a mapping"),
        ("name: acme", "acme.yaml: primary: field required"),
    ],
)
def test_a_wrong_topology_names_its_file(tmp_path: Path, content: str, says: str):
    file = tmp_path / "acme.yaml"
    file.write_text(content)

    with pytest.raises(BadInput) as caught:
        load_mesh(str(file))

    assert says in str(caught.value)


@pytest.mark.parametrize("name", ["/nowhere/x.yaml", "nowhere.yml", "a b", ""])
def test_neither_a_name_nor_a_file(name: str):
    with pytest.raises(BadInput):
        load_mesh(name, use_prefect=False)
