"""Which tokens are found fault with, how bad that is, and what is to be done."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.planning.token_audit import MANY, AuditSeen, BootToken, confirmed, judge
from tasks.planning.tokens_seen import ANONYMOUS, Grants, Slots
from tasks.planning.verdict import Finding, Verdict
from tests.planning.tokens import HOUR, PRIMARY, SECONDARY, World, declared, mesh

DAY = timedelta(days=1)
FOREIGN = [{"description": "terraform *"}, {"accessor": "partner"}]
MESH = mesh(foreign_tokens=FOREIGN)
NODE = Grants(nodes=frozenset({f"us-app-1 in {PRIMARY}"}))
BOOT = BootToken("agent-us-app-1", "agent of us-app-1", NODE)
SERVICES = frozenset({"consul", "payment-processor"})


def good(**more: Any) -> World:
    """One declared token, one of the boot, the management token, and the anonymous one."""
    world = World(more.pop("mesh", MESH), {"payments": Slots("live")}, **more)
    world.put("live")
    world.put("agent", grants=NODE, text="agent of us-app-1")
    world.put("management", grants=Grants(frozenset({"global-management"})), text="Bootstrap")
    world.change("management", management=True)
    world.put(ANONYMOUS, grants=Grants(), text="Anonymous Token")
    return world


def seen(world: World, **more: Any) -> AuditSeen:
    usual: dict[str, Any] = {
        "boot": (BOOT,),
        "kept": {"agent-us-app-1": "agent"},
        "management": "management",
        "services": {PRIMARY: SERVICES, SECONDARY: SERVICES},
    }
    return AuditSeen(world.seen(), **(usual | more))


def verdict(world: World, **more: Any) -> Verdict:
    return judge(world.mesh, seen(world, **more))


def test_a_mesh_whose_tokens_all_have_somebody_is_good():
    found = verdict(good())

    assert found.good
    assert [(f.level, f.subject, f.text) for f in found.findings] == [
        ("ok", "anonymous token", "grants nothing in us-east-1, eu-west-1"),
        ("ok", "management tokens", "one lives, which Vault keeps (60 min old)"),
        ("ok", "declared tokens", "1 of 1 live as declared"),
        ("ok", "tokens of the boot", "1 live, as the boot made them"),
        ("ok", "lists of tokens", "whole, and the same everywhere: 4 in us-east-1, 4 in eu-west-1"),
    ]


def put(accessor: str = "x", *, say: dict[str, Any] | None = None, **token: Any) -> Verdict:
    """A good mesh with one token more."""
    world = good()
    world.put(accessor, **({"text": ""} | token))
    world.change(accessor, **(say or {}))
    return verdict(world)


def changed(accessor: str, **what: Any) -> Verdict:
    world = good()
    world.change(accessor, **what)
    return verdict(world)


def held(*slots: str | None, age: timedelta = HOUR, **role: Any) -> Verdict:
    """What Vault holds of the one role; Consul has `live` and `other`."""
    world = good(mesh=mesh(declared(**role), foreign_tokens=FOREIGN))
    world.vault["payments"] = Slots(*slots)
    world.drop("live")
    world.put("live", age=age)
    world.put("other", age=age)
    if "other" not in slots:
        world.drop("other")
    return verdict(world)


def unreadable() -> Verdict:
    world = good()
    world.put("lost")
    whole = seen(world)
    tokens = replace(whole.tokens, held={}, unreadable={"payments": "permission denied"})
    return judge(MESH, replace(whole, tokens=tokens))


def anonymous_in_the_secondary() -> Verdict:
    world = good()
    world.consul[SECONDARY][ANONYMOUS] = replace(
        world.consul[SECONDARY][ANONYMOUS], grants=Grants(frozenset({"catalog"}))
    )
    return verdict(world)


def left_over(**grants: Any) -> Verdict:
    """The boot's token of a host that the topology has no more."""
    world = good()
    world.put("gone", text="agent of us-app-9", grants=Grants(**grants))
    return verdict(world, kept={"agent-us-app-1": "agent", "agent-us-app-9": "gone"})


def role_that_manages() -> Verdict:
    world = good()
    world.put("x", text="", grants=Grants(roles=frozenset({"all"})))
    return verdict(world, managing=frozenset({"all"}))


def own_stranger() -> Verdict:
    world = good()
    world.put("x", text="")
    whole = seen(world)
    return judge(MESH, replace(whole, tokens=replace(whole.tokens, own="x")))


def in_another_datacenter() -> Verdict:
    world = good(mesh=mesh(declared(local=True, datacenters=[SECONDARY])))
    world.drop("live")
    world.put("live", local=PRIMARY)
    return verdict(world)


