"""Consul against a real agent with ACLs."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from blocks.consul import ConsulDatacenter, Version
from blocks.errors import BadAnswer, Forbidden, Invalid, Transient
from deployments.lab.binaries import consul
from tests.blocks import faults
from tests.blocks.conftest import free_address, running
from tests.blocks.faults import FaultServer

ROOT = str(uuid.uuid4())


@pytest.fixture(scope="module")
def dc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulDatacenter]:
    folder = tmp_path_factory.mktemp("consul")
    address = free_address()
    acl = f'acl {{ enabled = true default_policy = "deny" tokens {{ master = "{ROOT}" }} }}'
    command: list[str | Path] = [consul(), "agent", "-dev", f"-bind={address}"]
    command += [f"-client={address}", "-datacenter=us-east-1", "-disable-host-node-id"]
    command += [f"-hcl={acl}"]
    block = ConsulDatacenter(
        datacenter="us-east-1", address=f"http://{address}:8500", token=SecretStr(ROOT)
    )

    def ready() -> bool:
        with block.client(deadline=2) as api:
            return bool(api.get("/v1/acl/policies").json(list))

    for _ in running(command, folder / "log", ready):
        yield block


def test_it_speaks_as_its_token(dc: ConsulDatacenter):
    with dc.client() as api:
        assert api.get("/v1/status/leader").json(str).endswith(":8300")
        assert api.put("/v1/kv/x", content=b"1").json(bool) is True
        assert api.get("/v1/kv/x").json(list)[0]["Key"] == "x"
        assert api.get("/v1/kv/none").absent
        assert api.get("/v1/connect/intentions").json(list) == []


@pytest.mark.parametrize("token", [str(uuid.uuid4()), None], ids=["unknown", "none"])
def test_a_wrong_or_missing_token_is_forbidden(dc: ConsulDatacenter, token):
    other = dc.model_copy(update={"token": token and SecretStr(token)})

    with other.client() as api, pytest.raises(Forbidden) as caught:
        api.put("/v1/kv/x", content=b"1")

    assert str(token) not in str(caught.value)
    assert caught.value.where == "consul us-east-1"


def test_a_token_can_stand_in_for_the_blocks(dc: ConsulDatacenter):
    with dc.client() as api:
        made = api.put("/v1/acl/token", json={"Description": "weak"}).json(dict)
    with dc.client(token=SecretStr(made["SecretID"])) as api:
        assert api.get("/v1/acl/token/self").json(dict)["AccessorID"] == made["AccessorID"]
        with pytest.raises(Forbidden):
            api.get("/v1/acl/tokens")


def test_every_request_names_the_datacenter(dc: ConsulDatacenter):
    with dc.client(dc="eu-west-1") as api, pytest.raises(Transient, match="No path to datacenter"):
        api.get("/v1/catalog/nodes")
    with dc.model_copy(update={"datacenter": "eu-west-1"}).client(dc="") as api:
        assert len(api.get("/v1/catalog/nodes").json(list)) == 1


def test_bad_input_is_invalid_although_it_is_a_500(dc: ConsulDatacenter):
    """A repeat would change nothing."""
    with dc.client() as api:
        with pytest.raises(Invalid, match="500 Invalid Policy"):
            api.put("/v1/acl/policy", json={"Name": "no spaces allowed"})
        with pytest.raises(Invalid, match="400"):
            api.put("/v1/acl/policy", content=b"no json")


def test_version_and_edition_are_asked_once(dc: ConsulDatacenter, ledger):
    with dc.client() as api:
        version = dc.version(api)
        assert dc.version(api) is version

    assert version.number >= (1, 8, 0)
    assert not version.enterprise
    assert ledger.calls == 1


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"Config": {"Version": "1.15.2+ent"}}', Version((1, 15, 2), True)),
        (
            b'{"Config": {"Version": "1.18.1", "VersionMetadata": "ent"}}',
            Version((1, 18, 1), True),
        ),
        (b'{"Config": {"Version": "1.20.0-dev"}}', Version((1, 20, 0), False)),
    ],
)
def test_versions_of_other_agents(body, expected):
    with FaultServer(faults.answer(200, body)) as server:
        block = ConsulDatacenter(datacenter="x", address=server.url)
        with block.client() as api:
            assert block.version(api) == expected


@pytest.mark.parametrize("body", [b"{}", b'{"Config": null}', b'{"Config": {"Version": 1}}'])
def test_an_agent_without_a_version_is_a_bad_answer(body):
    with FaultServer(faults.answer(200, body)) as server:
        block = ConsulDatacenter(datacenter="x", address=server.url)
        with block.client() as api, pytest.raises(BadAnswer):
            block.version(api)
