"""
Key shares as they are given to Vault (B4, B5): what it was given, by its own log.

Each test starts from a sealed Vault on a mesh that has power.
"""

from __future__ import annotations

import base64
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness.lab import Lab, Ran
from tests.integration import changes, watched
from tests.integration.outside import Outside

pytestmark = pytest.mark.integration

NODE = "vault-1"


@pytest.fixture
def sealed(dark: Lab) -> Lab:
    """The small lab with power, its Vault sealed and telling of each share it is given."""
    changes.talkative(dark)
    dark.power_on()
    changes.until_sealed(dark)
    return dark


def give(lab: Lab, share: str) -> dict[str, Any]:
    """Give Vault one share, as another custodian would by hand."""
    seen = Outside(lab)
    return dict(seen.vault("sys/unseal", host=NODE, verb="PUT", json={"key": share}).json())


def calls_of_unsealing(file: Path) -> int:
    return sum(c.what.endswith("/v1/sys/unseal") for c in watched.read(file))


def test_another_custodians_progress_is_built_upon(sealed: Lab, tmp_path: Path):
    """B4: one share was given by hand; two more of others open it, in the same attempt."""
    (share,) = Outside(sealed).shares("ops-c")
    nonce = give(sealed, share)["nonce"]

    ran = changes.boot(sealed, watch=(calls := tmp_path / "calls"))

    changes.ends(ran, 0, "verified")
    changes.HEALTHY.add(sealed.directory)
    log = Outside(sealed).unsealing(NODE)
    assert (log.submitted, log.failures, log.attempts) == (3, 0, [nonce])
    assert calls_of_unsealing(calls) == 2


def test_no_share_goes_to_a_node_that_others_opened_meanwhile(sealed: Lab, tmp_path: Path):
    """B3: after our first share a custodian opens it by hand, and it is given no more."""
    by_hand = [sys.executable, "-m", "tests.integration.custodian"]
    typed = {
        "after": "PUT /v1/sys/unseal",
        "do": shlex.join([*by_hand, str(sealed.directory), sealed.network, "ops-b"]),
    }

    ran = changes.boot(sealed, watch=(calls := tmp_path / "calls"), at=[typed])

    changes.ends(ran, 0, "verified")
    changes.HEALTHY.add(sealed.directory)
    assert calls_of_unsealing(calls) == 1
    log = Outside(sealed).unsealing(NODE)
    assert (log.failures, log.opened, log.after) == (0, 1, 0)


def test_a_wrong_share_with_a_spare_costs_no_attempt(sealed: Lab):
    """B5: four right shares show which one is not; it is not given, and its holder is named."""
    wrong = {"shares": [changes.other_share(), *Outside(sealed).shares("ops-a")[1:]]}
    put_back = changes.hold(sealed, "ops-a", lambda d: d.update(wrong))
    try:
        ran = changes.ends(changes.boot(sealed), 0, "verified")
    finally:
        put_back()

    changes.HEALTHY.add(sealed.directory)
    log = Outside(sealed).unsealing(NODE)
    assert (log.submitted, log.failures) == (3, 0)
    assert [n for n in ran.report["notices"] if '"ops-a"' in n and "does not belong" in n]


def assert_one_failure(lab: Lab, ran: Ran, *names: str) -> None:
    """The run failed with these holders named, and Vault was tried once and is sealed."""
    changes.ends(ran, 1, "failed")
    assert ran.problem["where"] == NODE
    assert all(name in ran.problem["error"] for name in names), ran.problem
    assert "without_holders" in ran.problem["do"]
    log = Outside(lab).unsealing(NODE)
    assert (log.submitted, log.failures, log.opened) == (3, 1, 0)
    status = Outside(lab).seal_status(NODE)
    assert (status["sealed"], status["progress"]) == (True, 0)


