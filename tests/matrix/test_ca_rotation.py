"""
The rotation of Consul's own Vault token, killed and faulted at every call.

Leaves are fetched five times a second in both datacenters through all of it.
Afterwards the servers are asked: one token lives, and everything signs with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import chain, inject
from tests.harness.chain import Chain, Options
from tests.harness.inject import Kind
from tests.harness.lab import Lab
from tests.integration.ca_tokens import ROLE_NAME, CaTokens, fetching
from tests.matrix.conftest import Tell

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(900)]

ALL: Options = {"roles": ROLE_NAME, "older_than": 0, "soak": 0.2}
KINDS: tuple[Kind, ...] = ("lost", "hang", "reset", "truncated", "500", "503", "429")


@pytest.fixture
def tokens(healthy: Lab) -> Iterator[CaTokens]:
    """A healthy lab whose token was rotated before, so that files have it too."""
    tokens = CaTokens(healthy)
    assert tokens.rotate(older_than=0).status == 0
    yield tokens
    tokens.one_live()


def left_alone(tokens: CaTokens) -> None:
    """One token lives, and one more run finds nothing to do."""
    tokens.one_live()
    ran = tokens.rotate()
    assert (ran.outcome, ran.mutating_calls) == ("nothing", 0), ran


def test_killed_after_every_call(tokens: CaTokens, folder: Path, tell: Tell) -> None:
    """And the runs that clean up after a kill are killed likewise."""
    before = tokens.document()
    done = chain.reference(tokens.lab, folder / "reference", "token-rotation", ALL)
    wanted = inject.answered(done.trace, mutating=True)
    # Four writes to Vault, the creation and the revocation; in each datacenter, configuration and file.
    assert wanted.total() == 10, inject.table(wanted)
    between = tokens.document()
    crashes = Chain(tokens.lab, "crash", folder / "crash", "token-rotation")
    with fetching(tokens.lab) as leaves:
        crashes.crash_everywhere(ALL, reference=wanted)

    assert [found.failures for found in leaves] == [[], []], crashes.told()
    left_alone(tokens)
    for document in (before, between):
        assert tokens.self_status(document["token"]) == 403
    signed = sum(found.signed for found in leaves)
    tell(f"CA token replaced, {crashes.summary()}; {signed} leaves, none failed")


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_goes_wrong_once(kind: Kind, tokens: CaTokens, folder: Path, tell: Tell) -> None:
    """A run in which much goes wrong may fail, as long as it says so and what to do."""
    before = tokens.document()
    done = chain.reference(tokens.lab, folder / "reference", "token-rotation", ALL)
    wanted = inject.answered(done.trace, mutating=True)
    if kind in inject.STATUSES:  # SSH has none
        wanted = type(wanted)({c: n for c, n in wanted.items() if not c.server.startswith("ssh")})
    faults = Chain(tokens.lab, kind, folder / kind, "token-rotation")
    with fetching(tokens.lab) as leaves:
        faults.until_quiet(ALL, most=80)

    assert [found.failures for found in leaves] == [[], []], faults.told()
    assert chain.atoms(wanted) - chain.atoms(faults.hits) == set()
    left_alone(tokens)
    assert tokens.self_status(before["token"]) == 403
    signed = sum(found.signed for found in leaves)
    tell(f"CA token replaced, {faults.summary()}; {signed} leaves, none failed")
