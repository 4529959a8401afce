"""A rotation on a mesh on which a person took something away: nothing is left half-done (R6, R10)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from deployments.lab.layout import DATACENTERS, SECONDARY
from tests.integration import changes
from tests.integration.test_rotation import tokens
from tests.integration.tokens import Tokens, role
from tests.lab.machine import until

__all__ = ["tokens"]

pytestmark = pytest.mark.integration

PAYMENTS = 'path "mesh/data/services/payments" {{ capabilities = ["{}"] }}\n'


@contextmanager
def denied(tokens: Tokens, rules: str) -> Iterator[None]:
    """The runbooks' AppRole is denied something in Vault for a while."""
    path = "sys/policies/acl/mesh-runbooks"
    with tokens.seen.root() as root:
        sound = tokens.seen.vault(path, root).json()["data"]["policy"]

        def write(policy: str) -> None:
            made = tokens.seen.vault(path, root, verb="PUT", json={"policy": policy})
            assert made.status_code == 204, made.text

        write(sound + rules)
        try:
            yield
        finally:
            write(sound)


def test_a_path_that_may_not_be_written_leaves_its_role_as_it_is(tokens: Tokens):
    """It is tried before Consul learns of a token; roles beside it are rotated."""
    mesh = tokens.declare(role(), role("good"))
    changes.ends(tokens.rotate(mesh), 0, "verified")
    before, good = tokens.document(), tokens.document("good")

    with denied(tokens, PAYMENTS.format("read")):
        ran = tokens.rotate(mesh, older_than=0)

    changes.ends(ran, 1, "failed")
    (line,) = ran.problem["details"]
    assert line.startswith("payments through store: vault: ")
    assert "mesh/data/services/payments may not be written" in line
    assert "create and update" in line.partition("; do: ")[2]
    assert "1 of 2 roles failed" in ran.problem["stands"]
    assert tokens.document() == before
    assert [tokens.reads(dc, before["secret"]) for dc in DATACENTERS] == [True, True]
    assert tokens.document("good")["accessor"] != good["accessor"]
    tokens.one_live("payments", "good")
    changes.ends(tokens.rotate(mesh, older_than=0, roles="payments"), 0, "verified")
    assert tokens.document()["accessor"] != before["accessor"]


def test_a_path_that_may_not_be_read_is_refused_before_anything_is_changed(tokens: Tokens):
    mesh = tokens.declare(role())
    changes.ends(tokens.rotate(mesh), 0, "verified")
    before = tokens.document()

    with denied(tokens, PAYMENTS.format("deny")):
        ran = tokens.rotate(mesh, older_than=0)

    changes.ends(ran, 3, "refused")
    assert ran.mutating_calls == 0
    assert "what Vault keeps at services/payments cannot be read" in ran.problem["error"]
    assert ran.problem["do"]
    assert tokens.document() == before
    tokens.one_live("payments")


def test_nothing_is_rotated_while_replication_is_stale(tokens: Tokens):
    """R10: its token lost its policies; a cold boot gives them back, and the next run rotates."""
    mesh = tokens.declare(role())
    changes.ends(tokens.rotate(mesh), 0, "verified")
    before = tokens.document()
    kept = tokens.seen.secret(f"consul/tokens/replication-{SECONDARY}")
    path = f"acl/token/{kept['accessor']}"
    entry = tokens.seen.consul("us-consul-1", path, tokens.management).json()
    tokens.put(path, **entry | {"Policies": []})
    late = tokens.put("acl/token", Description="made meanwhile").json()
    try:
        ran = tokens.rotate(mesh, older_than=0)
        healed = tokens.lab.run("cold-boot")
    finally:
        tokens.delete(f"acl/token/{late['AccessorID']}")

    changes.ends(ran, 3, "refused")
    assert ran.mutating_calls == 0
    assert "ACL replication is stale" in ran.problem["error"]
    assert ran.problem["where"] == SECONDARY
    assert "replication token" in ran.problem["do"]
    assert tokens.document() == before
    assert [tokens.reads(dc, before["secret"]) for dc in DATACENTERS] == [True, True]
    changes.ends(healed, 0, "verified")
    until(lambda: tokens.self_status(SECONDARY, late["SecretID"]) == 403, "replication")
    changes.ends(tokens.rotate(mesh, older_than=0), 0, "verified")
    tokens.one_live("payments")
