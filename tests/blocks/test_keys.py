"""Where shares are kept: files, Secrets Manager, Prefect blocks."""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from blocks import calls, documents
from blocks.aws import AwsAccount
from blocks.errors import (
    BadInput,
    Forbidden,
    Invalid,
    MeshError,
    NotConverged,
    Refused,
    Unreachable,
)
from blocks.keys import FileStore, SecretStore
from blocks.keys_aws import AwsSecretStore
from blocks.keys_block import BlockStore, ShareHolder
from tests.blocks import faults
from tests.blocks.faults import FaultServer
from tests.blocks.test_http import within

CANARY = "c4nary-unseal-share-0123456789"
VALUE = {"state": "held", "shares": [CANARY], "threshold": 3}


@pytest.fixture
def file_store(tmp_path: Path) -> FileStore:
    return FileStore(path=str(tmp_path / "holders" / "ops-a.json"))


@pytest.fixture
def aws_store(aws: AwsAccount) -> AwsSecretStore:
    return AwsSecretStore(account=aws, secret=f"mesh/unseal/{uuid.uuid4()}", region="us-west-2")


@pytest.fixture
def block_store(prefect_api: str) -> BlockStore:
    return BlockStore(document=f"unseal-{uuid.uuid4()}")


@pytest.fixture(params=["file_store", "aws_store", "block_store"])
def store(request: pytest.FixtureRequest) -> SecretStore:
    made: SecretStore = request.getfixturevalue(request.param)
    return made


# What all kinds have in common


def test_nothing_is_there_until_something_is_written(store: SecretStore):
    assert store.read() is None
    store.write(VALUE)
    assert store.read() == VALUE
    store.write({"state": "other"})
    assert store.read() == {"state": "other"}


def test_a_probe_leaves_nothing_to_read(store: SecretStore):
    store.probe()
    store.probe(write=True)
    assert store.read() is None

    store.write(VALUE)
    store.probe(write=True)
    assert store.read() == VALUE


def test_what_is_not_read_back_is_an_error(store: SecretStore, monkeypatch: pytest.MonkeyPatch):
    found = iter([None, {"state": "held", "shares": ["other"]}])
    monkeypatch.setattr(type(store), "read", lambda self: next(found))
    if isinstance(store, FileStore):
        next(found)

    with pytest.raises(NotConverged) as caught:
        store.write(VALUE)

    assert CANARY not in str(caught.value)
    assert caught.value.where == store.where


def test_neither_store_nor_place_shows_a_secret(store: SecretStore):
    store.write(VALUE)

    assert CANARY not in f"{store!r} {store} {store.where}"


# Files


def test_a_file_is_only_for_its_owner(file_store: FileStore):
    file_store.write(VALUE)

    file = Path(file_store.path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o400
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert list(file.parent.iterdir()) == [file]
    file.chmod(0o600)
    assert file_store.read() == VALUE


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o700, 0o660, 0o444])
def test_a_file_that_others_could_read_is_refused(file_store: FileStore, mode: int):
    file_store.write(VALUE)
    Path(file_store.path).chmod(mode)

    for ask in (file_store.read, file_store.probe, lambda: file_store.probe(write=True)):
        with pytest.raises(Refused, match=rf"mode {mode:04o}, must be 0400") as caught:
            ask()
        assert "chmod 0400" in caught.value.remedy


def test_a_file_of_another_owner_is_refused(file_store: FileStore, monkeypatch):
    file_store.write(VALUE)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)

    with pytest.raises(Refused, match="belongs to uid"):
        file_store.read()


@pytest.mark.parametrize("content", ["[]", "no json", '"text"', ""])
def test_a_file_with_something_else_is_invalid_and_not_quoted(file_store: FileStore, content):
    file = Path(file_store.path)
    file.parent.mkdir()
    file.write_text(content)
    file.chmod(0o400)

    with pytest.raises(Invalid, match="something else than a JSON object") as caught:
        file_store.read()

    assert "no json" not in str(caught.value)


def test_a_folder_or_pipe_in_its_place_is_refused_at_once(file_store: FileStore):
    file = Path(file_store.path)
    file.parent.mkdir()
    os.mkfifo(file, 0o600)
    with within(0.1), pytest.raises(Refused, match="not a regular file"):
        file_store.read()


