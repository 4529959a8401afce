"""What the rotation of Consul's own Vault token does, and that every interruption ends alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any

import pytest

from blocks.declared_tokens import DeclaredToken
from tasks.planning.ca_rotation import (
    NEW,
    ORDER,
    RETIRE,
    Authority,
    Do,
    FileSeen,
    plan_ca_rotation,
)
from tasks.planning.plan import Refusal
from tasks.planning.rotation_plan import Options, RotationPlan
from tasks.planning.tokens_seen import Slots
from tests.planning.ca_tokens import EU, HOUR, US, Kept, World

OLD = timedelta(days=31)
ROLE = DeclaredToken(role="consul-ca", kind="ca-provider")
ALL = (*NEW, *RETIRE)


def plan(world: World, role: DeclaredToken = ROLE, **options: Any) -> RotationPlan:
    return plan_ca_rotation(role, world.seen(), Options(**options))


def steps(world: World, **options: Any) -> tuple[str, ...]:
    (token,) = plan(world, **options).tokens
    return token.steps


def test_nothing_is_done_to_a_young_token_that_is_used_everywhere():
    found = plan(World().put("a"))

    assert found.todo == ()
    assert [row["reason"] for row in found.as_rows()] == ["not due before 30 d (60 min old)"]


def test_an_old_one_is_replaced_and_the_plan_says_how():
    found = plan(World().put("a", age=OLD))

    assert found.tokens[0].steps == ALL
    assert (found.tokens[0].old, found.tokens[0].replaces) == ("a", True)
    assert [row["action"] for row in found.as_rows()] == ["issue", "adopt", "revoke"]
    assert [row["waits_for"] for row in found.as_rows()] == ["-", "1", "2"]
    # Consul's 1.8.7 leaks what renews the old token; 1.12 does not.
    (notice,) = found.notices
    assert f"Consul in {US} (1.8.7) goes on renewing" in notice
    assert "within 21 d" in notice
    assert EU not in notice


@pytest.mark.parametrize(
    ("version", "leaks"),
    [
        ((1, 8, 3), False),
        ((1, 8, 4), True),
        ((1, 9, 17), True),
        ((1, 10, 9), True),
        ((1, 10, 10), False),
        ((1, 11, 4), True),
        ((1, 11, 5), False),
        ((1, 12, 0), False),
    ],
)
def test_the_consuls_that_go_on_renewing_are_named(version: tuple[int, int, int], leaks: bool):
    seen = replace(World().put("a", age=OLD).seen(), versions={US: version})

    assert bool(plan_ca_rotation(ROLE, seen, Options()).notices) is leaks


@pytest.mark.parametrize(
    ("slots", "live", "wanted"),
    [
        (Slots(Kept("a"), Kept("", "n")), "a", ("withdraw", *ALL)),
        (Slots(Kept("a"), Kept("p", "n")), "ap", (*NEW[2:], *RETIRE)),
        (Slots(Kept("a"), Kept("p", "n")), "a", ("withdraw", *ALL)),
        (Slots(Kept("a"), Kept("p", "n")), "p", ("prove", "promote", "adopt", "forget")),
        (Slots(Kept("a")), "", (*NEW, "adopt", "forget")),
        (Slots(Kept("a"), None, Kept("o")), "ao", RETIRE),
        (Slots(Kept("a"), None, Kept("o")), "a", ("adopt", "forget")),
        (Slots(Kept("a"), None, Kept("o")), "o", ALL),
        (Slots(Kept("a"), Kept("", "n"), Kept("o")), "ao", ("withdraw", *RETIRE)),
        (Slots(Kept("a"), Kept("p", "n"), Kept("o")), "apo", ("withdraw", *RETIRE)),
        (Slots(Kept("a"), Kept("p", "n"), Kept("o")), "po", (*NEW[2:], *RETIRE)),
    ],
)
def test_every_state_that_a_kill_can_leave_has_its_way(
    slots: Slots[Kept], live: str, wanted: tuple[Do, ...]
):
    world = World(slots)
    for accessor in live:
        world.put(accessor, nonce="n" if accessor == "p" else "")

    assert steps(world) == wanted


def test_an_interrupted_rotation_is_ended_and_not_begun_anew():
    world = World(Slots(Kept("a"), None, Kept("o"))).put("a", age=OLD).put("o", age=OLD)

    assert steps(world, older_than_hours=0) == RETIRE


@pytest.mark.parametrize("drift", ["put back", "report"])
def test_what_has_another_token_is_put_back_or_reported(drift: str):
    role = ROLE.model_copy(update={"drift": drift})
    world = World(files={"us-consul-1": "dead", "eu-consul-1": ""}).put("a")
    world.signs[EU] = "strange"

    found = plan(world, role)

    assert [t.steps for t in found.tokens] == [("put back",) if drift == "put back" else ()]
    after = "is put back" if drift == "put back" else "is left so"
    assert found.notices == (
        (
            f"consul-ca: {EU} signs with another token; another is in the file of us-consul-1; "
            f"it {after}"
        ),
    )


def test_a_token_that_consul_hides_and_an_empty_file_are_no_drift():
    seen = World(files={"us-consul-1": ""}).put("a").seen()
    seen = replace(seen, authorities={US: Authority("vault", "hidden")})

    assert plan_ca_rotation(ROLE, seen, Options()).todo == ()


@pytest.mark.parametrize(
    ("change", "error", "do"),
    [
        ({"complete": False}, "no CA token of a complete set-up", "initialise=true"),
        ({"held": Slots()}, "no CA token of a complete set-up", "initialise=true"),
        (
            {"authorities": {EU: Authority("consul")}},
            f"the CA of {EU} is not on Vault but Consul's built-in provider, for maintenance",
            "direction=end",
        ),
        (
            {"authorities": {EU: Authority("off")}},
            f"the CA of {EU} is not on Vault but off",
            "cold-boot",
        ),
        (
            {"files": {"us-consul-1": FileSeen(error="no JSON")}},
            "the CA configuration on us-consul-1 cannot be read: no JSON",
            "correct ca_config_file",
        ),
        ({"problems": (Refusal("it lacks x", "give x", "vault"),)}, "it lacks x", "give x"),
    ],
)
def test_what_stands_against_it_is_one_line_and_nothing_is_touched(
    change: dict[str, Any], error: str, do: str
):
    seen = replace(World().put("a", age=OLD).seen(), **change)

    found = plan_ca_rotation(ROLE, seen, Options())

    assert found.todo == ()
    (refusal,) = found.blocked
    assert error in refusal.error
    assert do in refusal.do
    assert refusal.where == "consul-ca"


# Every interruption


def _way(world: World, way: tuple[str, ...]) -> Iterator[tuple[str, World]]:
    (token,) = plan(world).tokens
    for step in (s for s in ORDER if s in way):
        for parts in range(world.copy().do(step, token)):
            cut = world.copy()
            cut.do(step, token, parts=parts + 1)
            yield f"{step}, call {parts + 1}", cut
        world.do(step, token)


def finish(world: World, rounds: int = 3) -> int:
    """Plan and apply until nothing is left to do; in how many rounds."""
    for number in range(rounds):
        found = plan(world)
        if not found.todo:
            converged(world)
            return number
        for _ in _way(world, found.todo[0].steps):
            pass
    raise AssertionError(f"still to do: {plan(world).todo}")


def converged(world: World) -> None:
    """One live token, which everything has, and no word of another."""
    current = world.slots.current
    assert current is not None
    assert list(world.live) == [current.accessor]
    assert (world.slots.pending, world.slots.previous) == (None, None)
    assert set(world.signs.values()) == {current.accessor}
    assert {a for a in world.files.values() if a} <= {current.accessor}


def states() -> Iterator[tuple[str, World]]:
    """Whatever a kill, or a person, can leave; nothing lives of which Vault holds no trace."""
    pendings = (None, Kept("", "n"), Kept("p", "n"))
    for pending, previous, signs in product(pendings, (None, Kept("o")), ("a", "o", "mixed")):
        if signs != "a" and previous is None:
            continue
        names = ["a", *(["p"] if pending else []), *(["o"] if previous else [])]
        for alive in product((True, False), repeat=len(names)):
            for age in (HOUR, OLD):
                world = World(Slots(Kept("a"), pending, previous))
                world.signs = {US: signs, EU: signs}
                if signs == "mixed":
                    world.signs = {US: "a", EU: "o"}
                for name, lives in zip(names, alive, strict=True):
                    if lives:
                        world.put(name, age=age, nonce="n" if name == "p" else "")
                live = "".join(world.live) or "nothing"
                label = f"{pending and (pending.accessor or 'nonce')} {previous and 'o'} {signs}"
                yield f"{label}: {live} alive, {age.days} d", world


@pytest.mark.parametrize("world", [pytest.param(world, id=name) for name, world in states()])
def test_every_state_converges_and_so_does_every_interruption_of_its_way(world: World):
    """Wherever it is cut off: leaves are signed all along, and in the end one token lives."""
    signed = world.signed()
    here = world.copy()
    places = 0
    for _ in range(3):
        found = plan(here)
        if not found.todo:
            break
        for where, after in _way(here, found.todo[0].steps):
            places += 1
            assert after.signed() or not signed, where
            signed = signed or after.signed()
            finish(after)
    converged(here)
    assert finish(here) == 0, "a second run does something"
    assert places or not plan(world).todo


def test_a_rotation_is_cut_off_after_every_call_twice():
    world = World().put("a", age=OLD)

    places = list(_way(world.copy(), plan(world).todo[0].steps))

    assert len(places) >= 9
    for where, after in places:
        if not (todo := plan(after).todo):
            continue
        for again, twice in list(_way(after.copy(), todo[0].steps)):
            assert twice.signed(), f"{where}, then {again}"
            assert finish(twice) <= 1, f"{where}, then {again}"


def test_a_proof_that_fails_leaves_everything_as_it_was():
    world = World().put("a", age=OLD)
    before = world.copy()
    (token,) = plan(world).todo
    for step in ("store", "create"):
        world.do(step, token)

    world.do("withdraw", token)

    assert (world.slots, world.live, world.signs) == (before.slots, before.live, before.signs)
