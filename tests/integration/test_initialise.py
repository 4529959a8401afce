"""Vault is initialised once, and only where its keys can be kept (B1, B2, B11)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from blocks.errors import Unsafe
from tasks import vault_init
from tests.harness.lab import Lab
from tests.integration import changes
from tests.integration.outside import Outside, assert_up

pytestmark = pytest.mark.integration

# Nobody, not even root, can make a folder there; to read is to find nothing.
NOWHERE = "/proc/mesh-runbooks-test"
OTHER_ACCOUNT: dict[str, Any] = {
    "MESH_VAULTKEYS_ACCESS_KEY_ID": "AKIANOTTHISONE",
    "MESH_VAULTKEYS_SECRET_ACCESS_KEY": "nobody's",
}


def assert_untouched(lab: Lab) -> None:
    """No machine of the lab was ever switched on, so Vault has no data."""
    assert [h.name for h in lab.layout.hosts if lab.processes_of(h.name)] == []
    assert list(lab.disk("vault-1", "/opt/vault").iterdir()) == []


def test_init_is_refused_where_a_store_cannot_be_read(blank: Lab):
    """A file that others can read and a secret that is denied, each with its own line."""
    holders = blank.directory / "holders"
    holders.mkdir(exist_ok=True)
    (holders / "ops-a.key").write_text("{}")
    (holders / "ops-a.key").chmod(0o644)

    def other_account(mesh: dict[str, Any]) -> None:
        mesh["vault"]["holders"][1]["connection"] = "vaultkeys"

    mesh = changes.variant(blank, other_account)
    words = [*blank.arguments("cold-boot", {"initialise": True}), f"--mesh={mesh}"]
    ran = blank.mesh(*words, **OTHER_ACCOUNT)

    changes.ends(ran, 3, "refused")
    lines = "\n".join(ran.problem["details"])
    assert 'holder "ops-a" could not keep its shares' in lines
    assert "mode 0644" in lines
    assert 'holder "ops-b" could not keep its shares' in lines
    assert ran.mutating_calls == 0
    assert_untouched(blank)


def test_init_is_refused_where_a_store_cannot_be_written(blank: Lab):
    """What can only be seen by writing is seen before anything is switched on."""

    def nowhere(mesh: dict[str, Any]) -> None:
        mesh["vault"]["holders"][2]["path"] = f"{NOWHERE}/ops-c.key"
        mesh["vault"]["credential"]["path"] = f"{NOWHERE}/runbooks.key"
        mesh["vault"]["issuing_ca"]["path"] = f"{NOWHERE}/issuing-ca.json"

    ran = changes.boot(blank, mesh=changes.variant(blank, nowhere), initialise=True)

    changes.ends(ran, 3, "refused")
    assert len(ran.problem["details"]) == 3
    for name in ('holder "ops-c"', "the runbooks' credential", "the issuing CA"):
        assert [line for line in ran.problem["details"] if line.startswith(name)], name
    assert ran.mutating_calls == 0
    assert_untouched(blank)
    assert Outside(blank).held("ops-a") == {}


def spoilt(lab: Lab, *holders: str) -> dict[str, Any]:
    """At the moment init has been carried out, put a folder where a holder's file belongs."""
    files = [lab.directory / "holders" / f"{name}.key" for name in holders]
    do = " && ".join(f"mv {file} {file}.aside && mkdir {file}" for file in files)
    return {"after": "PUT /v1/sys/init", "do": do}


def mended(lab: Lab, *holders: str) -> None:
    """Put back what `spoilt` took away."""
    for name in holders:
        file = lab.directory / "holders" / f"{name}.key"
        file.rmdir()
        file.with_name(f"{file.name}.aside").rename(file)


def assert_nothing_built(lab: Lab) -> None:
    """Vault has keys and was never opened, so nothing can have been built on them."""
    seen = Outside(lab)
    status = seen.seal_status("vault-1")
    assert (status["initialized"], status["sealed"], status["progress"]) == (True, True, 0)
    assert {e["request"]["path"] for e in seen.audited("vault-1")} <= {"sys/audit/test"}  # its own


def swapped(mesh: dict[str, Any]) -> None:
    """The second holder is the one with a file."""
    holders = mesh["vault"]["holders"]
    holders[1], holders[2] = holders[2], holders[1]


def test_a_share_that_is_not_stored_stops_the_boot(blank: Lab, tmp_path: Path):
    """
    B2: the second holder's store fails; the third gets its shares all the same,
    nothing is built, and with enough shares the next run carries on.
    """
    mesh = changes.variant(blank, swapped)

    first = changes.boot(
        blank, mesh=mesh, watch=tmp_path / "calls", at=[spoilt(blank, "ops-c")], initialise=True
    )

    changes.ends(first, 1, "failed")
    assert 'holder "ops-c"' in first.problem["error"]
    assert "4 shares open Vault" in first.problem["do"]
    assert_nothing_built(blank)
    seen = Outside(blank)
    assert [len(seen.shares(holder)) for holder in ("ops-a", "ops-b")] == [2, 2]
    mended(blank, "ops-c")
    second = changes.booted(blank, mesh=mesh, initialise=True)
    assert [n for n in second.report["notices"] if "ops-c never arrived" in n and "rekey" in n]
    changes.HEALTHY.discard(blank.directory)  # one holder is empty