GONE = frozenset({f"us-app-9 in {PRIMARY}"})
LATER = datetime.max.replace(tzinfo=UTC)
LONG_AGO = datetime.min.replace(tzinfo=UTC)

# What is seen, how bad it is, of what, and what is said about it.
FINDINGS: dict[str, tuple[Callable[[], Verdict], str, str, str]] = {
    "the anonymous token grants something": (
        lambda: changed(ANONYMOUS, grants=Grants(frozenset({"catalog"}))),
        "fail",
        "anonymous token",
        "everybody who has none is granted policies catalog in us-east-1, eu-west-1",
    ),
    "the anonymous token of one datacenter grants something": (
        anonymous_in_the_secondary,
        "fail",
        "anonymous token",
        "is granted policies catalog in eu-west-1",
    ),
    "a second management token": (
        lambda: put(say={"management": True}, age=31 * DAY, text="for the migration"),
        "fail",
        "management token",
        'x "for the migration" (31 d old, without expiry) may do everything',
    ),
    "management through a role": (
        role_that_manages,
        "fail",
        "management token",
        "may do everything",
    ),
    "how many manage, and how old they are": (
        lambda: put(say={"management": True}, age=31 * DAY),
        "warn",
        "management tokens",
        "2 live, 60 min to 31 d old",
    ),
    "a foreign one that may do everything": (
        lambda: put(say={"management": True}, text="terraform prod"),
        "warn",
        "management token",
        "as foreign_tokens has it",
    ),
    "the run works with another than Vault keeps": (
        lambda: verdict(good(), management="agent"),
        "fail",
        "management token",
        "may do everything and is the one that this run was given",
    ),
    "Vault keeps no management token": (
        lambda: verdict(good(), management=""),
        "warn",
        "management tokens",
        "Vault keeps none: this run was given token management",
    ),
    "Vault keeps one that manages nothing": (
        lambda: verdict(good(), management="agent"),
        "fail",
        "management tokens",
        "Vault keeps agent, which manages nothing in Consul",
    ),
    "made by us, and not in Vault": (
        lambda: put(text=None),
        "fail",
        "orphan",
        "is none that Vault holds for payments",
    ),
    "made by us for a role that is declared no more": (
        lambda: put(text="token of retired, rotated by mesh-runbooks"),
        "fail",
        "orphan",
        "is of retired, which is declared no more",
    ),
    "made by the boot, and another one is in Vault": (
        lambda: put(text="agent of us-app-1"),
        "fail",
        "orphan",
        "looks like agent-us-app-1 of the boot, which is another token",
    ),
    "in Vault, and not in Consul": (
        lambda: held("missing"),
        "fail",
        "payments",
        "Vault has missing at services/payments, and Consul has it no more",
    ),
    "of the boot in Vault, and not in Consul": (
        lambda: verdict(good(), kept={"agent-us-app-1": "missing"}),
        "fail",
        "orphan",
        "Vault has missing at mesh/consul/tokens/agent-us-app-1, and Consul has it no more",
    ),
    "a stranger without expiry": (
        lambda: put(text="  some\nbody's "),
        "fail",
        "stranger",
        'x "some body\'s" (60 min old, without expiry) is neither declared nor in foreign_tokens',
    ),
    "a stranger of one datacenter": (
        lambda: put(local=SECONDARY),
        "fail",
        "stranger",
        "x (60 min old, local to eu-west-1, without expiry)",
    ),
    "a stranger that expires": (
        lambda: put(say={"expires": World(MESH).now + 90 * timedelta(minutes=1)}),
        "warn",
        "stranger",
        "expires in 90 min",
    ),
    "the run's own token is a stranger": (
        own_stranger,
        "fail",
        "stranger",
        "this run was given it",
    ),
    "a role without a token": (
        held,
        "warn",
        "declared tokens",
        "no token yet: payments",
    ),
    "a path that cannot be read": (
        unreadable,
        "fail",
        "payments",
        "what Vault keeps at services/payments cannot be read: permission denied",
    ),
    "a rotation that did not end": (
        lambda: held("live", None, "other"),
        "warn",
        "payments",
        "a rotation of it is under way, or did not end",
    ),
    "a rotation that has not ended for a day, after the promotion": (
        lambda: held("live", None, "other", age=DAY + 2 * timedelta(minutes=1)),
        "fail",
        "payments",
        "did not end for more than a day",
    ),
    "a rotation that has not ended for a day, before the promotion": (
        lambda: held(None, "live", age=DAY + HOUR),
        "fail",
        "payments",
        "did not end for more than a day",
    ),
    "a rotation that soaks until just now": (
        lambda: held("live", None, "other", age=DAY + timedelta(minutes=1)),
        "warn",
        "payments",
        "a rotation of it is under way",
    ),
    "a token that was stored and nobody can read yet": (
        lambda: held(None, "missing"),
        "warn",
        "payments",
        "a rotation of it is under way, or did not end",
    ),
    "a token that is due": (
        lambda: held("live", age=30 * DAY),
        "warn",
        "payments",
        "live is 30 d old, 30 d are allowed",
    ),
    "a token that was due a day ago": (
        lambda: held("live", age=31 * DAY),
        "fail",
        "payments",
        "live is 31 d old, 30 d are allowed",
    ),
    "more than is declared": (
        lambda: changed("live", grants=Grants(frozenset({"payments", "root-of-all"}))),
        "fail",
        "payments",
        "live is not as declared: policies beside: root-of-all",
    ),
    "less than is declared": (
        lambda: changed("live", grants=Grants(), description="edited"),
        "fail",
        "payments",
        "live is not as declared: policies without payments; another description",
    ),
    "another place than is declared": (
        lambda: changed("live", local=True),
        "fail",
        "payments",
        "live is not as declared: local to us-east-1",
    ),
    "declared local, and it is not": (
        lambda: held("live", local=True, datacenters=[SECONDARY]),
        "fail",
        "payments",
        "live is not as declared: not local",
    ),
    "local, and in another datacenter than is declared": (
        in_another_datacenter,
        "fail",
        "payments",
        "live is not as declared: local to us-east-1",
    ),
    "a token of the boot that was edited": (
        lambda: changed("agent", grants=Grants(frozenset({"catalog"}), nodes=NODE.nodes)),
        "fail",
        "agent-us-app-1",
        "agent is not as the boot made it: policies beside: catalog",
    ),
    "a token of the boot that is not there yet": (
        lambda: verdict(good(), kept={}, boot=(replace(BOOT, description="of another"),)),
        "warn",
        "tokens of the boot",
        "none yet: agent-us-app-1",
    ),
    "a host that is gone, its token in Vault": (
        lambda: left_over(nodes=GONE),
        "fail",
        "nobody behind",
        'gone "agent of us-app-9" (60 min old, without expiry) is for what the topology has no more',
    ),
    "a host that is gone, and its token grants nothing any more": (
        left_over,
        "fail",
        "nobody behind",
        "is for what the topology has no more",
    ),
    "a host that is gone, its token gone too": (
        lambda: verdict(good(), kept={"agent-us-app-1": "agent", "agent-us-app-9": "missing"}),
        "fail",
        "orphan",
        "Vault has missing at mesh/consul/tokens/agent-us-app-9",
    ),
    "a node that is no host": (
        lambda: put(grants=Grants(nodes=GONE)),
        "fail",
        "nobody behind",
        "is for no host of the topology: us-app-9 in us-east-1",
    ),
    "a node of the other datacenter": (
        lambda: put(grants=Grants(nodes=frozenset({f"us-app-1 in {SECONDARY}"}))),
        "fail",
        "nobody behind",
        "us-app-1 in eu-west-1",
    ),
    "a service without an instance": (
        lambda: put(grants=Grants(services=frozenset({"retired"}))),
        "warn",
        "nobody behind",
        "is for no instance in the catalog: retired",
    ),
    "a legacy token": (
        lambda: put(say={"legacy": True, "created": LONG_AGO}),
        "fail",
        "legacy token",
        "x (of unknown age, legacy, without expiry) is of the ACL system that Consul 1.11 took away",
    ),
    "a legacy token that is declared foreign": (
        lambda: put("partner", say={"legacy": True}),
        "warn",
        "legacy token",
        "partner",
    ),
}