def test_a_wrong_share_without_a_spare_costs_one_attempt(sealed: Lab):
    """B5: three shares, one of them wrong: one failure, no second try, everything stays down."""
    put_back = changes.hold(sealed, "ops-c", lambda d: d.update(shares=[changes.other_share()]))
    try:
        ran = changes.boot(sealed, without_holders="ops-b")
    finally:
        put_back()

    assert_one_failure(sealed, ran, "ops-a", "ops-c")
    assert Outside(sealed).pids()["us-consul-1", "consul"] is None


def test_shares_of_another_cluster_cost_one_attempt(sealed: Lab):
    """B5: shares that fit each other and open another Vault cannot be told before."""
    undo = []
    for holder, count, first in (("ops-a", 2, 1), ("ops-c", 1, 3)):
        shares = [line(x) for x in range(first, first + count)]
        undo.append(changes.hold(sealed, holder, lambda d, s=shares: d.update(shares=s)))  # type: ignore[misc]
    try:
        ran = changes.boot(sealed, without_holders="ops-b")
    finally:
        for put_back in undo:
            put_back()

    assert_one_failure(sealed, ran, "ops-a", "ops-c")


def line(x: int) -> str:
    """The share at a point of the constant polynomial: any three are Shamir's of that key."""
    return base64.b64encode(b"\x5a" * 32 + bytes([x])).decode()


def test_somebody_elses_wrong_share_is_named_and_forgotten(sealed: Lab):
    """B4 and B5: what was given by hand before spoils one attempt; the next run opens Vault."""
    give(sealed, changes.other_share())

    first = changes.boot(sealed)

    assert_one_failure(sealed, first, "1 given before this run", "ops-a")
    changes.booted(sealed)
    log = Outside(sealed).unsealing(NODE)
    assert (log.submitted, log.failures, log.opened) == (6, 1, 1)


def test_an_attempt_is_reset_with_approval(sealed: Lab):
    """B4: a wrong share given by hand before is taken back; it spoils no attempt."""
    spoilt = give(sealed, changes.other_share())["nonce"]

    changes.booted(sealed, allow_reset_unseal_progress=True)

    log = Outside(sealed).unsealing(NODE)
    assert (log.submitted, log.failures, log.opened) == (4, 0, 1)
    assert len(log.attempts) == 2
    assert log.attempts[0] == spoilt


def test_a_malformed_share_is_not_given(sealed: Lab):
    """B5: what is no share at all never reaches Vault, and its holder is named."""
    put_back = changes.hold(sealed, "ops-c", lambda d: d.update(shares=["not a share"]))
    try:
        ran = changes.boot(sealed, without_holders="ops-b")
    finally:
        put_back()

    changes.ends(ran, 1, "failed")
    assert "2 usable key shares of the 3 needed; not usable: ops-c" in ran.problem["error"]
    assert Outside(sealed).unsealing(NODE).submitted == 0


def test_too_few_holders_refuse_a_boot_before_it_begins(dark: Lab):
    """B5: each holder that gives nothing is named with its reason; nothing is powered on."""
    file = dark.directory / "holders" / "ops-a.key"
    file.chmod(0o644)

    def other_account(mesh: dict[str, Any]) -> None:
        mesh["vault"]["holders"][1]["connection"] = "vaultkeys"

    mesh = changes.variant(dark, other_account)
    try:
        words = dark.arguments("cold-boot")
        ran = dark.mesh(
            *words,
            f"--mesh={mesh}",
            MESH_VAULTKEYS_ACCESS_KEY_ID="AKIANOTTHISONE",
            MESH_VAULTKEYS_SECRET_ACCESS_KEY="nobody's",
        )
    finally:
        file.chmod(0o400)

    changes.ends(ran, 3, "refused")
    assert ran.problem["error"] == "1 of the 3 shares needed can be reached"
    first, second = sorted(line for line in ran.problem["details"] if "ops-c" not in line)
    assert first.startswith('holder "ops-a": ')
    assert "mode 0644" in first
    assert second.startswith('holder "ops-b": secretsmanager us-west-2')
    assert "mesh/lab/unseal/ops-b" in second
    assert ran.mutating_calls == 0
    assert dark.processes_of("vault-1") == []
