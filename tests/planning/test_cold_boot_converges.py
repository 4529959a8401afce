"""An interruption is just another starting state: every one of them leads to a healthy mesh."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.planning.cold_boot import Options, Plan, PlannedStep, plan_cold_boot
from tasks.planning.survey import dark, healthy
from tests.planning.meshes import NOW, mesh
from tests.planning.model import World

MESH = mesh()
QUICK = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def adversely(steps: Iterable[PlannedStep]) -> Iterator[PlannedStep]:
    """In the worst order that the waits allow: always the last of those that may go."""
    waiting = {step.id: step for step in steps}
    while waiting:
        last = [s for s in waiting.values() if not set(s.waits_for) & waiting.keys()][-1]
        yield waiting.pop(last.id)


def carry_out(world: World, options: Options, rounds: int = 8) -> list[Plan]:
    """Plan, apply as far as can be seen, look again, until nothing is left to change."""
    plans = []
    for _ in range(rounds):
        plan = plan_cold_boot(world.mesh, world.survey(), options)
        plans.append(plan)
        if plan.refusals or not plan.mutating:
            return plans
        for step in adversely(plan.horizon()):
            world.do(step, options)
    raise AssertionError(f"still to do: {[s.id for s in plan.mutating]}")


def interruptions(world: World, options: Options) -> Iterator[tuple[str, World]]:
    """The world after each step, and after each target of each step, on its way up."""
    while (plan := plan_cold_boot(world.mesh, world.survey(), options)).mutating:
        assert not plan.refusals
        for step in adversely(plan.horizon()):
            for targets in range(1, len(step.targets)):
                partly = world.copy()
                partly.do(step, options, targets)
                yield f"{step.id} on {targets}", partly
            world.do(step, options)
            yield step.id, world.copy()
        options = _after_restoring(world, options)


def _after_restoring(world: World, options: Options) -> Options:
    """What the refusal says once the data is back."""
    return Options() if options.fallback == "restore-vault" and world.open else options


def blackout() -> World:
    world = World.up(MESH)
    world.cut(set(world.on))
    return world


def storm() -> World:
    """Vault sealed by a restart, Consul's leaders lost: the lock."""
    world = World.up(MESH)
    world.open.clear()
    world.leader.clear()
    world.gateways.clear()
    return world


def one_dark() -> World:
    world = World.up(MESH)
    world.cut({h.name for h in MESH.datacenter("eu-west-1").hosts})
    return world


def expired_certificate() -> World:
    world = blackout()
    world.expired = {("us-consul-1", "/etc/mesh/tls/consul.pem")}
    return world


def data_gone() -> World:
    world = blackout()
    world.data.clear()
    world.keys = "held"
    return world


def half_born() -> World:
    """Initialised, its shares kept, killed before the set-up."""
    world = World.unborn(MESH)
    world.on = {h.name for _, h in MESH.hosts()}
    world.keys, world.data, world.inits = "held", {"vault-1"}, 1
    return world


STARTS = {
    "blackout": (blackout, Options()),
    "storm": (storm, Options()),
    "one datacenter dark": (one_dark, Options()),
    "expired certificate": (expired_certificate, Options()),
    "never ran": (lambda: World.unborn(MESH), Options(initialise=True)),
    "half-initialised day 0": (half_born, Options(initialise=True)),
    "Vault's data gone": (data_gone, Options(fallback="restore-vault")),
}


@pytest.mark.parametrize("start", STARTS)
def test_an_interruption_anywhere_converges(start: str):
    """Killed after any step, or on any target of one, the next runs finish it."""
    make, options = STARTS[start]
    seen = 0
    for where, world in interruptions(make(), options):
        carry_out(world, options)
        carry_out(world, _after_restoring(world, options))
        assert world.healthy(), f"interrupted after {where}"
        assert world.inits <= 1
        seen += 1
    assert seen > 5


def test_a_lost_init_halts_and_is_discarded_only_with_approval():
    """Init was carried out and its answer lost: nothing is built on it."""
    world = World.unborn(MESH)
    world.on = {h.name for _, h in MESH.hosts()}
    world.keys, world.data = "intended", {"vault-1"}

    refused = plan_cold_boot(MESH, world.survey(), Options(initialise=True))
    assert not refused.steps
    assert "discard_lost_init=true" in refused.refusals[0].do

    approved = Options(initialise=True, discard_lost_init=True)
    for where, interrupted in interruptions(world.copy(), approved):
        carry_out(interrupted, approved)
        assert interrupted.healthy(), f"interrupted after {where}"


def test_break_glass_serves_without_vault_and_is_put_back():
    """All-dark with Vault lost, then Vault comes back."""
    broken = Options(fallback="break-glass")
    for where, world in interruptions(blackout(), broken):
        plans = carry_out(world, broken)
        assert world.leader == {"us-east-1", "eu-west-1"}, f"interrupted after {where}"
        assert plans[-1].steps[-1].id == "prove"

        carry_out(world, Options())
        assert world.healthy(), f"interrupted after {where}"


