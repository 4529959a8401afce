"""Vault's Consul secrets engine under rotation, on real servers behind the lab's facade."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.lab.layout import DATACENTERS, PRIMARY, SECONDARY
from tests.harness.lab import Lab
from tests.integration import changes
from tests.integration.engine import ACCESS, BOTH, ROLE, Engine, Leased
from tests.integration.tokens import consuming
from tests.lab.machine import until

pytestmark = pytest.mark.integration


@pytest.fixture
def engine(healthy: Lab) -> Iterator[Engine]:
    """A healthy lab whose engine works with a token of the runbooks' own; tidy afterwards."""
    engine = Engine(healthy)
    engine.tidy()
    changes.ends(engine.rotate(roles=BOTH), 0, "verified")
    yield engine
    engine.tidy()


def declared(engine: Engine, **change: Any) -> Path:
    """The lab's topology with its role of the engine changed."""

    def vary(document: dict[str, Any]) -> None:
        (role,) = [t for t in document["tokens"] if t["role"] == ROLE]
        role |= change

    return changes.variant(engine.lab, vary, "dynamic")


def test_the_access_token_is_replaced_and_no_consumer_of_a_lease_notices(engine: Engine):
    """R1, R2, R8: leases in both datacenters at 20 Hz; those issued before the run are over."""
    before = engine.held()
    engine.as_it_should_be()
    consumers = [Leased(engine, dc) for dc in DATACENTERS]
    with consuming(*consumers):
        leased = engine.leases()
        ran = engine.rotate(older_than=0, roles=BOTH)
        left = engine.leases()

    changes.ends(ran, 0, "verified")
    assert [c.failures for c in consumers] == [[], []]
    assert all(c.uses > 60 for c in consumers)
    assert leased
    assert not set(leased) & set(left)
    assert left
    engine.as_it_should_be()
    now = engine.held()
    assert now["accessor"] != before["accessor"]
    assert [engine.self_status(dc, before["secret"]) for dc in DATACENTERS] == [403, 403]
    told = ran.out + ran.err + (engine.lab.directory / "journal.jsonl").read_text()
    assert [s for s in (before["secret"], now["secret"]) if s in told] == []
    assert any("facade" in notice for notice in ran.report["notices"])

    again = engine.rotate(roles=BOTH)
    changes.ends(again, 0, "nothing")
    assert again.mutating_calls == 0


def test_a_vault_without_the_engine_is_refused_in_one_line(engine: Engine):
    """OpenBao itself, past the facade."""
    before = engine.held()

    ran = engine.rotate(declared(engine, engine_address=""), older_than=0, roles=BOTH)

    changes.ends(ran, 3, "refused")
    assert "this Vault has no Consul secrets engine at consul/" in ran.problem["error"]
    assert ran.mutating_calls == 0
    assert engine.held() == before


def test_a_role_edited_in_vault_is_put_back(engine: Engine):
    with engine.seen.root() as root:
        body = {"consul_policies": ["mesh-catalog-read", "global-management"], "ttl": "768h"}
        engine.ask(f"consul/roles/{ROLE}", root, verb="POST", json=body)

    ran = engine.rotate(roles=BOTH)

    changes.ends(ran, 0, "verified")
    kept = engine.ask(f"consul/roles/{ROLE}").json()["data"]
    assert (kept["consul_policies"], kept["ttl"]) == (["mesh-catalog-read"], 10)
    assert engine.leases() == engine.minted() == []  # what was minted to prove it is given back


def test_a_role_that_grants_otherwise_than_declared_fails_and_leaves_nothing(engine: Engine):
    """R3: the engine's access token is replaced all the same; it is not the one to blame."""
    before = engine.held()

    ran = engine.rotate(declared(engine, may=["operator read"]), older_than=0, roles=BOTH)

    changes.ends(ran, 1, "failed")
    assert f"{ROLE} through mint" in ran.problem["details"][0]
    assert "is denied `operator read`, which must be allowed" in ran.problem["details"][0]
    assert engine.leases() == engine.minted() == []
    engine.as_it_should_be()
    assert engine.held()["accessor"] != before["accessor"]


@pytest.mark.parametrize("where", ["nobody listens", "no consul"])
def test_an_engine_that_cannot_mint_gets_its_token_and_address_back(engine: Engine, where: str):
    """R6: a wrong address, declared by mistake; its consumers get credentials all the same."""
    before = engine.held()
    address = (
        "127.0.0.1:9" if where == "nobody listens" else f"{engine.lab.layout.vault_balancer}:8200"
    )

    ran = engine.rotate(declared(engine, consul_address=address), older_than=0, roles=BOTH)

    changes.ends(ran, 1, "failed")
    assert engine.ask(f"consul/creds/{ROLE}").status_code == 200
    now = engine.held()
    assert now["accessor"] == before["accessor"]
    assert before["accessor"] in engine.access()
    if where == "no consul":  # it says so; that nobody listens may pass, and the next run goes on
        assert f"{ACCESS} through configure" in ran.problem["details"][0]
        assert (now, engine.access()) == (before, [before["accessor"]])
    changes.ends(engine.rotate(roles=BOTH), 0, "verified" if "pending" in now else "nothing")
    engine.as_it_should_be()


def test_a_minted_token_without_a_lease_is_found_and_ended(engine: Engine):
    """As after a restored Vault; one with a lease is nobody's business, in the audit too."""
    made = int((time.time() - 3600) * 1e9)
    policies = [{"Name": "mesh-catalog-read"}]
    text = f"Vault {ROLE} approle {made}"
    lost = engine.put("acl/token", Description=text, Policies=policies).json()
    until(lambda: engine.self_status(SECONDARY, lost["SecretID"]) == 200, "replication")

    audit = engine.lab.run("token-audit")
    leased = engine.ask(f"consul/creds/{ROLE}").json()["data"]
    ran = engine.rotate(soak=0, roles=BOTH)

    found = [c for c in audit.report["checks"] if not c["ok"]]
    assert [c["name"] for c in found] == ["orphan"]
    assert lost["AccessorID"] in found[0]["detail"]
    changes.ends(ran, 0, "verified")
    assert [engine.self_status(dc, lost["SecretID"]) for dc in DATACENTERS] == [403, 403]
    assert engine.self_status(PRIMARY, leased["token"]) == 200
    after = engine.lab.run("token-audit")
    assert [c for c in after.report["checks"] if not c["ok"]] == []