def test_a_folder_that_cannot_be_made_is_invalid(tmp_path: Path):
    (tmp_path / "plain").write_text("")
    store = FileStore(path=str(tmp_path / "plain" / "share"))

    with pytest.raises(MeshError):
        store.probe(write=True)
    with pytest.raises(MeshError):
        store.write(VALUE)


def test_a_write_that_fails_leaves_the_old_file(file_store: FileStore, monkeypatch):
    file_store.write(VALUE)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Invalid, match="no space left"):
        file_store.write({"state": "other"})
    monkeypatch.undo()

    assert file_store.read() == VALUE
    assert len(list(Path(file_store.path).parent.iterdir())) == 1


def test_a_store_without_a_place_is_bad_input():
    for store in (FileStore(), AwsSecretStore(), BlockStore()):
        with pytest.raises(BadInput):
            store.read()


# Secrets Manager


def test_a_repeat_after_a_lost_answer_adds_no_version(aws_store: AwsSecretStore, aws: AwsAccount):
    aws_store.write(VALUE)
    aws_store.write(VALUE)

    described = aws.secrets("us-west-2").describe(aws_store.secret)
    assert described is not None
    assert len(described.versions) == 1


def test_an_old_value_can_come_back(aws_store: AwsSecretStore):
    """AWS would take the repeat of a version's token for nothing to do."""
    for value in ({"n": 1}, {"n": 2}, {"n": 1}):
        aws_store.write(value)
        assert aws_store.read() == value


def test_a_role_without_the_right_is_forbidden_with_the_secrets_name():
    denied = faults.answer(400, b'{"__type": "AccessDeniedException", "message": "no"}')
    with FaultServer(denied) as server:
        account = AwsAccount(
            access_key_id="a", secret_access_key=SecretStr("b"), endpoint_url=server.url
        )
        store = AwsSecretStore(account=account, secret="mesh/unseal/ops-b", region="us-west-2")
        with pytest.raises(Forbidden, match="mesh/unseal/ops-b") as caught:
            store.probe()

    assert caught.value.where == "secretsmanager us-west-2"
    assert store.where == "AWS Secrets Manager us-west-2 mesh/unseal/ops-b"


def test_reading_changes_nothing(aws_store: AwsSecretStore, ledger: calls.Ledger):
    aws_store.read()
    aws_store.probe()

    assert ledger.mutating == []


# Prefect blocks


def test_a_block_is_masked_by_prefect(block_store: BlockStore):
    block_store.write(VALUE)

    found = documents.load(ShareHolder, block_store.document)
    assert found is not None
    assert CANARY not in f"{found!r} {found}"
    documents.delete(ShareHolder, block_store.document)
    documents.delete(ShareHolder, block_store.document)
    assert block_store.read() is None


def test_without_a_prefect_api_it_is_refused(monkeypatch: pytest.MonkeyPatch):
    """Else Prefect would start a server and a database of its own."""
    monkeypatch.setattr(documents, "reachable", lambda: False)

    with pytest.raises(Refused, match="no Prefect API"):
        BlockStore(document="x").read()


def test_a_prefect_api_that_hangs_costs_no_more_than_the_deadline(prefect_api: str):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with (
        FaultServer(faults.hang) as server,
        temporary_settings({PREFECT_API_URL: f"{server.url}/api"}),
        within(0.8),
        pytest.raises(Unreachable),
    ):
        documents.load(ShareHolder, "x", deadline=0.8)


def test_errors_of_prefect_are_ours(prefect_api: str):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    def denied(connection: Any, request: bytes) -> None:
        faults.answer(403, CANARY.encode())(connection, request)

    with (
        FaultServer(denied) as server,
        temporary_settings({PREFECT_API_URL: f"{server.url}/api"}),
        pytest.raises(Forbidden) as caught,
    ):
        documents.load(ShareHolder, "x")
    assert CANARY not in str(caught.value)


def test_documents_of_all_blocks_come_back_with_their_secrets(prefect_api: str):
    name = f"aws-{uuid.uuid4()}"
    documents.save(AwsAccount(access_key_id="a", secret_access_key=SecretStr(CANARY)), name)

    found = documents.load(AwsAccount, name)

    assert found is not None
    assert found.secret_access_key is not None
    assert found.secret_access_key.get_secret_value() == CANARY
