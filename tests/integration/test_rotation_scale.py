"""A hundred roles at once: batches, what is told of them, a stop in the middle, and what Vault says."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from blocks.errors import Invalid, NotConverged
from blocks.mesh import Connections, connect, load_mesh
from deployments.lab.layout import DATACENTERS
from tasks import token_store
from tasks.planning.tokens_seen import Slots
from tasks.token_clients import at_work
from tasks.token_store import Document, Held
from tests.integration import changes
from tests.integration.tokens import Tokens, role, tokens
from tests.lab.machine import until

__all__ = ["tokens"]

pytestmark = pytest.mark.integration

COUNT, BATCH = 90, 30
NAMES = [f"many-{number:03}" for number in range(COUNT)]


def declared(tokens: Tokens, **more: Any) -> Path:
    quick = {"overlap_seconds": 0, "soak_seconds": 0} | more
    return tokens.declare(*(role(name, **quick) for name in NAMES))


def items(report: dict[str, Any]) -> dict[str, dict[str, str]]:
    with Path(report["links"]["items"]).open(newline="") as stream:
        return {row["item"]: row for row in csv.DictReader(stream)}


def test_many_roles_go_in_batches_and_each_is_told_of(tokens: Tokens):
    """One live token a role; a short journal; a table with each, and no secret in either."""
    mesh = declared(tokens)
    issued = changes.ends(tokens.rotate(mesh, batch_size=BATCH), 0, "verified")
    before = {name: tokens.document(name) for name in NAMES}

    ran = changes.ends(tokens.rotate(mesh, batch_size=BATCH, older_than=0), 0, "verified")

    tokens.one_live(*NAMES)
    after = {name: tokens.document(name) for name in NAMES}
    assert ran.report["measures"]["promoted"] == ran.report["measures"]["revoked"] == COUNT
    # Three batches, four kinds of change, and each of them counted.
    assert len(ran.report["changes"]) == 12
    assert sum(change["times"] for change in ran.report["changes"]) == 4 * COUNT
    assert len((tokens.lab.directory / "journal.jsonl").read_text().splitlines()[-1]) < 10_000

    told = items(ran.report)
    assert {row["outcome"] for row in told.values()} == {"done"}
    assert {n: row["before"] for n, row in told.items()} == {
        n: before[n]["accessor"] for n in NAMES
    }
    assert {n: row["after"] for n, row in told.items()} == {n: after[n]["accessor"] for n in NAMES}
    assert {row["after"] for row in items(issued.report).values()} == {
        before[name]["accessor"] for name in NAMES
    }
    said = ran.out + ran.err + Path(ran.report["links"]["items"]).read_text()
    secrets = [document["secret"] for document in (*before.values(), *after.values())]
    assert [secret for secret in secrets if secret in said] == []


def test_calls_a_token_do_not_grow(tokens: Tokens):
    """20 for a whole cycle with three proofs, beside what workers open and a wait asks."""
    mesh = declared(tokens)
    changes.ends(tokens.rotate(mesh), 0, "verified")

    how = {"older_than": 0, "max_in_flight": 8}
    one = changes.ends(tokens.rotate(mesh, **how, roles=NAMES[0]), 0, "verified")
    ran = changes.ends(tokens.rotate(mesh, **how), 0, "verified")

    more = ran.report["measures"]["calls"] - one.report["measures"]["calls"]
    assert 20 <= more / (COUNT - 1) < 23


def test_a_rotation_of_many_that_is_stopped_goes_on_where_it_was(tokens: Tokens):
    """SIGTERM among a hundred: what was begun is said, works, and the next run ends it."""
    mesh = declared(tokens)
    changes.ends(tokens.rotate(mesh), 0, "verified")
    before = {name: tokens.document(name) for name in NAMES}
    process = tokens.lab.start(
        *tokens.lab.arguments("token-rotation", {"older_than": 0, "batch_size": BATCH}),
        "--mesh",
        str(mesh),
    )
    # In the second batch: one is through, one is under way, one was not begun.
    second = NAMES[BATCH : 2 * BATCH]
    until(lambda: any("pending" in tokens.document(n) for n in second), "the second batch", 60)
    process.terminate()
    ran = changes.ends(tokens.lab.ended(process, timeout=30), 1, "failed")

    told = items(ran.report)
    assert {told[name]["outcome"] for name in NAMES[:BATCH]} == {"done"}
    assert {told[name]["outcome"] for name in second} == {"cut short"}
    assert {told[name]["outcome"] for name in NAMES[2 * BATCH :]} == {"not begun"}
    for name in NAMES[::10]:  # what consumers read works everywhere
        secret = tokens.document(name)["secret"]
        assert [tokens.self_status(dc, secret) for dc in DATACENTERS] == [200, 200]

    changes.ends(tokens.rotate(mesh), 0, "verified")
    tokens.one_live(*NAMES)
    for name in NAMES[:BATCH]:  # those that were through were not replaced again
        assert tokens.document(name)["accessor"] == told[name]["after"]
    assert all(
        tokens.document(name)["accessor"] == before[name]["accessor"] for name in NAMES[2 * BATCH :]
    )


@pytest.fixture
def connections(tokens: Tokens) -> Iterator[Connections]:
    with connect(load_mesh(str(tokens.lab.directory / "mesh.yaml"))) as made:
        yield made


def test_a_document_is_written_once_by_whoever_saw_it_last(
    tokens: Tokens, connections: Connections
):
    """One call a write: a lost answer is found, and somebody else's write is not written over."""
    mesh, path = connections.topology, "services/many-odd"
    mine = Slots(Held("a", SecretStr("first")))
    other = Slots(Held("b", SecretStr("second")))
    with at_work(connections, SecretStr(tokens.management)) as clients:
        written = token_store.write(clients.vault, mesh, path, Document(), mine)
        again = token_store.write(clients.vault, mesh, path, Document(), mine)
        with pytest.raises(Invalid):
            token_store.write(clients.vault, mesh, path, Document(), other)
        token_store.require_readable(clients.vault, mesh, path, written)

        assert written == again == token_store.read(clients.vault, mesh, path)

        token_store.write(clients.vault, mesh, path, written, other)
        with pytest.raises(NotConverged, match="reads back otherwise"):
            token_store.require_readable(clients.vault, mesh, path, written)
