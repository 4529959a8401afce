"""What is done at Vault's Consul secrets engine, and that it can mint after every interruption."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import product

import pytest

from tasks.planning.dynamic import Definition, plan_engines
from tasks.planning.engine_audit import engine_findings
from tasks.planning.rotation import NEW, RETIRE, plan_rotation
from tasks.planning.rotation_plan import Options, RotationPlan
from tasks.planning.token_audit import AuditSeen, judge
from tasks.planning.tokens_seen import Grants, Slots
from tasks.vault_setup import engine_rules, runbook_policy
from tests.planning import tokens
from tests.planning.engines import ENGINE, MANAGEMENT, ORDER, EngineWorld, dynamic, mesh
from tests.planning.tokens import HOUR, SECONDARY

OLD = timedelta(days=31)
DISARMED = Grants()
MESH = mesh()
TOLD = ("configure", *NEW)


def plan(world: EngineWorld, **options: object) -> RotationPlan:
    return plan_engines(world.mesh, world.look(), Options(**options))  # type: ignore[arg-type]


def steps(world: EngineWorld, **options: object) -> dict[str, tuple[str, ...]]:
    return {t.role: t.steps for t in plan(world, **options).todo}


def good(**more: object) -> EngineWorld:
    """One mount as it should be."""
    world = EngineWorld(MESH, {ENGINE: Slots("c")}, **more)  # type: ignore[arg-type]
    world.access("c")
    world.engine = "c"
    return world


# One state after the other


def test_nothing_is_done_to_an_engine_that_is_as_declared():
    world = good()
    world.lease("young", ago=HOUR)

    found = plan(world)

    assert found.todo == ()
    assert [t.reason for t in found.tokens] == [
        "not due before 30 d",
        "as declared, and no lease due before 30 d",
    ]


def test_the_first_access_token_is_told_to_the_engine_before_it_is_promoted():
    world = EngineWorld(MESH)
    world.definitions = {}

    assert steps(world) == {ENGINE: TOLD, "reader": ("define", "mint")}


def test_an_old_access_token_is_replaced_and_every_role_mints_with_the_new_one():
    world = good()
    world.change("c", created=world.now - OLD)

    assert steps(world) == {ENGINE: (*TOLD, *RETIRE), "reader": ("mint",)}


@pytest.mark.parametrize(
    ("slots", "consul", "wanted"),
    [
        (Slots(pending="p"), {}, ("configure", *NEW[1:])),
        (Slots(pending="p"), {"p": MANAGEMENT}, ("configure", *NEW[2:])),
        (Slots("c", "p"), {"c": MANAGEMENT, "p": MANAGEMENT}, ("configure", *NEW[2:], *RETIRE)),
        (Slots("c", None, "o"), {"c": MANAGEMENT, "o": MANAGEMENT}, ("configure", *RETIRE)),
        (Slots("c", None, "o"), {"c": MANAGEMENT, "o": DISARMED}, ("configure", *RETIRE[2:])),
        (Slots("c", None, "o"), {"c": MANAGEMENT}, ("forget",)),
        (
            Slots("c", "p", "o"),
            {"c": MANAGEMENT, "p": MANAGEMENT, "o": MANAGEMENT},
            ("configure", "withdraw", *RETIRE),
        ),
    ],
)
def test_what_an_earlier_run_began_is_ended(
    slots: Slots[str], consul: dict[str, Grants], wanted: tuple[str, ...]
):
    world = EngineWorld(MESH, {ENGINE: slots}, engine="c")
    for accessor, grants in consul.items():
        world.access(accessor, grants=grants)

    assert steps(world)[ENGINE] == wanted


def test_an_engine_that_lost_its_configuration_gets_it_again():
    world = good(address="")
    elsewhere = good(address="http://127.0.0.1:8500")

    assert steps(world) == steps(elsewhere) == {ENGINE: ("configure",)}
    assert plan(world).todo[0].reason == "the engine is not configured"
    assert plan(elsewhere).todo[0].reason == "the engine reaches Consul at http://127.0.0.1:8500"


@pytest.mark.parametrize("drift", ["put back", "report"])
def test_a_role_edited_in_vault_is_put_back_or_reported(drift: str):
    world = good()
    world.mesh = mesh(dynamic(drift=drift))
    world.definitions["reader"] = Definition(frozenset({"payments", "more"}), ttl=60, max_ttl=86400)

    found = plan(world)

    text = "its role in Vault has policies more payments, ttl 60"
    if drift == "put back":
        assert [(t.steps, t.reason) for t in found.todo] == [(("define", "mint"), text)]
    else:
        assert found.todo == ()
        assert found.notices == (f"reader: {text}; it is left so, as declared",)


@pytest.mark.parametrize(
    ("older_than", "ended"), [(None, ["old"]), (0, ["old", "young"]), (1000, [])]
)
def test_leases_that_are_too_old_end(older_than: float | None, ended: list[str]):
    world = good()
    world.lease("old", ago=OLD)
    world.lease("young", ago=HOUR)

    found = steps(world, older_than_hours=older_than, roles=("reader",))

    assert found == ({"reader": ("end",)} if ended else {})


def test_a_vault_without_the_engine_is_one_line_and_nothing_is_touched():
    two = mesh(dynamic(), dynamic("writer"))
    world = EngineWorld(two, wrong="this Vault has no Consul secrets engine at consul/")

    found = plan(world)

    assert found.tokens == ()
    assert [str(r.where) for r in found.blocked] == [f"reader writer {ENGINE}"]


def test_a_role_without_its_policy_is_left_alone():
    world = good(policies=frozenset({"global-management"}))

    found = plan(world, older_than_hours=0)

    assert [r.where for r in found.blocked] == ["reader"]
    assert [t.role for t in found.todo] == [ENGINE]


def test_a_run_that_works_with_the_access_token_itself_is_refused():
    world = good()
    world.vault[ENGINE] = Slots("management")
    world.access("management")

    (refusal,) = plan(world).refusals

    assert "saws off the branch" in refusal.error


# Orphans


@pytest.mark.parametrize(
    ("made", "leased", "orphan"),
    [
        (HOUR, None, True),
        (HOUR, HOUR, False),  # by the same clock, at the same moment
        (HOUR, HOUR - timedelta(seconds=100), False),  # may be its lease
        (HOUR, HOUR - timedelta(seconds=130), True),
        (HOUR, HOUR + timedelta(seconds=5), True),  # issued before it was made
        (timedelta(minutes=9), None, False),  # too young to say
    ],
)
def test_a_minted_token_is_an_orphan_if_no_lease_can_be_its_own(
    made: timedelta, leased: timedelta | None, orphan: bool
):
    world = good()
    world.minted("m", ago=made)
    if leased is not None:
        world.lease("l", ago=leased)

    found = [t for t in plan(world).todo if t.orphan]

    assert [t.old for t in found] == (["m"] if orphan else [])
    seen = world.look()
    told = list(engine_findings(world.mesh, seen.tokens, seen.mounts))
    assert [f.level for f in told] == (["fail"] if orphan else ["ok"])


def test_minted_tokens_are_no_strangers_and_others_are():
    world = good()
    world.minted("m", ago=HOUR)
    world.minted("x", ago=HOUR, role="nobody")

    told = plan_rotation(world.mesh, world.seen(), Options())

    assert told.todo == ()
    assert [line.split()[2] for line in told.notices] == ["x"]


@pytest.mark.parametrize("held", [True, False])
def test_the_audit_alarms_on_a_management_token_unless_it_is_the_engines(held: bool):
    world = good()
    world.change("c", management=True)
    world.put("bootstrap", text="Bootstrap Token (Global Management)", grants=MANAGEMENT)
    world.change("bootstrap", management=True)
    if not held:
        world.vault[ENGINE] = Slots()
    seen = world.look()

    found = judge(world.mesh, AuditSeen(seen.tokens, management="bootstrap", engines=seen.mounts))

    bad = [f.subject for f in found.findings if f.level == "fail"]
    assert bad == ([] if held else ["management token"])


def test_an_access_token_is_no_orphan_of_the_others():
    """The rotation of ACL tokens leaves it to this one, held or not."""
    world = EngineWorld(mesh(dynamic(), tokens.declared()), {"payments": Slots("a")})
    world.put("a")
    world.access("lost")

    assert plan_rotation(world.mesh, world.seen(), Options()).todo == ()


def test_a_stray_access_token_goes_only_after_the_engine_was_told():
    world = good()
    world.access("x")
    world.engine = "x"

    found = plan(world)

    assert [(t.role, t.steps, t.old) for t in found.todo] == [
        (ENGINE, ("configure",), ""),
        (ENGINE, ("disarm", "soak", "revoke"), "x"),
    ]


def test_what_cannot_be_looked_at_has_no_orphans():
    world = good(wrong="the runbooks may not look")
    world.minted("m", ago=HOUR)
    world.access("x")

    assert plan(world).todo == ()


def test_the_runbooks_may_do_at_the_engine_what_they_need_and_without_it_nothing():
    rules = engine_rules(MESH)

    assert rules in runbook_policy(MESH)
    assert 'path "consul/creds/reader" { capabilities = ["read"] }' in rules
    assert (
        'path "sys/leases/lookup/consul/creds/reader/" { capabilities = ["list", "sudo"]' in rules
    )
    assert engine_rules(tokens.mesh()) == ""


def test_a_local_role_is_minted_where_it_is_declared():
    local = mesh(dynamic(local=True, datacenters=[SECONDARY]))

    (access,) = [t for t in local.roles() if t.role == ENGINE]

    eu = local.host(local.datacenter(SECONDARY).consul.servers[0]).address
    assert access.consul_address == f"{eu}:8501"
    assert not access.local


# Interruptions


def states() -> Iterator[tuple[str, EngineWorld]]:
    """Whatever may be found of one mount, and whatever its engine works with."""
    grants = {"armed": MANAGEMENT, "disarmed": DISARMED}
    current, pending, previous = (
        ("", "dead", "armed", "disarmed"),
        ("", "dead", "armed"),
        ("", "armed", "disarmed"),
    )
    engines = ("", "c", "p", "o", "x", "hand")
    ages = (HOUR, OLD)
    for c, p, o, x, engine, age in product(
        current, pending, previous, ("", "armed"), engines, ages
    ):
        found = {"c": c, "p": p, "o": o, "x": x, "hand": "armed"}
        if engine and found[engine] in {"", "dead"}:
            continue
        world = EngineWorld(MESH, engine=engine)
        held = ("c" if c else None, "p" if p else None, "o" if o else None)
        world.vault[ENGINE] = Slots(*held)
        for accessor in "cpox":
            if found[accessor] in grants:
                world.access(accessor, grants=grants[found[accessor]], age=age)
        world.put("hand", text="by hand", grants=MANAGEMENT)
        if x:
            world.definitions = {}
        yield f"current {c}, pending {p}, previous {o}, orphan {x}, engine {engine}", world


def batch(found: RotationPlan, world: EngineWorld) -> Iterator[tuple[str, EngineWorld]]:
    """A plan carried out as the flow does; the world after each call."""
    for step in ORDER:
        for token in found.todo:
            back = step == "configure back" and "withdraw" in token.steps
            if step in token.steps or back:
                for parts in range(1, world.copy().do(step, token) + 1):  # type: ignore[arg-type]
                    partly = world.copy()
                    partly.do(step, token, parts=parts)  # type: ignore[arg-type]
                    yield f"{step} of {token.role}, {parts} calls", partly
                world.do(step, token)  # type: ignore[arg-type]


def to_its_end(world: EngineWorld) -> None:
    """Run after run until one finds nothing to do; the engine never loses what it has."""
    for _ in range(4):
        found = plan(world)
        assert found.refusals == found.blocked == ()
        if not found.todo:
            break
        could = world.mints
        for what, after in batch(found, world):
            assert after.mints or not could, f"the engine cannot mint any more after {what}"
            could = after.mints
    assert found.todo == ()
    slots = world.vault[ENGINE]
    ours = {a for t in world.consul.values() for a, token in t.items() if token.role == ENGINE}
    assert (ours, slots.pending, slots.previous) == ({slots.current}, None, None)
    assert world.engine in {slots.current, "hand"}
    assert world.mints
    assert set(world.definitions) == {"reader"}


def test_every_interruption_of_every_state_ends_the_same():
    """Cut off after each call, and then again from there: one token, which the engine has."""
    cuts = 0
    for what, world in states():
        if not plan(world).todo:
            to_its_end(world)
        could = world.mints
        for where, cut in batch(plan(world), world.copy()):
            assert cut.mints or not could, f"{what}, cut off after {where}"
            could = cut.mints
            try:
                to_its_end(cut)
            except AssertionError as error:
                raise AssertionError(f"{what}, cut off after {where}: {error}") from error
            cuts += 1
    assert cuts > 2000
