"""Consul's own Vault token, replaced on the lab's real servers while leaves are signed."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr

from deployments.lab.layout import DATACENTERS, PRIMARY, SECONDARY
from tasks import vault_setup
from tasks.ca_role import NAME, ROLE, RULES, wanted
from tasks.vault_setup import ca_policy, runbook_policy
from tests.harness.lab import Lab, Ran
from tests.integration import changes
from tests.integration.ca_tokens import ROLE_NAME, CaTokens, fetching
from tests.lab.machine import until

pytestmark = pytest.mark.integration

RUNBOOKS = "sys/policies/acl/mesh-runbooks"


@pytest.fixture
def tokens(healthy: Lab) -> Iterator[CaTokens]:
    """A healthy lab; whatever a test did, one token lives afterwards."""
    tokens = CaTokens(healthy)
    yield tokens
    tokens.one_live(in_files=False)


def ca_check(ran: Ran) -> dict[str, Any]:
    """What a readiness check says of the token's life."""
    (found,) = [c for c in ran.report["checks"] if c["name"] == "CA token"]
    return dict(found)


def test_it_is_replaced_while_leaves_are_signed_at_5_hz(tokens: CaTokens):
    """Roots and issuers stay, the old one is 403, files have the new one, no secret is told."""
    before, signed_by = tokens.document(), tokens.issuers()
    planned = tokens.lab.run("token-rotation", {"roles": "consul-ca", "older_than": 0}, plan=True)

    with fetching(tokens.lab) as leaves:
        ran = tokens.rotate(older_than=0, soak=2)

    changes.ends(planned, 0, "planned")
    assert planned.mutating_calls == 0
    assert [row["action"] for row in planned.report["plan"]] == ["issue", "adopt", "revoke"]
    changes.ends(ran, 0, "verified")
    assert [found.failures for found in leaves] == [[], []]
    assert min(found.signed for found in leaves) > 10
    assert tokens.document()["accessor"] != before["accessor"]
    assert tokens.self_status(before["token"]) == 403
    assert tokens.issuers() == signed_by
    tokens.one_live()
    for dc in DATACENTERS:
        assert stat.S_IMODE(tokens.file(dc).stat().st_mode) == 0o400
        left = [f.name for f in tokens.file(dc).parent.iterdir() if f.suffix == ".tmp"]
        assert left == []
    assert "Consul in us-east-1 (1.8.7), eu-west-1 (1.8.7) goes on" in ran.report["notices"][0]

    told = ran.out + ran.err + (tokens.lab.directory / "journal.jsonl").read_text()
    told += "".join(f.read_text() for f in (tokens.lab.directory / "reports").iterdir())
    assert [t for t in (before["token"], tokens.document()["token"]) if t in told] == []

    again = tokens.rotate()
    changes.ends(again, 0, "nothing")
    assert again.mutating_calls == 0


def test_boot_and_maintenance_use_it_and_consul_keeps_it_alive(tokens: CaTokens):
    """Renewed beyond its period; no rotation without Vault; after a power cut it is the same."""
    lab = tokens.lab
    short = changes.variant(lab, lambda d: d["vault"].update(ca_token_period="8s"), "short")
    with tokens.seen.root() as root:
        tokens.period(root, 8)
        try:
            changes.ends(tokens.rotate(short, older_than=0), 0, "verified")
            brief = tokens.document()
            _outlive_its_period(tokens, brief["accessor"])
            ready = lab.mesh(*lab.arguments("boot-readiness"), "--mesh", str(short))
        finally:
            tokens.period(root, wanted(lab.topology)["token_period"])
    assert ca_check(ready)["ok"] is False
    assert "ends in" in ca_check(ready)["detail"]
    changes.ends(tokens.rotate(older_than=0), 0, "verified")
    kept = tokens.document()

    changes.ends(lab.run("vault-maintenance", {"direction": "begin"}), 0, "verified")
    refused = tokens.rotate(older_than=0)
    changes.ends(lab.run("vault-maintenance", {"direction": "end"}), 0, "verified")

    changes.ends(refused, 3, "refused")
    assert refused.mutating_calls == 0
    assert "built-in provider, for maintenance" in str(refused.problem)
    assert tokens.document() == kept
    tokens.one_live()

    lab.power_cut()
    changes.booted(lab)

    assert tokens.document() == kept
    tokens.one_live()
    assert ca_check(lab.run("boot-readiness"))["ok"] is True
    assert tokens.rotate().mutating_calls == 0