def test_break_glass_in_the_storm_is_not_taken_for_a_healthy_mesh():
    world = storm()
    carry_out(world, Options(fallback="break-glass"))
    assert not world.open

    plan = plan_cold_boot(MESH, world.survey(), Options())
    assert {"unbreak:us-east-1", "unbreak:eu-west-1"} <= {s.id for s in plan.steps}


def test_a_break_glass_that_ran_out_is_extended_or_ended_never_forgotten():
    world = storm()
    broken = Options(fallback="break-glass", break_glass_hours=1)
    carry_out(world, broken)
    assert not plan_cold_boot(MESH, world.survey(), broken).mutating

    world.now = max(world.glass.values())
    plan = plan_cold_boot(MESH, world.survey(), broken)
    assert {"extend"} == {s.action for s in plan.mutating}
    assert any("ITS TIME RAN OUT" in n for n in plan.notices)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A mesh that ran once, in any state that faults can leave it in."""
    world = World.up(MESH)
    hosts = sorted(world.on)
    some = st.sets(st.sampled_from(hosts))
    world.open -= draw(some)
    world.stopped = draw(some) & world.data
    world.open -= world.stopped
    world.data -= draw(some) & {"vault-2", "vault-3"}
    world.open &= world.data
    world.running -= draw(some)
    world.gateways -= draw(some)
    world.services -= {s for s in world.services if draw(st.booleans())}
    world.components -= {c for c in world.components if draw(st.booleans())}
    world.bare = draw(some) & {
        n for d in MESH.datacenters for n in [*d.consul.servers, *MESH.client_hosts(d.name)]
    }
    world.gateways -= world.bare
    world.intentions = draw(st.booleans())
    # The primary's first, as Consul itself demands.
    world.ca_on_vault &= draw(st.sampled_from([set(), {MESH.primary}, world.leader]))
    if draw(st.booleans()):
        world.expired = {("us-consul-1", "/etc/mesh/tls/consul.pem")}
    if draw(st.booleans()):
        world.leader.clear()
    world._settle()
    world.cut(draw(some))
    return world


def test_from_the_dark_the_whole_plan_holds_without_looking_again():
    """What is shown at first is what happens, if the dark hides nothing unusual."""
    for make, options in (
        (blackout, Options()),
        (lambda: World.unborn(MESH), Options(initialise=True)),
    ):
        world = make()
        for step in adversely(plan_cold_boot(MESH, world.survey(), options).steps):
            world.do(step, options)
        assert world.healthy()


@given(worlds())
@QUICK
def test_whatever_is_seen_is_brought_back(world: World):
    carry_out(world, Options())
    assert world.healthy()


@given(worlds(), st.booleans())
@QUICK
def test_init_is_never_planned_over_a_node_with_data(world: World, keys: bool):
    """B1, whatever the holders' stores say."""
    world.keys = "held" if keys else "none"
    plan = plan_cold_boot(MESH, world.survey(), Options(initialise=True))
    if any(n.state in {"sealed", "standby", "active"} for n in world.survey().vault.nodes.values()):
        assert not plan.stage("init")


@given(worlds(), st.sampled_from(["wait", "break-glass", "restore-vault"]), st.booleans())
@QUICK
def test_a_plan_is_ordered_and_a_refused_one_is_empty(world: World, fallback, initialise: bool):
    plan = plan_cold_boot(MESH, world.survey(), Options(fallback=fallback, initialise=initialise))
    if plan.refusals:
        assert not plan.steps
        assert all(refusal.do for refusal in plan.refusals)
        return
    done: set[str] = set()
    for step in plan.steps:
        assert set(step.waits_for) <= done
        assert step.targets
        done.add(step.id)
    assert plan.steps[-1].id == "prove"
    numbers = [plan.numbers[s.id] for s in plan.steps]
    assert numbers == sorted(numbers)


def test_a_healthy_mesh_is_only_proven():
    """B9, from the model's survey and from the ready-made one."""
    for survey in (World.up(MESH).survey(), healthy(MESH, NOW)):
        plan = plan_cold_boot(MESH, survey, Options())
        assert [s.id for s in plan.steps] == ["prove"]
        assert plan.mutating == ()
        assert plan.notices == ()


def test_it_plans_a_thousand_hosts_in_a_second():
    large = mesh(apps=90, secondaries=10)
    assert len(list(large.hosts())) > 1000
    lit = healthy(large, NOW)
    for survey in (dark(large, NOW), lit, replace(lit, services={})):
        began = time.process_time()
        plan = plan_cold_boot(large, survey)
        plan.as_rows()
        took = time.process_time() - began
        assert not plan.refusals
        assert took < 1.0