@pytest.mark.parametrize("name", FINDINGS)
def test_each_finding_says_how_bad_it_is_and_what_to_do(name: str):
    made, level, subject, text = FINDINGS[name]
    found = made()

    (one,) = [f for f in found.findings if f.subject == subject and text in f.text]
    assert one.level == level
    assert one.do
    assert found.good is (not any(f.level == "fail" for f in found.findings))
    ranks = [("fail", "warn", "ok").index(f.level) for f in found.findings]
    assert ranks == sorted(ranks), "the worst first"


def local_as_declared() -> Verdict:
    world = good(mesh=mesh(declared(local=True, datacenters=[SECONDARY])))
    world.drop("live")
    world.put("live", local=SECONDARY)
    return verdict(world)


# What an audit has nothing to say of.
FINE: dict[str, Callable[[], Verdict]] = {
    "foreign by its description": lambda: put(text="terraform prod"),
    "foreign by its accessor": lambda: put("partner"),
    "foreign, for a host that nobody knows": lambda: put("partner", grants=Grants(nodes=GONE)),
    "almost due": lambda: held("live", age=30 * DAY - HOUR),
    "local as declared": local_as_declared,
}


@pytest.mark.parametrize("name", FINE)
def test_nothing_is_said_of_what_is_as_it_should_be(name: str):
    assert {f.level for f in FINE[name]().findings} == {"ok"}


