"""What holds for every block: Prefect's own checks, secrets, copies, and cheap imports."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import urllib.request
from typing import Any

import pytest
from prefect.blocks.core import Block
from prefect.testing.standard_test_suites.blocks import BlockStandardTestSuite
from pydantic import SecretStr

import blocks
from blocks import collection, documents
from blocks.vault import AppRoleAuth

CANARY = "c4nary-block-secret-0123456789"
ALL: list[type[Block]] = [getattr(blocks, name) for name in blocks.__all__]

# Every block that holds a secret, holding one.
HOLDING: list[Block] = [
    blocks.AwsAccount(
        access_key_id="a", secret_access_key=SecretStr(CANARY), session_token=SecretStr(CANARY)
    ),
    blocks.AwsSecretStore(
        account=blocks.AwsAccount(access_key_id="a", secret_access_key=SecretStr(CANARY))
    ),
    blocks.ConsulDatacenter(token=SecretStr(CANARY)),
    blocks.HostAccess(private_key=SecretStr(CANARY)),
    blocks.ProxmoxCluster(token_value=SecretStr(CANARY), password=SecretStr(CANARY)),
    blocks.ShareHolder(payload=SecretStr(CANARY)),
    blocks.VaultCluster(auth=AppRoleAuth(role_id="r", secret_id=SecretStr(CANARY))),
]


@pytest.mark.parametrize("block", ALL, ids=lambda block: block.__name__)
class TestAll(BlockStandardTestSuite):
    @pytest.fixture
    def block(self, block: type[Block]) -> type[Block]:
        return block

    # A logo would have to come from the internet.
    test_has_a_valid_image = None  # type: ignore[assignment]

    def test_its_fields_have_defaults(self, block: type[Block]) -> None:
        """Else a document that was stored before a field came could not be loaded."""
        assert block()

    def test_its_slug_is_its_own(self, block: type[Block]) -> None:
        slugs = [other.get_block_type_slug() for other in ALL]
        assert slugs.count(block.get_block_type_slug()) == 1


@pytest.mark.parametrize("block", HOLDING, ids=lambda block: type(block).__name__)
def test_secrets_do_not_show(block: Block):
    assert CANARY not in f"{block!r} {block} {block.model_dump()} {block.model_dump_json()}"


@pytest.mark.parametrize("block", HOLDING, ids=lambda block: type(block).__name__)
def test_secrets_are_known_to_prefect_as_such(block: Block):
    """It masks what the schema names, also in the middle of a nested model."""
    schema = type(block).model_json_schema()
    assert schema["secret_fields"]


@pytest.mark.parametrize("block", HOLDING, ids=lambda block: type(block).__name__)
def test_a_block_can_be_copied_and_pickled(block: Block):
    """Prefect does both on the way to a task."""
    for copied in (
        block.model_copy(),
        block.model_copy(deep=True),
        pickle.loads(pickle.dumps(block)),
    ):
        assert copied == block


def test_documents_come_back_whole_and_the_api_masks_their_secrets(prefect_api: str):
    for number, block in enumerate(HOLDING):
        name, slug = f"standard-{number}", type(block).get_block_type_slug()
        documents.save(block, name)

        found = documents.load(type(block), name)
        assert found is not None
        assert found.model_dump() == block.model_dump()

        url = f"{prefect_api}/block_types/slug/{slug}/block_documents/name/{name}"
        with urllib.request.urlopen(url) as answer:
            shown = answer.read().decode()
        assert name in shown
        assert CANARY not in shown, type(block).__name__


def test_the_collection_brings_them_all():
    """This is what Prefect and `prefect block register -m` import."""
    members = {
        name
        for name, member in inspect.getmembers(collection, inspect.isclass)
        if issubclass(member, Block)
    }
    assert members == set(blocks.__all__) == set(collection.__all__)


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="Nothing"):
        blocks.Nothing  # noqa: B018
    assert set(blocks.__all__) <= set(dir(blocks))


@pytest.mark.parametrize(
    ("imported", "absent"),
    [
        ("blocks.errors, blocks.topology", {"prefect", "httpcore", "boto3", "hvac", "paramiko"}),
        (
            "blocks.mesh, blocks.vault, blocks.consul, blocks.aws, blocks.proxmox, blocks.ssh",
            {"prefect", "boto3", "botocore", "hvac", "paramiko", "proxmoxer", "requests"},
        ),
    ],
)
def test_imports_cost_only_what_is_used(imported: str, absent: set[str]):
    program = (
        "import blocks.engine; blocks.engine.do_without_prefect()\n"
        f"import {imported}, sys, blocks\n"
        "print(*sys.modules)\n"
        "for name in blocks.__all__: assert getattr(blocks, name)().model_copy(deep=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert set(done.stdout.split()) & absent == set()


def test_errors_of_every_kind_survive_pickling():
    """Prefect pickles what leaves a flow."""
    from blocks import errors

    kinds: list[Any] = [
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, errors.MeshError) and kind is not errors.BadInput
    ]
    for kind in kinds:
        one = kind("said", where="there", remedy="this")
        assert str(pickle.loads(pickle.dumps(one))) == "there: said; do: this"
