"""
What a rotation of the gossip key has to do, decided from Vault, keyrings and disks.

Install, use, remove, each only when all agents are through with the step
before: one that is absent would come back without the key that the others
encrypt with, and never join again (hashicorp/consul#719, #8129). LAN and WAN
go together (hashicorp/consul#336). What an earlier run began is ended first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Literal

from blocks.declared_tokens import DeclaredToken, TokenKind
from tasks.planning.gossip_seen import GossipSeen
from tasks.planning.plan import Refusal
from tasks.planning.rotation_plan import Action, Options, RotationPlan, TokenPlan
from tasks.planning.tokens_seen import Slots, age_text

Do = Literal[
    "take over",  # the key that all use is Vault's current one
    "store",  # the new key, in Vault, pending
    "freeze",  # nobody is to join from now on
    "install",  # every agent can read the new one
    "use",  # every agent encrypts with it
    "switch",  # it is Vault's current one
    "write",  # it stands in every host's configuration
    "soak",  # both are installed, and nobody drops out
    "remove",  # nobody has the old one, in memory and on disk
    "thaw",  # joins are free again
    "forget",  # gone from Vault too
]
KINDS: tuple[TokenKind, ...] = ("gossip",)
# The order that holds for every way: each is a part of it.
ORDER: tuple[Do, ...] = Do.__args__  # type: ignore[attr-defined]
# What happens while joins are frozen.
_UNDER_FREEZE = {"install", "use", "remove"}

ACTIONS = (
    Action("take over", frozenset({"take over"})),
    Action("install", frozenset({"store", "freeze", "install"})),
    Action("use", frozenset({"use", "switch"}), "once every agent has it; all keep the old one"),
    Action("write", frozenset({"write"}), "into every host's configuration"),
    Action("remove", frozenset({"soak", "remove"}), "the old key, once every agent uses the new"),
    Action("forget", frozenset({"thaw", "forget"}), "the old key in Vault; joins are free again"),
)

START = "start what is down, or take what is gone for good out of the topology; nothing was changed"


def plan_gossip(token: DeclaredToken, seen: GossipSeen, options: Options) -> RotationPlan:
    """The way to one gossip key, which every agent uses and every disk starts with."""
    notices = [
        f"{name} is a member that the topology does not know: it gets the new key, "
        "but nobody writes it into its configuration"
        for name in seen.roll.strangers
    ]
    reasons = list(_unfit(token, seen)) or list(_unlike(token, seen))
    if reasons and (seen.unreadable or _wanted(token, seen, options)):
        return RotationPlan(blocked=tuple(reasons), actions=ACTIONS)
    if reasons:
        # A host that is down for a day is no failure of the run that has nothing to do.
        why = "nothing is due, and nothing could be done now"
        notices += [f"{token.role}: {reason.error}" for reason in reasons]
        plan = TokenPlan(token.role, (), why, _age(seen))
    else:
        plan = _plan(token, seen, options)
    return RotationPlan((plan,), notices=tuple(notices), actions=ACTIONS)


def _limit(token: DeclaredToken, options: Options) -> timedelta:
    hours = token.max_age_hours if options.older_than_hours is None else options.older_than_hours
    return timedelta(hours=hours)


def _age(seen: GossipSeen) -> timedelta | None:
    """How old the current key is; None if nobody knows."""
    return seen.at - seen.since if seen.since else None


def _wanted(token: DeclaredToken, seen: GossipSeen, options: Options) -> bool:
    """Whether a rotation is under way or due."""
    under_way = seen.slots.pending or seen.slots.previous
    return bool(under_way) or (_age(seen) or timedelta(0)) >= _limit(token, options)


def _unfit(token: DeclaredToken, seen: GossipSeen) -> Iterator[Refusal]:
    """Why nobody can say what the state is, or may change it."""
    if seen.unreadable:
        yield Refusal(
            f"what Vault keeps at {token.path} cannot be read: {seen.unreadable}",
            "correct what lies there, or move it away: the key in use is taken over then",
            token.role,
        )
    for name, what in seen.roll.absent.items():
        error, do = f"the agent of {name} is not there ({what})", START
        if used := _unreadable_to(seen, name):
            error += f", and its keyring has no key {used}, which others encrypt with"
            do = (
                "stop it, remove serf/*.keyring in its data directory, put that key "
                f"(Vault has it at {token.path}) into its configuration, and start it"
            )
        yield Refusal(error, do, token.role)
    for name, what in seen.roll.lost.items():
        yield Refusal(
            f"{name}, a member that the topology does not know, is not there ({what})",
            f"start it, or forget it: consul force-leave {name}",
            token.role,
        )
    for name, disk in seen.disks.items():
        if disk.error and name not in seen.roll.absent:
            yield Refusal(
                f"{name}: {disk.error}",
                "a host must find the new key when it starts again",
                token.role,
            )


def _unreadable_to(seen: GossipSeen, name: str) -> str:
    """A key in use that an absent agent does not have, so that it can read nobody."""
    disk = seen.disks.get(name)
    used = sorted({key for pool in seen.pools for key in pool.primary})
    rings = disk.keyrings if disk else ()
    return next((key for key in used for ring in rings if key not in ring), "")


def _unlike(token: DeclaredToken, seen: GossipSeen) -> Iterator[Refusal]:
    """Keyrings that are in no state in which a rotation of this runbook could leave them."""
    if seen.only is not None:
        return
    known = set(seen.slots)
    by_hand = "end what was begun by hand (`consul keyring -list` shows it), then run it again"
    strange = False
    for pool in seen.pools:
        for key, count in sorted(pool.keys.items()):
            if key not in known:
                strange = True
                who = sorted(n for n, d in seen.disks.items() if key in {*sum(d.keyrings, ())})
                yield Refusal(
                    f"{count} of {pool.nodes} agents in {pool.name} have key {key}, "
                    "which Vault does not hold" + (f": {', '.join(who)}" if who else ""),
                    by_hand,
                    token.role,
                )
    if not strange and not seen.slots.pending and not seen.slots.previous:
        error = "agents have or use different keys, and no rotation is under way"
        yield Refusal(error, by_hand, token.role)


def _plan(token: DeclaredToken, seen: GossipSeen, options: Options) -> TokenPlan:
    limit = _limit(token, options)
    steps: set[Do] = set()
    if seen.only is not None and seen.only not in set(seen.slots):
        # Never rotated here, or Vault is an older one: what the whole mesh uses is right.
        why = f"key {seen.only} is in use and not in Vault; its age counts from now"
        steps = {"take over"}
        seen = replace(seen, slots=Slots(seen.only), since=seen.at)
    slots = seen.slots
    age = _age(seen) or timedelta(0)
    days = age_text(limit)
    if slots.pending or slots.previous:
        new = slots.pending or slots.current
        old = slots.current if slots.pending else slots.previous
        why = (
            f"an earlier run stored key {new} and did not install it"
            if slots.pending and slots.pending not in seen.keys
            else f"an earlier run began with key {new} and did not end"
        )
        steps |= _to(seen, new, old) | {"forget"}
        if slots.pending:
            steps.add("switch")
    elif age >= limit:
        why = f"key {slots.current} is due after {days}"
        steps |= set(ORDER) - {"take over"}
    else:
        rest = _to(seen, slots.current, None)
        if not steps:
            why = f"key {slots.current} is not due before {days}"
            if "write" in rest:
                why = "a host would start with another key than the one in use"
            elif rest:
                why = "an earlier run left joins frozen"
        steps |= rest
    return TokenPlan(
        token.role,
        tuple(step for step in ORDER if step in steps),
        why,
        None if "take over" in steps else age,
        old=(slots.current if "store" in steps else slots.previous) or "",
    )


def _to(seen: GossipSeen, new: str | None, old: str | None) -> set[Do]:
    """What is left until all use one key, all start with it, and nobody has another."""
    steps: set[Do] = set()
    if not seen.all_have(new):
        steps.add("install")
    if not seen.all_use(new):
        steps.add("use")
    if any(disk.file != new for disk in seen.disks.values()):
        steps.add("write")
    if old in seen.keys:
        steps |= {"soak", "remove"}
    if steps & _UNDER_FREEZE:
        steps |= {"freeze", "thaw"}
    elif seen.frozen:
        steps.add("thaw")
    return steps
