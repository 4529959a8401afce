"""
kill -9 of a token rotation after each of its mutating calls, and then again (R1, R4, R5, R6).

Consumers use their tokens 20 times a second through all of it. Afterwards the
servers are asked: one live token a role, none orphaned.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest
import yaml

from deployments.lab.layout import PRIMARY, SECONDARY
from tests.harness import chain, inject
from tests.harness.chain import Chain, Options
from tests.harness.lab import Lab
from tests.integration.tokens import Consumer, Tokens, consuming
from tests.matrix.conftest import Tell

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(900)]

ROLES = ("web-portal", "reporting-agent", "payments-eu")
READ = "health/service/payment-processor"
FIRST: Options = {"roles": ",".join(ROLES)}
ALL: Options = {**FIRST, "older_than": 0, "soak": 0.5}
WITHDRAWN = "DELETE /v1/acl/token/<uuid>"


@pytest.fixture
def tokens(healthy: Lab) -> Iterator[Tokens]:
    """The lab's own roles, none with a token yet; nothing is left of them afterwards."""
    tokens = Tokens(healthy)
    tokens.tidy()
    yield tokens
    tokens.tidy()


def consumers(lab: Lab) -> list[Consumer]:
    """One for each role and datacenter in which it is used."""
    return [
        Consumer(lab, PRIMARY, "web-portal", READ),
        Consumer(lab, SECONDARY, "web-portal", READ),
        Consumer(lab, SECONDARY, "reporting-agent", READ),
        Consumer(lab, SECONDARY, "payments-eu", READ),
    ]


def left_alone(tokens: Tokens) -> None:
    """Every role has its one token, and one more run finds nothing to do."""
    tokens.one_live(*ROLES)
    ran = tokens.rotate(roles=FIRST["roles"])
    assert (ran.outcome, ran.mutating_calls) == ("nothing", 0), ran


def test_first_tokens(tokens: Tokens, folder: Path, tell: Tell) -> None:
    """Roles that never had a token."""
    done = chain.reference(tokens.lab, folder / "reference", "token-rotation", FIRST)
    wanted = inject.answered(done.trace, mutating=True)
    tokens.tidy()
    crashes = Chain(tokens.lab, "crash", folder / "crash", "token-rotation")
    crashes.crash_everywhere(FIRST, reference=wanted, again=tokens.tidy)
    left_alone(tokens)
    tell(f"first tokens, {crashes.summary()}")


def test_every_token_replaced(tokens: Tokens, folder: Path, tell: Tell) -> None:
    """Every role is due in every run, whatever the run before left of it."""
    assert tokens.rotate().status == 0
    done = chain.reference(tokens.lab, folder / "reference", "token-rotation", ALL)
    wanted = inject.answered(done.trace, mutating=True)
    assert wanted.total() >= 6 * len(ROLES)
    before = {name: tokens.document(name) for name in ROLES}
    at_work = consumers(tokens.lab)
    crashes = Chain(tokens.lab, "crash", folder / "crash", "token-rotation")
    with consuming(*at_work):
        crashes.crash_everywhere(ALL, reference=wanted)

    assert [c.failures for c in at_work] == [[] for _ in at_work], crashes.told()
    left_alone(tokens)
    for name, document in before.items():
        assert tokens.document(name)["accessor"] != document["accessor"]
        for dc in (PRIMARY, SECONDARY):
            assert tokens.self_status(dc, document["secret"]) == 403
    uses = sum(c.uses for c in at_work)
    held = sum(len(c.accessors) for c in at_work)
    tell(f"tokens replaced, {crashes.summary()}; {uses} uses of {held} tokens, none failed")


def test_what_fails_its_proof_is_withdrawn(tokens: Tokens, folder: Path, tell: Tell) -> None:
    """Killed while the new token is taken back: the old one works, and nothing is left behind."""
    assert tokens.rotate().status == 0
    before = {name: tokens.document(name) for name in ROLES}
    file = tokens.lab.directory / "mesh.yaml"
    sound = file.read_text()
    document: dict[str, Any] = yaml.safe_load(sound)
    for token in document["tokens"]:
        token["may"] = [*token["may"], "operator read"]
        token["may_not"] = ["kv write nowhere"]
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    crashes = Chain(tokens.lab, "crash", folder / "crash", "token-rotation")
    reference = Chain(tokens.lab, "trace", folder / "reference", "token-rotation")
    at_work = consumers(tokens.lab)
    try:
        failed = reference.run(ALL)
        assert (failed.status, failed.outcome) == (1, "failed"), failed
        wanted = inject.answered(reference.trace, mutating=True)
        assert sum(n for this, n in wanted.items() if this.what == WITHDRAWN) == len(ROLES)
        inject.limits(crashes.folder, wanted)
        with consuming(*at_work):
            while (ran := crashes.run(ALL)).status == -SIGKILL:
                assert len(crashes.ran) < 2 * wanted.total() + 20, crashes.told()
        assert (ran.status, ran.outcome) == (1, "failed"), ran
    finally:
        file.write_text(sound)
    left = chain.atoms(wanted) - chain.atoms(crashes.hits)
    assert left == set(), crashes.told()
    assert [c.failures for c in at_work] == [[] for _ in at_work]
    assert {name: tokens.document(name) for name in ROLES} == before
    left_alone(tokens)
    tell(f"proofs failed, {crashes.summary()}")
