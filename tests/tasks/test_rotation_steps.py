"""One step for many roles: what fails alone, what is repeated, and what is not done twice."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import SecretStr

from blocks.credentials import Credentials
from blocks.errors import Invalid, Unreachable
from blocks.mesh import Connections
from tasks import rotation_steps
from tasks.planning.rotation_plan import TokenPlan
from tasks.rotation_steps import Item
from tasks.token_store import Document
from tests.planning.tokens import declared, mesh

MESH = mesh(*(declared(name) for name in "abc"))
CONNECTIONS = Connections(MESH, Credentials(MESH.name, {}, None, False))
MANAGEMENT = SecretStr("not used")


def items() -> list[Item]:
    return [
        Item(TokenPlan(name, ("promote",), "due"), MESH.token(name), Document()) for name in "abc"
    ]


@pytest.mark.parametrize("workers", [1, 3])
def test_what_may_pass_is_repeated_for_those_alone_that_it_befell(
    monkeypatch: pytest.MonkeyPatch, workers: int
):
    """A second promotion of the same role would find nothing pending."""
    done: Counter[str] = Counter()

    def act(_clients: object, item: Item) -> int:
        done[item.name] += 1
        if item.name == "b" and done["b"] == 1:
            raise Unreachable("reset", where="vault")
        return {"a": 7, "b": 9, "c": 8}[item.name]

    monkeypatch.setitem(rotation_steps._STEPS, "promote", act)

    index = rotation_steps.carry_out(CONNECTIONS, "promote", items(), MANAGEMENT, workers=workers)

    assert done == {"a": 1, "b": 2, "c": 1}
    assert index == 9


def test_a_roles_own_fault_stays_with_it_and_is_not_tried_again(monkeypatch: pytest.MonkeyPatch):
    done: Counter[str] = Counter()

    def act(_clients: object, item: Item) -> int:
        done[item.name] += 1
        if item.name == "b":
            raise Invalid("no such policy", where="us-east-1")
        if item.name == "c" and done["c"] == 1:
            raise Unreachable("reset", where="vault")
        return 0

    monkeypatch.setitem(rotation_steps._STEPS, "promote", act)
    some = items()

    rotation_steps.carry_out(CONNECTIONS, "promote", some, MANAGEMENT)

    assert done == {"a": 1, "b": 1, "c": 2}
    assert [(i.failed_at, i.error) for i in some] == [
        ("", ""),
        ("promote", "us-east-1: no such policy"),
        ("", ""),
    ]


def test_an_item_shows_no_secret():
    assert repr(items()[0]) == "Item('a')"
