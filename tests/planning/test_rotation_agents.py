"""Tokens that agents carry: no state, and no interruption, leaves an agent without one for long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import product

import pytest

from tasks.planning.plan import Refusal
from tasks.planning.rotation import NEW, RETIRE_CARRIED, Do, plan_rotation
from tasks.planning.rotation_plan import Options, RotationPlan
from tasks.planning.tokens_seen import Grants, Slots, declared_grants, described
from tests.planning.tokens import HOUR, World, batch, mesh

ROLE = "agent-us-app-1"
OTHER = "agent-eu-app-1"
OLD = timedelta(days=31)
DISARMED = Grants()
DRIFTED = Grants(frozenset({"root-of-all"}))
MESH = mesh({"role": "agents", "kind": "agent"})
# The one moment in which an agent has no token of its own.
BETWEEN = f"use of {ROLE}, 1 calls"


def world(slots: Slots[str], carried: str | None = None) -> World:
    return World(MESH, {ROLE: slots}, carried={ROLE: carried})


def plan(world: World, **options: object) -> RotationPlan:
    return plan_rotation(world.mesh, world.seen(), Options(roles=(ROLE,), **options))  # type: ignore[arg-type]


def steps(world: World) -> tuple[str, ...]:
    (token,) = plan(world).tokens
    assert token.handed or "adopt" not in token.steps
    return token.steps


@pytest.mark.parametrize(
    ("slots", "consul", "wanted"),
    [
        # Promoted last: nothing else would say that an agent has to be handed it.
        (Slots(), {}, ("store", "create", "prove", "hand", "promote")),
        (Slots(pending="p"), {}, ("create", "prove", "hand", "promote")),
        (Slots(pending="p"), {"p": None}, ("prove", "hand", "promote")),
        # One that somebody revoked is kept as the previous one, for the same reason.
        (Slots("a"), {}, (*NEW, "adopt", "forget")),
        (Slots("a", "p"), {"p": None}, (*NEW[2:], "adopt", "forget")),
        (Slots("a", None, "gone"), {"a": None}, ("adopt", "forget")),
        (Slots("a", "p"), {"a": None, "p": None}, (*NEW[2:], *RETIRE_CARRIED)),
        # Handed and proven anew by each run, disarmed before or not.
        (Slots("a", None, "o"), {"a": None, "o": None}, RETIRE_CARRIED),
        (Slots("a", None, "o"), {"a": None, "o": DISARMED}, RETIRE_CARRIED),
        (Slots("a", None, "o"), {"o": None}, (*NEW, *RETIRE_CARRIED)),
        (Slots("a"), {"a": DRIFTED}, ("put back",)),
        (Slots("a"), {"a": None}, ()),
    ],
)
def test_every_state_that_a_kill_can_leave_has_its_way(
    slots: Slots[str], consul: dict[str, Grants | None], wanted: tuple[Do, ...]
):
    found = world(slots)
    for accessor, grants in consul.items():
        found.put(accessor, ROLE, grants=grants)

    assert steps(found) == wanted


def test_an_old_one_is_replaced_and_the_plan_says_how():
    found = world(Slots("a"), "a")
    found.put("a", ROLE, age=OLD)

    assert steps(found) == (*NEW, *RETIRE_CARRIED)
    assert [(r["action"], r["reason"]) for r in plan(found).as_rows()][1:3] == [
        ("adopt", "proven, then handed to its agents while both work (31 d old)"),
        (
            "disarm",
            "the one before grants nothing, and the agents must work with the new one (31 d old)",
        ),
    ]


def test_a_role_whose_agent_is_down_is_left_alone_and_others_are_not():
    down = Refusal("the agent on us-app-1 does not answer", "run it again", ROLE)
    found = World(MESH, {ROLE: Slots("a"), OTHER: Slots("b")})
    found.put("a", ROLE, age=OLD)
    found.put("b", OTHER, age=OLD)
    seen = replace(found.seen(), not_to_hand={ROLE: down})

    planned = plan_rotation(MESH, seen, Options(roles=(ROLE, OTHER)))

    assert planned.blocked == (down,)
    assert [token.role for token in planned.todo] == [OTHER]


def test_an_agent_that_is_down_is_no_matter_while_nothing_is_due():
    found = world(Slots("a"), "a")
    found.put("a", ROLE)
    down = Refusal("does not answer", "run it again", ROLE)

    planned = plan_rotation(
        MESH, replace(found.seen(), not_to_hand={ROLE: down}), Options(roles=(ROLE,))
    )

    assert (planned.blocked, planned.todo) == ((), ())


def carried_in(slots: Slots[str]) -> tuple[str | None, ...]:
    """What an agent may have in a state that kills or people leave."""
    if slots.previous:
        return (slots.current, slots.previous, None)
    if slots.current:
        return (slots.current,)
    return (*((slots.pending,) if slots.pending else ()), "by hand", None)


def states() -> Iterator[tuple[str, World]]:
    """Whatever may be found of one role, and of the agent that carries its token."""
    grants = {"armed": None, "disarmed": DISARMED, "drifted": DRIFTED}
    pending = previous = ("", "dead", "armed", "disarmed")
    ages = (HOUR, OLD)
    for c, p, o, age in product(("", "dead", *grants), pending, previous, ages):
        if age == OLD and c not in grants:
            continue  # only of one that lives it says something
        held = Slots("c" if c else None, "p" if p else None, "o" if o else None)
        for carried in carried_in(held):
            found = world(held, carried)
            for accessor, state in (("c", c), ("p", p), ("o", o)):
                if state in grants:
                    found.put(accessor, ROLE, grants=grants[state], age=age)
            found.put("by hand", text="made by hand", age=age)
            yield f"{c}, {p}, {o}, carries {carried}, {age.days} d", found


def works(world: World) -> bool:
    """Whether the agent's token is alive and grants something."""
    found = world.find(world.carried[ROLE])
    return found is not None and bool(found.grants)


def converged(world: World) -> None:
    """The one token that Vault has is the one that the agent has, as declared."""
    slots = world.vault[ROLE]
    assert (slots.pending, slots.previous) == (None, None)
    assert world.carried[ROLE] == slots.current
    found = world.find(slots.current)
    assert found is not None
    assert found.grants == declared_grants(MESH, MESH.token(ROLE))
    assert found.description == described(MESH.token(ROLE))
    assert {*world.consul["us-east-1"]} == {slots.current, "by hand"}


def finish(world: World, rounds: int = 3) -> int:
    for number in range(rounds):
        found = plan(world)
        if not found.todo:
            converged(world)
            return number
        for _ in batch(found, world):
            pass
    raise AssertionError(f"still to do: {plan(world).todo}")


@pytest.mark.parametrize("found", [pytest.param(found, id=name) for name, found in states()])
def test_every_state_converges_and_so_does_every_interruption_of_its_way(found: World):
    worked = works(found)
    here = found.copy()
    for _ in range(3):
        planned = plan(here)
        if not planned.todo:
            break
        for where, after in batch(planned, here):
            assert works(after) or not worked or where == BETWEEN, where
            worked = worked or works(after)
            finish(after)
    converged(here)
    assert finish(here) == 0, "a second run does something"