def _outlive_its_period(tokens: CaTokens, accessor: str) -> None:
    """Wait until the life left in a token, which nobody but Consul has, went up twice."""
    last, ups = 0, 0

    def renewed() -> bool:
        nonlocal last, ups
        found = tokens.token(accessor)
        assert found is not None, "it has ended"
        ups, last = ups + (found["ttl"] > last), found["ttl"]
        return bool(ups > 2)  # the first is no renewal

    until(renewed, "Consul to renew its token", 60)


def test_a_mesh_set_up_before_is_told_what_to_give(tokens: CaTokens):
    """Neither the policy's lines nor the token role: a line each, and nothing is touched."""
    policy = runbook_policy(tokens.lab.topology)
    role = wanted(tokens.lab.topology)
    said = []
    with tokens.seen.root() as root:
        try:
            tokens.seen.vault(ROLE, root, verb="DELETE")
            tokens.write(RUNBOOKS, root, policy=policy.replace(RULES, ""))
            said.append(tokens.rotate(older_than=0))
            tokens.write(RUNBOOKS, root, policy=policy)
            said.append(tokens.rotate(older_than=0))
            tokens.write(ROLE, root, **role | {"token_period": 60})
            said.append(tokens.rotate(older_than=0))
        finally:
            tokens.write(RUNBOOKS, root, policy=policy)
            tokens.write(ROLE, root, **role)

    for ran, error in zip(
        said,
        (
            f"lacks auth/token/create/{NAME}, {ROLE}, auth/token/accessors",
            f"Vault has no token role {NAME}",
            f"token role {NAME} has other token_period than declared",
        ),
        strict=True,
    ):
        changes.ends(ran, 3, "refused")
        assert ran.mutating_calls == 0
        assert error in ran.problem["error"]
        assert "docs/token-rotation.md" in ran.problem["do"]


@pytest.mark.parametrize("odd", [{"password": "x"}, {"pending": {"token": "without a nonce"}}])
def test_something_else_where_vault_keeps_it_is_left_alone(tokens: CaTokens, odd: dict[str, Any]):
    before = tokens.document()
    document = odd if "password" in odd else before | odd
    tokens.keep(document)
    try:
        ran = tokens.rotate(older_than=0)
        assert tokens.document() == document
    finally:
        tokens.keep(before)

    changes.ends(ran, 3, "refused")
    assert ran.mutating_calls == 0
    assert "holds something else than a token" in ran.problem["error"]


def test_a_token_that_fails_its_proof_is_withdrawn(tokens: CaTokens):
    """It may more than it must: nobody ever had it, and the old one is as it was."""
    policy, before = ca_policy(tokens.lab.topology), tokens.document()
    wider = policy + '\npath "mesh/*" { capabilities = ["read"] }'
    with tokens.seen.root() as root:
        tokens.write(f"sys/policies/acl/{NAME}", root, policy=wider)
        try:
            ran = tokens.rotate(older_than=0)
        finally:
            tokens.write(f"sys/policies/acl/{NAME}", root, policy=policy)

    changes.ends(ran, 1, "failed")
    assert "must be denied the mesh's secrets" in str(ran.problem)
    assert tokens.document() == before
    assert tokens.live() == [before["accessor"]]


def test_a_token_whose_creation_was_never_answered_goes(tokens: CaTokens):
    """A kill between Vault's making it and our storing it: found by its nonce, and revoked."""
    before = tokens.document()
    stray = tokens.made({"nonce": "cut-off"})
    other = tokens.made({"nonce": "somebody else's"})
    tokens.keep(before | {"pending": {"nonce": "cut-off"}})
    try:
        ran = tokens.rotate()

        changes.ends(ran, 0, "verified")
        assert tokens.token(stray["accessor"]) is None
        assert tokens.token(other["accessor"]) is not None
    finally:
        tokens.revoke(other["accessor"])
    assert tokens.document()["accessor"] != before["accessor"]