def test_lost_shares_are_set_aside_only_when_approved(blank: Lab, tmp_path: Path):
    """B2: with too few shares stored nothing can ever be built; the remedy is named, and works."""
    mesh = changes.variant(blank, swapped)
    at = [spoilt(blank, "ops-a", "ops-c")]
    first = changes.boot(blank, mesh=mesh, watch=tmp_path / "calls", at=at, initialise=True)

    changes.ends(first, 1, "failed")
    assert "discard_lost_init=true" in first.problem["do"]
    assert_nothing_built(blank)
    mended(blank, "ops-a", "ops-c")

    second = changes.boot(blank, mesh=mesh, initialise=True)

    changes.ends(second, 3, "refused")
    assert "discard_lost_init=true" in second.problem["do"]
    assert_nothing_built(blank)
    changes.booted(blank, mesh=mesh, initialise=True, discard_lost_init=True)
    assert list(blank.disk("vault-1", "/opt").glob("vault.lost-*"))
    assert [len(Outside(blank).shares(h)) for h in ("ops-a", "ops-b", "ops-c")] == [2, 2, 1]


def test_a_half_made_setup_leaves_no_root_token(blank: Lab, tmp_path: Path):
    """
    B11: told to stop during init, a run still stores every share; a set-up that
    fails half-way revokes the root token it made; the run after it finishes all.
    """
    stop = {"after": "PUT /v1/sys/init", "do": "kill -TERM $PPID"}
    first = changes.boot(blank, watch=tmp_path / "1", at=[stop], initialise=True)

    changes.ends(first, 1, "failed")
    assert "SIGTERM" in first.problem["error"]
    assert_nothing_built(blank)
    seen = Outside(blank)
    assert len(seen.shares()) == 5

    file = blank.directory / "holders" / "runbooks.key"
    fail = {"after": "POST /v1/sys/auth/approle", "do": f"mkdir {file}"}
    second = changes.boot(blank, watch=tmp_path / "2", at=[fail], initialise=True)

    changes.ends(second, 1, "failed")
    assert str(file) in second.problem["where"] + second.problem["error"]
    made = [e for e in seen.audited() if "root" in e["auth"].get("policies", [])]
    assert made[-1]["request"]["path"] == "auth/token/revoke-self"
    file.rmdir()
    changes.booted(blank, initialise=True)
    assert_up(blank)
    assert seen.root_tokens() == 0  # nor is the one that init gave to the first run


def test_a_run_told_to_stop_takes_its_root_token_with_it(blank: Lab, tmp_path: Path):
    """B11: SIGTERM between init and set-up; the only root token is revoked before the end."""
    told = {"after": "PUT /v1/sys/unseal", "nth": 3, "do": "kill -TERM $PPID"}

    first = changes.boot(blank, watch=tmp_path / "calls", at=[told], initialise=True)

    changes.ends(first, 1, "failed")
    assert "stopped" in first.problem["error"]
    seen = Outside(blank)
    assert seen.root_tokens() == 0
    changes.booted(blank, initialise=True)
    assert_up(blank)
    assert seen.root_tokens() == 0


def test_an_initialised_vault_without_shares_is_not_initialised_again(lit: Lab):
    """B1: not even when every trace of its keys is gone."""
    holders = lit.directory / "holders"
    aside = holders.rename(lit.directory / "elsewhere")

    def no_secret(mesh: dict[str, Any]) -> None:
        mesh["vault"]["holders"][1]["secret"] = "mesh/lab/unseal/never-was"

    try:
        ran = changes.boot(lit, mesh=changes.variant(lit, no_secret), initialise=True)
    finally:
        if holders.exists():
            assert list(holders.iterdir()) == []
            holders.rmdir()
        aside.rename(holders)

    changes.ends(ran, 3, "refused")
    assert ran.problem["error"] == "0 of the 3 shares needed can be reached"
    status = Outside(lit).seal_status("vault-1")
    assert (status["initialized"], status["sealed"]) == (True, True)


def test_init_looks_once_more_before_it_sends_anything(lit: Lab):
    """B1: a cluster that somebody initialised after the plan was made is left alone."""
    holders = lit.directory / "holders"
    aside = holders.rename(lit.directory / "elsewhere")
    try:
        with lit.connections() as connections, pytest.raises(Unsafe, match="vault-1 is sealed"):
            vault_init.initialise(connections)
        assert not holders.exists() or list(holders.iterdir()) == []
    finally:
        shutil.rmtree(holders, ignore_errors=True)
        aside.rename(holders)