@pytest.mark.parametrize(
    ("service", "local", "told"),
    [
        ("payments", "", False),  # runs in the secondary
        (f"payments in {PRIMARY} {SECONDARY}", "", False),
        (f"payments in {PRIMARY}", "", True),
        ("payments", PRIMARY, True),
        ("payments", SECONDARY, False),
    ],
)
def test_a_service_counts_where_its_token_is_good(service: str, local: str, told: bool):
    world = good()
    world.put("partner-2", text="", local=local, grants=Grants(services=frozenset({service})))
    catalogs = {PRIMARY: SERVICES, SECONDARY: SERVICES | {"payments"}}

    found = verdict(world, services=catalogs)

    assert any(f.subject == "nobody behind" for f in found.findings) is told


@pytest.mark.parametrize(
    ("made", "accessor", "subject"),
    [
        # Three things are wrong with it, and one line says who it is.
        (
            lambda: put(say={"management": True, "legacy": True}, text="agent of us-app-1"),
            "x",
            "management token",
        ),
        (lambda: put(text="agent of us-app-1"), "x", "orphan"),
        (lambda: put(text=None), "x", "orphan"),
        (lambda: left_over(nodes=GONE), "gone", "nobody behind"),
        (lambda: changed("management", management=False), "management", "management tokens"),
    ],
)
def test_a_token_is_told_of_once_where_it_is_worst(
    made: Callable[[], Verdict], accessor: str, subject: str
):
    told = [
        f.subject
        for f in made().findings
        if f.level != "ok" and re.search(rf"(^| ){accessor}\b", f.text)
    ]

    assert told == [subject]


def test_a_token_of_a_role_whose_path_cannot_be_read_is_not_called_an_orphan():
    assert not any(f.subject == "orphan" for f in unreadable().findings)


def test_thousands_of_a_kind_are_counted_and_not_listed():
    world = good()
    for n in range(MANY + 980):
        world.put(f"x-{n}", text="")
    world.change("x-999", expires=LATER)

    found = [f for f in verdict(world).findings if f.subject.startswith("stranger")]

    assert len(found) == MANY + 1
    assert (found[-1].level, found[-1].text) == ("fail", "980 more")


def test_only_what_both_looks_show_alarms():
    stays, moves = Finding("fail", "a", "stays"), Finding("fail", "b", "moves")
    over, ok = Finding("fail", "c", "over"), Finding("ok", "d", "fine")

    found = confirmed(Verdict((stays, over)), Verdict((ok, moves, stays)))

    assert [(f.level, f.text) for f in found.findings] == [
        ("fail", "stays"),
        ("warn", "moves; not so a moment before"),
        ("ok", "fine"),
    ]


def test_a_rotation_under_way_is_no_alarm():
    """Consul was asked before a token was created and promoted, Vault afterwards."""
    world = good()
    between = seen(world)
    world.put("new")
    world.vault["payments"] = Slots("new", None, "live")
    caught = replace(between, tokens=replace(between.tokens, held=dict(world.vault)))
    first = judge(MESH, caught)
    assert not first.good

    assert confirmed(first, verdict(world)).good


MIGHTY = Grants(frozenset({"deploys"}))


@pytest.mark.parametrize(
    ("text", "level"), [("ci", "fail"), ("terraform 7", "warn"), ("agent of us-app-1", "fail")]
)
def test_a_policy_that_writes_acls_is_management_in_effect(text: str, level: str):
    world = good()
    world.put("x", text=text, grants=MIGHTY)

    (found,) = [
        f
        for f in verdict(world, mighty=frozenset({"deploys"})).findings
        if f.subject == "management token"
    ]

    assert found.level == level
    assert "may do everything by acl = write in its policy deploys" in found.text
    assert verdict(world).good is (level == "warn")  # a stranger, or none, where it is not mighty


def test_what_a_datacenter_replicates_by_is_no_management():
    boot = BootToken("replication-eu-west-1", "ACL replication of eu-west-1", MIGHTY)
    world = good()
    world.put("by", text=boot.description, grants=MIGHTY)
    kept = {"agent-us-app-1": "agent", "replication-eu-west-1": "by"}
    mighty = frozenset({"deploys"})

    assert verdict(world, boot=(BOOT, boot), kept=kept, mighty=mighty).good

    # Only of its own kind: an agent's token with the same policy is told of twice.
    world.change("agent", grants=MIGHTY)
    found = verdict(world, boot=(BOOT, boot), kept=kept, mighty=mighty).findings
    assert [f.subject for f in found if f.level == "fail"] == ["management token", "agent-us-app-1"]