def test_another_token_in_consul_or_in_a_file_is_put_back(tokens: CaTokens):
    """And readiness tells of the life of what Consul signs with, not of what Vault keeps."""
    changes.ends(tokens.rotate(older_than=0), 0, "verified")
    kept = tokens.document()
    with tokens.seen.root() as root:
        made = tokens.seen.vault(
            "auth/token/create-orphan",
            root,
            verb="POST",
            json={"policies": [NAME], "no_default_policy": True, "period": "1h"},
        ).json()["auth"]
    try:
        tokens.configure(SECONDARY, made["client_token"])
        sound = tokens.file(PRIMARY).read_text()
        stale = json.loads(sound)
        stale["connect"]["ca_config"] |= {"token": "dead", "leaf_cert_ttl": "72h"}
        tokens.put_file(PRIMARY, json.dumps(stale))
        ready = tokens.lab.run("boot-readiness")

        ran = tokens.rotate()

        assert "ends in" in ca_check(ready)["detail"]
        changes.ends(ran, 0, "verified")
        assert "eu-west-1 signs with another token" in ran.report["notices"][0]
        assert [tokens.signs_with(dc) for dc in DATACENTERS] == [kept["token"]] * 2
        now = json.loads(tokens.file(PRIMARY).read_text())
        assert now["connect"]["ca_config"] == {"token": kept["token"], "leaf_cert_ttl": "72h"}

        tokens.put_file(PRIMARY, 'connect { ca_provider = "vault" }')
        odd = tokens.rotate(older_than=0)
        tokens.put_file(PRIMARY, sound)
        changes.ends(odd, 3, "refused")
        assert odd.mutating_calls == 0
        assert "us-consul-1 cannot be read" in odd.problem["error"]
    finally:
        tokens.revoke(made["accessor"])
    assert tokens.document() == kept


def test_a_datacenter_that_goes_back_to_the_old_one_keeps_it(tokens: CaTokens):
    """Somebody else writes the CA configuration in the soak: nothing is revoked."""
    before = tokens.document()
    words = {"roles": ROLE_NAME, "older_than": 0, "soak": 60}
    process = tokens.lab.start(*tokens.lab.arguments("token-rotation", words))
    until(
        lambda: tokens.in_file(SECONDARY) == tokens.document()["token"] != before["token"], "it", 30
    )
    tokens.configure(SECONDARY, before["token"])
    ran = tokens.lab.ended(process, timeout=30)

    changes.ends(ran, 1, "failed")
    assert "eu-west-1 went back to another token; both work" in str(ran.problem)
    assert sorted(tokens.live()) == sorted([before["accessor"], tokens.document()["accessor"]])
    assert tokens.leaf(SECONDARY) == ""
    changes.ends(tokens.rotate(), 0, "verified")
    tokens.one_live()


def test_one_that_was_revoked_by_hand_is_replaced(tokens: CaTokens):
    """Due or not; and boot, too, has a datacenter sign with what Vault keeps."""
    changes.ends(tokens.rotate(older_than=0), 0, "verified")
    leaked = tokens.document()
    tokens.revoke(leaked["accessor"])
    assert tokens.leaf(PRIMARY) != ""

    changes.ends(tokens.rotate(), 0, "verified")

    tokens.one_live()
    assert tokens.self_status(leaked["token"]) == 403
    dead = tokens.made()
    tokens.configure(PRIMARY, dead["client_token"])
    tokens.revoke(dead["accessor"])
    assert tokens.leaf(PRIMARY) != ""

    changes.booted(tokens.lab)

    tokens.one_live()


def test_a_set_up_that_is_finished_later_makes_a_dead_token_anew(tokens: CaTokens):
    """Vault takes no id of its own making: another is chosen, and a rotation's notes stay."""
    changes.ends(tokens.rotate(older_than=0), 0, "verified")
    dead = tokens.document()
    tokens.revoke(dead["accessor"])
    tokens.keep(dead | {"pending": {"nonce": "begun"}})
    with tokens.lab.connections() as connections, tokens.seen.root() as root:
        vault_setup.ensure_ca_token(connections, SecretStr(root))
        again = tokens.document()
        vault_setup.ensure_ca_token(connections, SecretStr(root))
        assert tokens.document() == again
        vault_setup.finish(connections, SecretStr(tokens.vault_token))

    assert tokens.live() == [again["accessor"]]
    assert again["token"] != dead["token"]
    assert again["pending"] == {"nonce": "begun"}
    changes.ends(tokens.rotate(), 0, "verified")
    tokens.one_live()
