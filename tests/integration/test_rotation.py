"""Tokens that services read from Vault, replaced on the lab's real servers (R1-R12)."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.lab.layout import DATACENTERS, PRIMARY, SECONDARY
from tests.integration import changes
from tests.integration.tokens import POLICY, Consumer, Tokens, consuming, role, tokens
from tests.lab.machine import until

__all__ = ["tokens"]

pytestmark = pytest.mark.integration


def test_every_token_is_replaced_and_no_consumer_notices(tokens: Tokens):
    """R1, R2, R8, R12: consumers at 20 Hz in both datacenters; the old one is 403 in both."""
    mesh = tokens.declare(role(), keep=True)
    names = ["web-portal", "reporting-agent", "payments-eu", "payments"]
    roles = ",".join(names)
    changes.ends(tokens.rotate(mesh, roles=roles), 0, "verified")
    tokens.one_live(*names)
    before = {name: tokens.document(name) for name in names}

    consumers = [Consumer(tokens.lab, dc) for dc in DATACENTERS]
    with consuming(*consumers):
        ran = tokens.rotate(mesh, roles=names, older_than=0)

    changes.ends(ran, 0, "verified")
    for consumer in consumers:
        assert consumer.failures == []
        assert consumer.uses > 60
        assert consumer.accessors == [
            before["payments"]["accessor"],
            tokens.document()["accessor"],
        ]
    tokens.one_live(*names)
    for name in names:
        assert tokens.document(name)["accessor"] != before[name]["accessor"]
        assert [tokens.self_status(dc, before[name]["secret"]) for dc in DATACENTERS] == [403, 403]
    (local,) = [t for t in tokens.listed(SECONDARY).values() if t["Local"]]
    assert local["AccessorID"] == tokens.document("payments-eu")["accessor"]
    assert (ran.report["measures"]["promoted"], ran.report["measures"]["revoked"]) == (4, 4)

    # What was printed and written down holds no secret, of those before and of those now.
    secrets = [d["secret"] for d in before.values()] + [tokens.document(n)["secret"] for n in names]
    told = ran.out + ran.err + (tokens.lab.directory / "journal.jsonl").read_text()
    assert [s for s in secrets if s in told] == []

    again = tokens.rotate(mesh, roles=roles)
    changes.ends(again, 0, "nothing")
    assert again.mutating_calls == 0


def test_a_plan_changes_nothing(tokens: Tokens):
    options = {"roles": "web-portal,reporting-agent,payments-eu", "older_than": 0}
    ran = tokens.lab.run("token-rotation", options, plan=True)

    changes.ends(ran, 0, "planned")
    assert [row["action"] for row in ran.report["plan"]] == ["issue", "adopt"]
    assert ran.mutating_calls == 0
    assert tokens.listed() == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"may": ["kv read app/x", "kv read secret/y"], "may_not": ["acl read"]},
            "must be allowed",
        ),
        ({"may_not": ["kv read app/z"]}, "must be denied"),
        ({"may": ["service read web-portal"]}, "must be allowed"),
    ],
)
def test_a_proof_that_fails_leaves_the_old_token_and_nothing_else(
    tokens: Tokens, change: dict[str, Any], said: str
):
    """R3, R6: the new one never was anybody's, and is gone from Consul and Vault."""
    changes.ends(tokens.rotate(tokens.declare(role())), 0, "verified")
    before = tokens.document()

    ran = tokens.rotate(tokens.declare(role(**change)), older_than=0)

    changes.ends(ran, 1, "failed")
    assert "payments through prove" in ran.problem["details"][0]
    assert said in ran.problem["details"][0]
    assert tokens.document() == before
    assert list(tokens.listed()) == [before["accessor"]]
    assert [tokens.reads(dc, before["secret"]) for dc in DATACENTERS] == [True, True]


