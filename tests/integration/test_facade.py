"""The lab's facade of Vault's Consul secrets engine: OpenBao behind it, and leases that end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from deployments.lab.layout import PRIMARY
from tests.harness.lab import Lab
from tests.integration import changes
from tests.integration.engine import BOTH, ROLE, Engine
from tests.lab.machine import until

pytestmark = pytest.mark.integration
WARNED = "answered by the lab's facade: OpenBao has no Consul secrets engine"
SHORT = "short"  # a role whose leases are soon over


@pytest.fixture(scope="module")
def engine(small_lab: Lab) -> Iterator[Engine]:
    """The engine with an access token, and a root token of Vault's to try it with."""
    changes.HEALTHY.discard(small_lab.directory)
    small_lab.boot()
    engine = Engine(small_lab)
    changes.ends(engine.rotate(roles=BOTH), 0, "verified")
    yield engine
    engine.tidy()


@pytest.fixture
def root(engine: Engine) -> Iterator[str]:
    with engine.seen.root() as token:
        body = {"consul_policies": "mesh-catalog-read", "ttl": "2s", "max_ttl": "4s"}
        assert engine.ask(f"consul/roles/{SHORT}", token, verb="POST", json=body).is_success
        yield token
        engine.ask(f"consul/roles/{SHORT}", token, verb="DELETE")


def credential(engine: Engine, root: str, role: str = SHORT) -> dict[str, Any]:
    answer = engine.ask(f"consul/creds/{role}", root)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    assert status(engine, found) == 200
    return found


def status(engine: Engine, found: dict[str, Any]) -> int:
    return engine.self_status(PRIMARY, found["data"]["token"])


def lookup(engine: Engine, root: str, found: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    body = {"lease_id": found["lease_id"]}
    answer = engine.ask("sys/leases/lookup", root, verb="PUT", json=body)
    return answer.status_code, answer.json()


def test_it_passes_openbao_through_and_says_what_it_is(engine: Engine, root: str):
    mounts = engine.ask("sys/mounts", root)
    behind = engine.seen.vault("sys/mounts", root)
    kept = engine.ask("mesh/data/consul/bootstrap", root)
    own = engine.ask("consul/config/access", root)

    assert mounts.headers["server"] == own.headers["server"] == "mesh-lab-facade"
    assert mounts.json()["warnings"] == own.json()["warnings"] == [WARNED]
    extra = mounts.json()["data"].pop("consul/")
    assert extra["type"] == "consul"
    assert "facade" in extra["description"]
    assert mounts.json()["data"].keys() - {"consul/"} == behind.json()["data"].keys()
    assert (
        kept.json()["data"] == engine.seen.vault("mesh/data/consul/bootstrap", root).json()["data"]
    )
    assert engine.ask("no/such/path", root).status_code == 404
    assert set(own.json()["data"]) == {"address", "scheme"}
    assert "facade" in engine.lab.mesh("lab", "status").out


def test_who_may_what_is_openbaos_to_say(engine: Engine, root: str):
    body = {"policies": ["default"], "ttl": "60s"}
    made = engine.ask("auth/token/create", root, verb="POST", json=body).json()
    nobody = made["auth"]["client_token"]
    asked = [
        engine.ask(f"consul/creds/{ROLE}", nobody),
        engine.ask(
            "consul/config/access", nobody, verb="POST", json={"address": "x", "token": "y"}
        ),
        engine.ask(f"sys/leases/lookup/consul/creds/{ROLE}", nobody, verb="LIST"),
        engine.ask(f"consul/creds/{SHORT}"),  # the runbooks' own policy names its role alone
        engine.ask(f"consul/creds/{ROLE}", "no-token-at-all"),
    ]

    assert [answer.status_code for answer in asked] == [403] * len(asked)


def test_a_lease_ends_by_itself_and_its_token_with_it(engine: Engine, root: str):
    found = credential(engine, root)
    code, seen = lookup(engine, root, found)
    assert (code, found["lease_duration"], seen["data"]["renewable"]) == (200, 2, True)

    began = time.monotonic()
    until(lambda: status(engine, found) == 403, "the token to be gone", 6)

    assert time.monotonic() - began > 1.0
    assert lookup(engine, root, found) == (400, {"warnings": [WARNED], "errors": ["invalid lease"]})


def test_a_renewed_lease_lives_on_and_never_beyond_its_most(engine: Engine, root: str):
    found = credential(engine, root)
    began = time.monotonic()
    body = {"lease_id": found["lease_id"]}
    while time.monotonic() - began < 3.0:
        renewed = engine.ask("sys/leases/renew", root, verb="PUT", json=body)
        assert renewed.status_code == 200
        assert status(engine, found) == 200
        time.sleep(0.3)

    until(
        lambda: engine.ask("sys/leases/renew", root, verb="PUT", json=body).status_code == 400,
        "the lease to be over",
        5,
    )
    until(lambda: status(engine, found) == 403, "the token to be gone", 5)
    assert time.monotonic() - began < 6


@pytest.mark.parametrize("how", ["revoke", "prefix", "asker", "asker ends"])
def test_a_lease_can_be_ended(engine: Engine, root: str, how: str):
    ttl = "2s" if how == "asker ends" else "60s"  # the leases are of ten
    made = engine.ask("auth/token/create", root, verb="POST", json={"ttl": ttl}).json()
    asker = made["auth"]["client_token"]
    found, other = credential(engine, asker, ROLE), credential(engine, root, ROLE)
    if how == "revoke":
        body = {"lease_id": found["lease_id"], "sync": True}
        engine.ask("sys/leases/revoke", root, verb="PUT", json=body)
    elif how == "prefix":
        engine.ask(f"sys/leases/revoke-prefix/consul/creds/{ROLE}", root, verb="PUT")
    elif how == "asker":
        engine.ask("auth/token/revoke-self", asker, verb="POST")

    until(lambda: status(engine, found) == 403, "the token to be gone", 5)
    assert lookup(engine, root, found)[0] == 400
    assert status(engine, other) == (403 if how == "prefix" else 200)


def test_it_loses_nothing_when_it_is_killed(engine: Engine, root: str):
    found, short = credential(engine, root, ROLE), credential(engine, root)

    engine.kill()

    assert lookup(engine, root, found)[0] == 200
    assert status(engine, found) == 200
    until(lambda: status(engine, short) == 403, "the short one to end in time", 6)
    assert engine.ask(f"consul/roles/{ROLE}").json()["data"]["ttl"] == 10
    body = {"lease_id": found["lease_id"]}
    engine.ask("sys/leases/revoke", root, verb="PUT", json=body)
    assert status(engine, found) == 403
    assert status(engine, credential(engine, root)) == 200
