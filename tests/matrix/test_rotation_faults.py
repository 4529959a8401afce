"""
Everything that can befall a call, once at every call of a token rotation (R1, R5, R6).

A run in which much goes wrong may fail, as long as it says so and what to do.
Consumers use their tokens all the while, and in the end there is one a role.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import chain, inject
from tests.harness.chain import Chain
from tests.harness.inject import Kind
from tests.integration.tokens import Tokens, consuming
from tests.matrix.conftest import Tell
from tests.matrix.test_rotation_crash import ALL, ROLES, consumers, left_alone, tokens

__all__ = ["tokens"]

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(900)]

KINDS: tuple[Kind, ...] = ("lost", "hang", "reset", "truncated", "500", "503", "429")


@pytest.mark.parametrize("kind", KINDS)
def test_every_call(kind: Kind, tokens: Tokens, folder: Path, tell: Tell) -> None:
    """The token of every role is replaced, with each call going wrong once on the way."""
    assert tokens.rotate().status == 0
    before = {name: tokens.document(name) for name in ROLES}
    done = chain.reference(tokens.lab, folder / "reference", "token-rotation", ALL)
    wanted = inject.answered(done.trace, mutating=True)
    at_work = consumers(tokens.lab)
    faults = Chain(tokens.lab, kind, folder / kind, "token-rotation")
    with consuming(*at_work):
        faults.until_quiet(ALL, most=80)

    assert [c.failures for c in at_work] == [[] for _ in at_work], faults.told()
    assert chain.atoms(wanted) - chain.atoms(faults.hits) == set()
    left_alone(tokens)
    for name, document in before.items():
        assert tokens.document(name)["accessor"] != document["accessor"]
    tell(f"tokens replaced, {faults.summary()}; {sum(c.uses for c in at_work)} uses, none failed")
