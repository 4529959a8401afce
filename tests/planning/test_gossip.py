"""The gossip key: what is done about each state, and that every interruption leads to one key."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from blocks.errors import BadInput
from blocks.topology import Mesh, parse
from tasks.planning.gossip import ORDER, Do
from tasks.planning.gossip_seen import DiskSeen, Pool, Roll, fingerprint
from tasks.planning.tokens_seen import Slots
from tests.planning.gossiping import ROLE, World, declared, mesh

MESH = mesh()
WHOLE = ORDER[1:]  # of a key that Vault has
ENDING: tuple[Do, ...] = ("freeze", "soak", "remove", "thaw", "forget")


def rotated(world: World, *, upto: str = "", installed: int = 99) -> World:
    """A world in which a rotation got so far; of the last step only so many changes."""
    for step in ORDER[1:]:
        moves = list(world.moves(step))
        for move in moves[: installed if step == upto else len(moves)]:
            move()
        if step == upto:
            break
    return world


def known(**more: Any) -> World:
    return World(MESH, vault=Slots("a"), **more)


def steps(world: World, **options: Any) -> tuple[str, ...]:
    (token,) = world.plan(**options).tokens
    return token.steps


# One state after the other


def test_the_key_that_all_use_is_taken_over_and_not_replaced_before_it_is_due():
    found = World(MESH).plan()

    assert found.tokens[0].steps == ("take over",)
    assert [(r["action"], r["reason"]) for r in found.as_rows()] == [
        ("take over", "key a is in use and not in Vault; its age counts from now")
    ]


def test_a_key_that_is_taken_over_can_be_replaced_at_once():
    assert steps(World(MESH), older_than_hours=0) == ORDER


def test_a_young_key_is_kept():
    found = known(age=timedelta(hours=1)).plan()

    assert found.todo == ()
    assert [r["reason"] for r in found.as_rows()] == ["key a is not due before 30 d (60 min old)"]


def test_an_old_one_is_replaced_install_before_use_before_remove():
    found = known().plan()

    assert found.tokens[0].steps == WHOLE
    assert found.tokens[0].old == "a"
    assert [r["action"] for r in found.as_rows()] == [
        "install",
        "use",
        "write",
        "remove",
        "forget",
    ]
    assert found.as_rows()[0]["reason"] == "key a is due after 30 d (31 d old)"


@pytest.mark.parametrize(
    ("upto", "left"),
    [
        ("store", ("freeze", "install", "use", "switch", "write", "soak", "remove", "thaw")),
        ("freeze", ("freeze", "install", "use", "switch", "write", "soak", "remove", "thaw")),
        ("install", ("freeze", "use", "switch", "write", "soak", "remove", "thaw")),
        ("use", ("freeze", "switch", "write", "soak", "remove", "thaw")),
        ("switch", ("freeze", "write", "soak", "remove", "thaw")),
        ("write", ("freeze", "soak", "remove", "thaw")),
        ("remove", ("thaw",)),
        ("thaw", ()),
    ],
)
def test_what_an_earlier_run_began_is_ended_and_no_more(upto: str, left: tuple[Do, ...]):
    world = rotated(known(), upto=upto)

    assert steps(world, older_than_hours=0) == (*left, "forget")


@pytest.mark.parametrize(("upto", "first"), [("install", "install"), ("use", "use")])
def test_what_only_some_have_done_is_done_by_all_before_the_next(upto: str, first: str):
    world = rotated(known(), upto=upto, installed=3)

    assert steps(world)[1] == first


def test_a_mark_that_was_left_behind_goes():
    assert steps(known(age=timedelta(0), frozen=True)) == ("thaw",)


def test_a_host_that_would_start_with_another_key_gets_the_one_in_use():
    world = known(age=timedelta(0))
    world.files["eu-app-1"] = "z"

    found = world.plan()

    assert found.tokens[0].steps == ("write",)
    assert "would start with another key" in found.tokens[0].reason


def test_an_older_vault_learns_the_key_that_all_use():
    """Restored from a snapshot of before the last rotation."""
    world = replace(known(), key="b", rings={}, files={})

    assert steps(world) == ("take over",)


def test_an_older_vault_that_has_the_key_as_pending_goes_on_from_there():
    world = replace(known(), key="b", rings={}, files={}, vault=Slots("a", "b"))

    assert steps(world) == ("switch", "forget")


# Nothing is planned


def blocked(world: World, **seen: Any) -> list[str]:
    found = world.plan(world.seen(**seen), older_than_hours=0)
    assert found.tokens == ()
    assert {r.where for r in found.blocked} == {"gossip-key"}
    return [r.error for r in found.blocked]


def test_an_absent_agent_stops_it_before_anything_changes():
    roll = Roll({"us-app-1": "failed", "eu-consul-1": "left in the WAN"})

    assert blocked(known(), roll=roll) == [
        "the agent of us-app-1 is not there (failed)",
        "the agent of eu-consul-1 is not there (left in the WAN)",
    ]
    assert blocked(known(), roll=roll, pools=())


def test_an_absent_agent_is_only_told_of_while_nothing_is_due():
    """A nightly run does not fail because a host is down."""
    world = known(age=timedelta(hours=1))
    roll = Roll({"us-app-1": "failed"})

    found = world.plan(world.seen(roll=roll))

    assert (found.blocked, found.todo) == ((), ())
    assert found.notices == ("gossip-key: the agent of us-app-1 is not there (failed)",)
    under_way = rotated(known(age=timedelta(hours=1)), upto="install")
    assert under_way.plan(under_way.seen(roll=roll)).blocked
    fresh = World(MESH)
    assert fresh.plan(fresh.seen(roll=roll)).todo == ()


def test_an_absent_agent_with_a_key_of_its_own_is_told_so():
    world = known()
    disks = world.disks() | {"us-app-1": DiskSeen((("z",),), "z")}

    assert blocked(world, roll=Roll({"us-app-1": "no member"}), disks=disks) == [
        (
            "the agent of us-app-1 is not there (no member), and its keyring has no key a, "
            "which others encrypt with"
        )
    ]


def test_a_member_that_nobody_knows_counts():
    world = known()

    assert blocked(world, roll=Roll(lost={"spare-1": "failed"})) == [
        "spare-1, a member that the topology does not know, is not there (failed)"
    ]
    notices = world.plan(world.seen(roll=Roll(strangers=("spare-1",)))).notices
    assert ["spare-1" in notice for notice in notices] == [True]


def test_a_key_that_vault_does_not_hold_is_named_with_who_has_it():
    world = known()
    world.rings["us-east-1", "us-app-1"].append("z")

    assert blocked(world) == [
        "1 of 3 agents in us-east-1 have key z, which Vault does not hold: us-app-1"
    ]


def test_a_rotation_begun_by_hand_on_a_mesh_that_vault_does_not_know_is_left_alone():
    world = World(MESH)
    for ring in world.rings.values():
        ring.append("z")

    assert len(blocked(world)) == 2 * 3


def test_agents_that_differ_without_a_rotation_are_left_alone():
    world = known()
    seen = world.seen()
    pools = (replace(seen.pools[0], keys={"a": 2}, primary={"a": 2}), *seen.pools[1:])

    assert blocked(world, pools=pools) == [
        "agents have or use different keys, and no rotation is under way"
    ]


def test_a_disk_that_cannot_be_read_stops_it():
    world = known()
    disks = world.disks() | {"us-app-1": DiskSeen(error="/x holds no `encrypt`, not one")}

    assert blocked(world, disks=disks) == ["us-app-1: /x holds no `encrypt`, not one"]
    assert len(blocked(world, unreadable="it holds something else")) == 1


# Interrupted everywhere


def carried_out(world: World, *, changes: int = 10_000) -> int:
    """Do what is planned, at most so many changes; how many there were. All understand each other."""
    done = 0
    (token,) = world.plan(older_than_hours=0).tokens
    for step in token.steps:
        for move in world.moves(step):  # type: ignore[arg-type]
            if done == changes:
                return done
            move()
            done += 1
            assert world.understood(), f"after change {done}, in {step}"
    return done


@pytest.mark.parametrize("start", [World(MESH), known()])
def test_killed_after_each_change_the_next_run_ends_with_one_key(start: World):
    total = carried_out(start.copy())
    assert total > 2 * len(start.rings) + len(start.files)

    for cut in range(total):
        world = start.copy()
        carried_out(world, changes=cut)
        carried_out(world)
        (left,) = world.plan().tokens
        while left.steps:  # one that was killed at its end is not begun anew by the next
            carried_out(world)
            (left,) = world.plan().tokens
        key = world.vault.current
        assert world.vault == Slots(key), f"after {cut}"
        assert {tuple(ring) for ring in world.rings.values()} == {(key,)}
        assert set(world.files.values()) == {key}
        assert not world.frozen
        assert key != "a" or cut <= 1


@pytest.mark.parametrize("second", range(0, 40, 3))
def test_killed_twice(second: int):
    for first in range(0, 40, 2):
        world = known()
        carried_out(world, changes=first)
        carried_out(world, changes=second)
        carried_out(world)

        assert world.understood()
        assert len({tuple(ring) for ring in world.rings.values()}) == 1


# What it is made of


def test_a_fingerprint_is_no_part_of_the_key():
    key = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

    assert fingerprint(key) == "630dcd2966c4"
    assert fingerprint("no base64!") not in "no base64!"


def test_a_pool_without_one_of_its_agents_has_no_key_in_common():
    pool = Pool("WAN", 3, {"a": 3, "b": 2}, {"a": 2, "b": 1})

    assert [pool.all_have("a"), pool.all_have("b"), pool.all_use("a"), pool.all_have(None)] == [
        True,
        False,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"path": "consul/bootstrap"}, "consul/bootstrap belongs to the runbooks themselves"),
        ({"policies": ["x"]}, ".policies: means nothing for the gossip key"),
        ({"overlap_seconds": 3}, ".overlap_seconds: means nothing for the gossip key"),
    ],
)
def test_what_a_declaration_may_say(change: dict[str, Any], line: str):
    with pytest.raises(BadInput, match=line):
        parse(declared() | {"tokens": [ROLE | change]})


def test_there_is_one_gossip_key_and_a_file_for_it_on_every_host():
    made = declared()
    del made["datacenters"][1]["consul"]["gossip_file"]

    with pytest.raises(BadInput) as raised:
        parse(made | {"tokens": [ROLE, ROLE | {"role": "other", "path": "gossip/other"}]})
    assert "eu-west-1].consul.gossip_file: gossip-key needs it" in str(raised.value)
    assert "tokens[other]: the mesh has one gossip key" in str(raised.value)
    assert isinstance(MESH, Mesh)
