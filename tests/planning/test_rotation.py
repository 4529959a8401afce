"""What a rotation does about each state, and that every interruption leads to the same end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import product

import pytest

from tasks.planning.rotation import NEW, RETIRE, Do, plan_rotation
from tasks.planning.rotation_plan import Options, RotationPlan
from tasks.planning.tokens_seen import Grants, Slots, declared_grants, description
from tests.planning.tokens import HOUR, PRIMARY, SECONDARY, World, batch, declared, mesh

OLD = timedelta(days=31)
DISARMED = Grants()
DRIFTED = Grants(frozenset({"payments", "root-of-all"}))
MESH = mesh()


def plan(world: World, **options: object) -> RotationPlan:
    return plan_rotation(world.mesh, world.seen(), Options(**options))  # type: ignore[arg-type]


def steps(world: World, **options: object) -> tuple[str, ...]:
    (token,) = plan(world, **options).tokens
    return token.steps


# One state after the other


def test_nothing_is_done_to_a_token_that_is_young_and_as_declared():
    world = World(MESH, {"payments": Slots("a")})
    world.put("a")

    found = plan(world)

    assert found.todo == ()
    assert found.as_rows() == [
        {
            "step": 1,
            "action": "keep",
            "targets": "payments",
            "reason": "not due before 30 d (60 min old)",
            "waits_for": "-",
        }
    ]


def test_an_old_one_is_replaced_grow_before_shrink():
    world = World(MESH, {"payments": Slots("a")})
    world.put("a", age=OLD)

    found = plan(world)

    assert found.tokens[0].steps == (*NEW, *RETIRE)
    assert [(r["action"], r["reason"]) for r in found.as_rows()] == [
        ("issue", "due after 30 d (31 d old)"),
        ("adopt", "proven, then read by its consumers while both work (31 d old)"),
        (
            "disarm",
            "the one before grants nothing from then on, until it is revoked (31 d old)",
        ),
        ("revoke", "after the soak, with proof of 403 (31 d old)"),
    ]
    assert [r["waits_for"] for r in found.as_rows()] == ["-", "1", "2", "3"]


@pytest.mark.parametrize(("hours", "due"), [(0, True), (0.5, True), (2, False)])
def test_the_operator_may_say_another_age(hours: float, due: bool):
    world = World(MESH, {"payments": Slots("a")})
    world.put("a")

    assert bool(steps(world, older_than_hours=hours)) is due


@pytest.mark.parametrize(
    ("slots", "consul", "wanted"),
    [
        (Slots(), {}, NEW),
        (Slots(pending="p"), {}, NEW[1:]),
        (Slots(pending="p"), {"p": None}, NEW[2:]),
        (Slots(pending="p"), {"p": DRIFTED}, NEW[1:]),
        (Slots("a", "p"), {"a": None}, (*NEW[1:], *RETIRE)),
        (Slots("a", "p"), {"a": None, "p": None}, (*NEW[2:], *RETIRE)),
        (Slots("a", "p"), {"p": None}, NEW[2:]),
        (Slots("a"), {}, NEW),
        (Slots("a", None, "o"), {"a": None, "o": None}, RETIRE),
        (Slots("a", None, "o"), {"a": None, "o": DISARMED}, RETIRE[2:]),
        (Slots("a", None, "o"), {"a": None}, ("forget",)),
        (Slots("a", None, "o"), {"a": DRIFTED, "o": None}, ("put back", *RETIRE)),
        (Slots("a", None, "o"), {"o": None}, (*NEW, *RETIRE)),
        (Slots("a", "p", "o"), {"a": None, "p": None, "o": None}, ("withdraw", *RETIRE)),
        (Slots("a", "p", "o"), {"p": None, "o": None}, (*NEW[2:], *RETIRE)),
        (Slots("a"), {"a": DRIFTED}, ("put back",)),
        (Slots("a"), {"a": DISARMED}, ("put back",)),
    ],
)
def test_every_state_that_a_kill_can_leave_has_its_way(
    slots: Slots[str], consul: dict[str, Grants | None], wanted: tuple[Do, ...]
):
    world = World(MESH, {"payments": slots})
    for accessor, grants in consul.items():
        world.put(accessor, grants=grants)

    assert steps(world) == wanted


def test_an_interrupted_rotation_is_ended_and_not_begun_anew():
    world = World(MESH, {"payments": Slots("a", None, "o")})
    world.put("a", age=OLD)
    world.put("o", age=OLD)

    assert steps(world, older_than_hours=0) == RETIRE


def test_an_edit_by_hand_is_reported_where_that_is_declared():
    world = World(mesh(declared(drift="report")), {"payments": Slots("a")})
    world.put("a", grants=DRIFTED, text="edited")

    found = plan(world)

    assert found.todo == ()
    assert found.notices == (
        (
            "payments: its token a has policies beside: root-of-all; another description; "
            "it is left so, as declared"
        ),
    )


def test_a_local_token_is_changed_where_it_lives():
    local = mesh(declared(local=True, datacenters=[SECONDARY]))
    world = World(local, {"payments": Slots("a")})
    world.put("a", age=OLD, local=SECONDARY)

    (token,) = plan(world).tokens

    assert (token.steps, token.old, token.old_at) == ((*NEW, *RETIRE), "a", SECONDARY)


def test_a_token_declared_local_from_now_on_is_replaced_where_the_old_one_lives():
    local = mesh(declared(local=True, datacenters=[SECONDARY]))
    world = World(local, {"payments": Slots("a")})
    world.put("a")

    (token,) = plan(world).tokens

    assert (token.steps, token.old_at) == ((*NEW, *RETIRE), PRIMARY)
    assert token.reason == "declared local"


# Who is left alone, and what refuses


def test_a_role_whose_policy_does_not_exist_is_left_as_it_is():
    world = World(
        mesh(declared(), declared("other", policies=["nowhere"])),
        {"payments": Slots("a"), "other": Slots("b", None, "c")},
    )
    for accessor, role in (("a", "payments"), ("b", "other"), ("c", "other"), ("d", "other")):
        world.put(accessor, role, age=OLD)

    found = plan(world)

    assert [t.role for t in found.todo] == ["payments"]
    (refusal,) = found.blocked
    assert (refusal.where, refusal.error) == ("other", "Consul has no ACL policy nowhere")
    assert "create it" in refusal.do


def test_the_credential_of_the_run_is_not_rotated_by_it():
    world = World(MESH, {"payments": Slots("management")})
    world.put("management", age=OLD)

    found = plan(world)

    assert found.tokens == ()
    (refusal,) = found.refusals
    assert "MESH_CONSUL_TOKEN" in refusal.do
    assert refusal.where == "payments"


@pytest.mark.parametrize(
    "held",
    [
        {"payments": Slots("a", None, "a")},
        {"payments": Slots("a", "a")},
        {"payments": Slots("b", "a", "a")},
        {"payments": Slots("b", None, "a"), "other": Slots("a")},
    ],
)
def test_a_token_that_vault_has_in_two_places_is_touched_by_no_role(held: dict[str, Slots[str]]):
    world = World(mesh(declared(), declared("other")), held)
    world.put("a", "other")
    world.put("b")

    found = plan(world, roles=tuple(held))

    assert found.todo == ()
    assert {r.where for r in found.blocked} == set(held)


def test_a_token_of_another_role_is_never_revoked():
    world = World(mesh(declared(), declared("other")), {"payments": Slots("b", None, "a")})
    world.put("a", "other")
    world.put("b")

    (refusal,) = plan(world, roles=("payments",)).blocked

    assert refusal.error == "Vault has token a at services/payments, which is one of other"


def test_what_cannot_be_read_is_not_taken_for_nothing():
    world = World(MESH)
    world.put("a")
    seen = world.seen()
    seen = type(seen)(seen.at, {}, {"payments": "403"}, seen.tokens, seen.policies)

    found = plan_rotation(MESH, seen, Options())

    assert found.todo == ()
    assert [r.where for r in found.blocked] == ["payments"]


# The sweep


def test_an_orphan_is_disarmed_then_revoked_and_a_live_one_is_not():
    world = World(MESH, {"payments": Slots("a")})
    world.put("a")
    world.put("lost")
    world.put("gone", "a-role-that-was-removed", grants=DISARMED)

    found = {t.old: t.steps for t in plan(world).todo}

    assert found == {"lost": ("disarm", "soak", "revoke"), "gone": ("soak", "revoke")}


def test_a_role_that_is_declared_no_more_ends_only_if_somebody_says_so():
    world = World(MESH, {"payments": Slots("a")})
    world.put("a")
    world.put("b", "removed")

    left, told = plan(world), plan(world, retire=("removed",))
    alone = plan(world, roles=("payments",), retire=("removed",))

    assert left.todo == ()
    (line,) = left.notices
    assert "removed, which is declared no more" in line
    assert "--set retire=removed" in line
    assert [(t.old, t.steps) for t in told.todo] == [("b", ("disarm", "soak", "revoke"))]
    assert told.notices == ()
    assert [t.old for t in alone.todo] == ["b"]


def test_only_orphans_of_the_chosen_roles_are_swept():
    world = World(mesh(declared(), declared("other")), {"payments": Slots("a")})
    world.put("a")
    world.put("lost", "other")

    assert plan(world, roles=("payments",)).todo == ()


def test_tokens_of_others_are_named_unless_they_are_allowed():
    allowed = [{"accessor": "partner"}, {"description": "terraform *"}, {"description": "exactly"}]
    world = World(mesh(foreign_tokens=allowed), {"payments": Slots("a")})
    world.put("a")
    for accessor, text in {
        "partner": "whatever",
        "t": "terraform staging",
        "e": "exactly",
        "x": "exactly not",
        "management": "Bootstrap Token (Global Management)",
        "00000000-0000-0000-0000-000000000002": "Anonymous Token",
    }.items():
        world.put(accessor, text=text)

    found = plan(world)

    assert found.todo == ()
    assert [line.split('"')[1] for line in found.notices] == ["exactly not"]


def test_an_orphan_that_is_allowed_is_left_alone():
    world = World(mesh(foreign_tokens=[{"accessor": "lost"}]), {"payments": Slots("a")})
    world.put("a")
    world.put("lost")

    assert plan(world).todo == ()


# Interruptions


def states() -> Iterator[tuple[str, World]]:
    """Whatever may be found of one role: by kills, by people, by an older Vault."""
    grants = {"armed": None, "disarmed": DISARMED, "drifted": DRIFTED}  # None: as declared
    current = ("", "dead", *grants)
    pending = previous = ("", "dead", "armed", "disarmed")
    orphan = ("", "armed", "disarmed")
    for c, p, o, x, age in product(current, pending, previous, orphan, (HOUR, OLD)):
        world = World(MESH)
        held = ("c" if c else None, "p" if p else None, "o" if o else None)
        world.vault["payments"] = Slots(*held)
        for accessor, found in (("c", c), ("p", p), ("o", o), ("x", x)):
            if found in grants:
                world.put(accessor, grants=grants[found], age=age)
        yield f"current {c}, pending {p}, previous {o}, orphan {x}, {age.days} d", world


def converged(world: World) -> None:
    """One live token a role, as declared, which Vault holds; nothing else of ours."""
    ours = {a for tokens in world.consul.values() for a, t in tokens.items() if t.role}
    assert ours == {slots.current for slots in world.vault.values()}
    for role, slots in world.vault.items():
        assert (slots.pending, slots.previous) == (None, None)
        found = world.find(slots.current)
        assert found is not None
        assert found.grants == declared_grants(world.mesh, world.mesh.token(role))
        assert found.description == description(role)


def finish(world: World, rounds: int = 3) -> int:
    """Plan and apply until nothing is left to do; in how many rounds."""
    for number in range(rounds):
        found = plan(world)
        if not found.todo:
            converged(world)
            return number
        for _ in batch(found, world):
            pass
    raise AssertionError(f"still to do: {plan(world).todo}")


def works(world: World) -> bool:
    """Whether the token that consumers read grants all that is declared."""
    found = world.find(world.vault.get("payments", Slots()).current)
    return found is not None and "payments" in found.grants.policies


@pytest.mark.parametrize("world", [pytest.param(world, id=name) for name, world in states()])
def test_every_state_converges_and_so_does_every_interruption_of_its_way(world: World):
    """Whatever was found and wherever it is cut off: one live token, none orphaned."""
    worked = works(world)
    here = world.copy()
    places = 0
    for _ in range(3):
        found = plan(here)
        if not found.todo:
            break
        for where, after in batch(found, here):
            places += 1
            # Consumers never lose what worked, at no call, in no run after.
            assert works(after) or not worked, where
            worked = worked or works(after)
            finish(after)
    converged(here)
    assert finish(here) == 0, "a second run does something"
    assert places or not plan(world).todo


def test_many_roles_are_interrupted_at_any_call():
    """A batch whose roles are in different states; kills everywhere, over and over."""
    many = mesh(*(declared(f"role-{n}") for n in range(6)))
    world = World(many)
    for n, slots in enumerate(
        (Slots("a0"), Slots("a1", "p1"), Slots("a2", None, "o2"), Slots(None, "p3"), Slots())
    ):
        world.vault[f"role-{n}"] = slots
        for accessor in slots:
            world.put(accessor, f"role-{n}", age=OLD)

    places = list(batch(plan(world), world.copy()))
    assert len(places) > 25
    for where, after in places:
        for _, twice in list(batch(plan(after), after.copy()))[::3]:
            assert finish(twice) <= 2, where


def test_a_proof_that_fails_leaves_the_old_token_as_it_was():
    """R6: withdrawn, and Vault and Consul are as before."""
    world = World(MESH, {"payments": Slots("a")})
    world.put("a", age=OLD)
    before = world.copy()
    (token,) = plan(world).todo
    for step in ("store", "create"):
        world.do(step, token)
    for parts in (1, 2):
        partly = world.copy()
        partly.do("withdraw", token, parts=parts)
        assert works(partly)
        finish(partly)

    world.do("withdraw", token)

    assert (world.vault, world.consul) == (before.vault, before.consul)