def test_a_role_without_its_policy_is_left_alone_and_others_are_not(tokens: Tokens):
    """R6, a human's mistake: refused if it is the only one, else named while others go on."""
    good = role("good")
    changes.ends(tokens.rotate(tokens.declare(role(), good)), 0, "verified")
    before, other = tokens.document(), tokens.document("good")
    wrong = role(policies=["rotation-test-nowhere"])

    mesh = tokens.declare(wrong, good)
    alone = tokens.rotate(mesh, older_than=0, roles="payments")
    both = tokens.rotate(mesh, older_than=0)

    changes.ends(alone, 3, "refused")
    assert alone.mutating_calls == 0
    assert "Consul has no ACL policy rotation-test-nowhere" in alone.problem["error"]
    changes.ends(both, 1, "failed")
    assert "payments can be rotated" in both.problem["details"][0]
    assert tokens.document() == before
    assert tokens.reads(SECONDARY, before["secret"])
    assert tokens.document("good")["accessor"] != other["accessor"]
    assert tokens.self_status(PRIMARY, other["secret"]) == 403


def test_a_vault_path_that_is_not_writable_changes_nothing_in_consul(tokens: Tokens):
    """Something else lies at the path: it is not written over, and no token is made."""
    vault = tokens.seen.token()
    body = {"data": {"password": "somebody else's"}, "options": {"cas": 0}}
    tokens.seen.vault("mesh/data/services/payments", vault, verb="POST", json=body)
    odd = {"data": {"accessor": 7, "secret": "x"}}
    tokens.seen.vault("mesh/data/services/odd", vault, verb="POST", json=odd)

    ran = tokens.rotate(tokens.declare(role("odd")))

    changes.ends(ran, 3, "refused")
    assert "cannot be read" in ran.problem["error"]
    assert tokens.listed() == {}
    assert tokens.document("odd") == {"accessor": 7, "secret": "x"}


@pytest.mark.parametrize("drift", ["put back", "report"])
def test_a_token_edited_by_hand_is_put_back_or_reported(tokens: Tokens, drift: str):
    mesh = tokens.declare(role(drift=drift))
    changes.ends(tokens.rotate(mesh), 0, "verified")
    held = tokens.document()
    edited = [{"Name": POLICY}, {"Name": "mesh-catalog-read"}]
    tokens.put(
        f"acl/token/{held['accessor']}",
        AccessorID=held["accessor"],
        Description="mine now",
        Policies=edited,
    )
    has = ["mesh-catalog-read", POLICY]
    until(lambda: policies_of(tokens, SECONDARY, held["accessor"]) == has, "replication")

    ran = tokens.rotate(mesh)

    changes.ends(ran, 0, "verified" if drift == "put back" else "nothing")
    assert "mesh-catalog-read" in ran.report["notices"][0]
    wanted = [POLICY] if drift == "put back" else has
    until(lambda: policies_of(tokens, SECONDARY, held["accessor"]) == wanted, "replication")
    assert policies_of(tokens, PRIMARY, held["accessor"]) == wanted
    assert tokens.document() == held


def policies_of(tokens: Tokens, dc: str, accessor: str) -> list[str]:
    found = tokens.seen.consul(tokens.server(dc), f"acl/token/{accessor}", tokens.management).json()
    return sorted(p["Name"] for p in found["Policies"] or [])


def test_a_consumer_that_falls_ill_gets_the_old_token_back_at_once(tokens: Tokens):
    """R2: the old one is armed again while the run goes on, and the next run ends it."""
    mesh = tokens.declare(role(soak_seconds=60))
    changes.ends(tokens.rotate(mesh), 0, "verified")
    before = tokens.document()
    process = tokens.lab.start(
        *tokens.lab.arguments("token-rotation", {"older_than": 0}), "--mesh", str(mesh)
    )
    until(lambda: not tokens.reads(PRIMARY, before["secret"]), "the old one to be disarmed", 30)
    with tokens.lab.frozen("eu-app-1", "payment-processor"):
        ran = tokens.lab.ended(process, timeout=50)

    changes.ends(ran, 1, "failed")
    assert ran.report["measures"]["failed"] == 1
    assert "payment-processor in eu-west-1 is not healthy on eu-app-1" in ran.problem["details"][0]
    assert [tokens.reads(dc, before["secret"]) for dc in DATACENTERS] == [True, True]
    new = tokens.document()
    assert new["previous"]["accessor"] == before["accessor"]
    assert tokens.reads(SECONDARY, new["secret"])

    again = tokens.rotate(mesh, soak=1)  # the consumer is given time to become well
    changes.ends(again, 0, "verified")
    tokens.one_live("payments")
    assert tokens.document()["accessor"] == new["accessor"]
    assert tokens.self_status(SECONDARY, before["secret"]) == 403


