"""
What a rotation needs goes away in the middle of it: Vault is sealed, gateways stop (R1, R6, R10).

At each stage the run ends by itself, says what is gone and what to do, and the
tokens that consumers hold work; once it is back, a run finishes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deployments.lab.layout import DATACENTERS, PRIMARY, SECONDARY
from tests.harness import meanwhile
from tests.harness.meanwhile import Halted
from tests.integration import changes
from tests.integration.tokens import Consumer, Tokens, consuming, role, tokens
from tests.lab.machine import until
from tests.matrix.conftest import Tell

__all__ = ["tokens"]

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(600)]

DOCUMENT = "POST /v1/mesh/data/services/payments"
STORED = {"before": DOCUMENT}
CREATED = {"after": "PUT /v1/acl/token"}
PROMOTED = {"after": DOCUMENT, "nth": 2}
DISARMED = {"after": "PUT /v1/acl/token/"}
GATEWAY = "us-gateway-1"  # the secondary asks for what is new through the primary's


def rotating(
    tokens: Tokens, folder: Path, mesh: Path, *halts: dict[str, Any], **more: Any
) -> Halted:
    """A rotation of the test's one role, due now, with halts."""
    words = tokens.lab.arguments("token-rotation", {"older_than": 0, **more.pop("options", {})})
    return meanwhile.start(tokens.lab, folder, [*words, "--mesh", str(mesh)], *halts, **more)


def finished(tokens: Tokens, mesh: Path, before: dict[str, Any]) -> None:
    """One more run, let in, ends what was begun; the token of before is gone everywhere."""
    began = time.monotonic()
    while (ran := tokens.rotate(mesh, older_than=0)).status == 3:
        # A secondary tries again after a minute at most.
        assert time.monotonic() - began < 90, ran
        assert "replication is stale" in ran.problem["error"], ran
    changes.ends(ran, 0, "verified")
    tokens.one_live("payments")
    assert tokens.document()["accessor"] != before["accessor"]
    statuses = [tokens.self_status(dc, before["secret"]) for dc in DATACENTERS]
    assert statuses == [403, 403]


def test_vault_is_sealed_at_each_stage(tokens: Tokens, folder: Path, tell: Tell) -> None:
    """Nobody is refused who holds his token, and the old one works until the run has ended."""
    mesh = tokens.declare(role(soak_seconds=1))
    changes.ends(tokens.rotate(mesh), 0, "verified")
    at_work = [Consumer(tokens.lab, dc, patient=True) for dc in DATACENTERS]
    took = []
    with consuming(*at_work), tokens.seen.root() as root:
        for stage, halt in (
            ("store", STORED),
            ("create", CREATED),
            ("overlap", PROMOTED),
            ("soak", DISARMED),
        ):
            before = tokens.document()
            run = rotating(tokens, folder / stage, mesh, halt)
            run.wait()
            sealed = tokens.seen.vault("sys/seal", root, verb="PUT")
            assert sealed.status_code == 204, sealed.text
            run.go_on()
            ran = run.ended()

            changes.ends(ran, 1, "failed")
            took.append(f"{stage} {ran.seconds:.0f} s")
            assert "Vault does not serve any more: sealed" in ran.problem["error"], ran
            assert "cold-boot" in ran.problem["do"]
            assert ran.problem["stands"]
            assert tokens.reads(PRIMARY, before["secret"]), stage
            until(lambda: tokens.reads(SECONDARY, before["secret"]), "replication")  # noqa: B023
            assert tokens.lab.run("cold-boot").status == 0
            finished(tokens, mesh, before)
    assert [c.failures for c in at_work] == [[], []]
    tell(f"vault sealed in a rotation: ended after {', '.join(took)}; no use failed")


@contextmanager
def gateway_down(tokens: Tokens, run: Halted) -> Iterator[None]:
    """A gateway stops while a run stands still, and is back at the end."""
    clouds = tokens.seen.clouds
    assert clouds.run(GATEWAY, "systemctl stop mesh-gateway")[0] == 0
    run.go_on()
    try:
        yield
    finally:
        assert clouds.run(GATEWAY, "systemctl start mesh-gateway")[0] == 0


def test_gateways_are_down_at_each_stage(tokens: Tokens, folder: Path, tell: Tell) -> None:
    """Replication stands still: the run waits to its deadline and says for what."""
    mesh = tokens.declare(role(soak_seconds=1, overlap_seconds=1))
    changes.ends(tokens.rotate(mesh), 0, "verified")
    at_work = [Consumer(tokens.lab, dc) for dc in DATACENTERS]
    took = []
    with consuming(*at_work):
        for stage, halt, said in (
            ("prove", {"before": "PUT /v1/acl/token"}, "ACL replication to catch up"),
            ("disarm", {"before": "PUT /v1/acl/token/"}, "ACL replication to catch up"),
            ("revoke", {"before": "DELETE /v1/acl/token/"}, "the old token of payments to be"),
        ):
            before = tokens.document()
            run = rotating(tokens, folder / stage, mesh, halt, hasty=True)
            run.wait()
            with gateway_down(tokens, run):
                ran = run.ended()
                if stage == "revoke":  # a deletion shows in no index
                    again = tokens.rotate(mesh, older_than=0)
                    changes.ends(again, 3, "refused")
                    assert again.mutating_calls == 0
                    assert "ACL replication is stale" in again.problem["error"], again
                reads = [tokens.reads(dc, before["secret"]) for dc in DATACENTERS]

            changes.ends(ran, 1, "failed")
            took.append(f"{stage} {ran.seconds:.0f} s")
            told = f"{ran.problem['error']} {ran.problem['details']}"
            assert f"{said}" in told, ran
            assert f"not within {meanwhile.HASTY_SECONDS:g} s" in told, ran
            if stage != "revoke":
                assert reads == [True, True], stage
            finished(tokens, mesh, before)
    assert [c.failures for c in at_work] == [[], []]
    tell(f"gateway down in a rotation: ended after {', '.join(took)}; no use failed")