def test_orphans_go_and_tokens_of_others_stay(tokens: Tokens):
    """R12: a removed role's token is none any more; what somebody else made is named only."""
    mesh = tokens.declare(role(), role("removed"))
    changes.ends(tokens.rotate(mesh), 0, "verified")
    gone = tokens.document("removed")
    made = tokens.put("acl/token", Description="by hand", Policies=[{"Name": POLICY}]).json()
    until(lambda: tokens.self_status(SECONDARY, made["SecretID"]) == 200, "replication")
    try:
        left = tokens.rotate(tokens.declare(role()), soak=0)
        changes.ends(left, 0, "nothing")
        assert tokens.self_status(SECONDARY, gone["secret"]) == 200
        assert any("--set retire=removed" in notice for notice in left.report["notices"])

        ran = tokens.rotate(tokens.declare(role()), soak=0, retire="removed")

        changes.ends(ran, 0, "verified")
        assert [tokens.self_status(dc, gone["secret"]) for dc in DATACENTERS] == [403, 403]
        assert tokens.self_status(PRIMARY, made["SecretID"]) == 200
        assert any(made["AccessorID"] in notice for notice in ran.report["notices"])
        assert list(tokens.listed()) == [tokens.document()["accessor"]]
    finally:
        tokens.delete(f"acl/token/{made['AccessorID']}")


def test_what_a_person_revoked_by_hand_is_replaced_not_resurrected(tokens: Tokens):
    mesh = tokens.declare(role())
    changes.ends(tokens.rotate(mesh), 0, "verified")
    leaked = tokens.document()
    tokens.delete(f"acl/token/{leaked['accessor']}")
    until(lambda: tokens.self_status(SECONDARY, leaked["secret"]) == 403, "replication", 60)

    changes.ends(tokens.rotate(mesh), 0, "verified")

    tokens.one_live("payments")
    assert [tokens.self_status(dc, leaked["secret"]) for dc in DATACENTERS] == [403, 403]


def test_a_stop_in_the_soak_arms_the_old_token_again(tokens: Tokens):
    """Nobody would watch its consumers from then on; and two rotations never run at once."""
    mesh = tokens.declare(role(soak_seconds=60))
    changes.ends(tokens.rotate(mesh), 0, "verified")
    before = tokens.document()
    process = tokens.lab.start(
        *tokens.lab.arguments("token-rotation", {"older_than": 0}), "--mesh", str(mesh)
    )
    until(lambda: not tokens.reads(PRIMARY, before["secret"]), "the old one to be disarmed", 30)

    second = tokens.rotate(mesh, older_than=0)
    process.terminate()
    ran = tokens.lab.ended(process, timeout=30)

    changes.ends(second, 3, "refused")
    assert "another runbook holds the mesh: token-rotation" in second.problem["error"]
    changes.ends(ran, 1, "failed")
    assert tokens.reads(PRIMARY, before["secret"])
    until(lambda: tokens.reads(SECONDARY, before["secret"]), "replication")
    changes.ends(tokens.rotate(mesh, soak=0), 0, "verified")
    tokens.one_live("payments")


@pytest.mark.parametrize(
    ("host", "unit", "said"),
    [
        ("vault-1", "vault", "no node of Vault is active"),
        ("eu-consul-1", "consul", "no leader that serves"),
    ],
)
def test_nothing_is_rotated_while_a_server_is_down(tokens: Tokens, host: str, unit: str, said: str):
    """R10."""
    with tokens.lab.frozen(host, unit):
        ran = tokens.rotate(older_than=0)

    changes.ends(ran, 3, "refused")
    assert said in ran.problem["error"]
    assert ran.mutating_calls == 0
    assert tokens.lab.run("cold-boot").status == 0
    assert tokens.listed() == {}


@pytest.mark.parametrize("option", [{"roles": "nobody"}, {"batch_size": 0}])
def test_bad_input_is_refused_before_anything_is_asked(tokens: Tokens, option: dict[str, Any]):
    ran = tokens.rotate(**option)

    assert ran.status == 2, ran
    assert next(iter(option)) in ran.problem["error"]
