"""
What the rotation of Consul's own Vault token has to do, from what both show.

One token signs in every datacenter. From any state that a kill can leave, or a
person, one way leads to one live token that all of them use: grow before
shrink, and never is one revoked that a datacenter still signs with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from blocks.declared_tokens import DeclaredToken
from tasks.planning.plan import Refusal, compress
from tasks.planning.rotation_plan import Action, Options, RotationPlan, TokenPlan
from tasks.planning.tokens_seen import Slots, age_text

Do = Literal[
    "withdraw",  # tokens that carry a pending nonce go, and the nonce
    "store",  # a nonce, pending, before Vault makes a token that carries it
    "create",  # by the token role; its secret is stored at once
    "prove",  # an orphan that lives by renewal, with the one policy and no more
    "promote",  # boot and maintenance use it from now on
    "adopt",  # every datacenter signs with it, every server's file has it
    "soak",  # both work; every datacenter stays with the new one
    "revoke",  # seen to be used nowhere; gone, and leaves are signed
    "forget",  # gone from the document too
    "put back",  # where a datacenter or a file has another than the one that Vault keeps
]
ORDER: tuple[Do, ...] = Do.__args__  # type: ignore[attr-defined]
NEW: tuple[Do, ...] = ("store", "create", "prove", "promote")
RETIRE: tuple[Do, ...] = ("adopt", "soak", "revoke", "forget")
ACTIONS = (
    Action("issue", frozenset({"withdraw", "store", "create", "prove"})),
    Action(
        "adopt",
        frozenset({"promote", "adopt"}),
        "every datacenter signs with it, proven by a leaf; both tokens work",
    ),
    Action(
        "revoke",
        frozenset({"soak", "revoke", "forget"}),
        "once no datacenter has the one before, with proof of a leaf and of 403",
    ),
    Action("put back", frozenset({"put back"})),
)
Version = tuple[int, int, int]
RENEWS: Version = (1, 8, 4)  # the first Consul that renews its token by itself
# Which of the tokens that Vault keeps something has: `hidden` where Consul does not show it.
Which = Literal["current", "pending", "previous", "other", "hidden"]


@dataclass(frozen=True)
class Authority:
    """The CA of one datacenter: its provider, and which token it signs with."""

    provider: str
    token: Which = "other"


@dataclass(frozen=True)
class FileSeen:
    """A server's own file: the token in it, none if it is empty, or why it cannot be read."""

    token: Which | Literal["absent"] = "absent"
    error: str = ""


@dataclass(frozen=True)
class CaTokensSeen:
    """Everything a plan is made from."""

    at: datetime
    held: Slots[str]  # accessors; a pending one is empty until it is created
    complete: bool = True  # the set-up of day 0
    created: Mapping[str, datetime] = field(default_factory=dict)  # of those that live, by accessor
    authorities: Mapping[str, Authority] = field(default_factory=dict)  # by datacenter
    files: Mapping[str, FileSeen] = field(default_factory=dict)  # by host
    versions: Mapping[str, Version] = field(default_factory=dict)  # of Consul, by datacenter
    period: timedelta = timedelta()  # of life without renewal
    problems: tuple[Refusal, ...] = ()  # what Vault lacks, or does not let the runbooks do

    def lives(self, accessor: str | None) -> bool:
        """Whether Vault knows this token."""
        return bool(accessor) and accessor in self.created


def plan_ca_rotation(token: DeclaredToken, seen: CaTokensSeen, options: Options) -> RotationPlan:
    """The way of the one role to one live token."""
    if blocked := tuple(_blocked(token, seen)):
        return RotationPlan(blocked=blocked, actions=ACTIONS)
    plan = _plan(token, seen, options)
    notices = []
    if drift := _drift(seen):
        after = "is put back" if {"put back", "adopt"} & set(plan.steps) else "is left so"
        notices.append(f"{token.role}: {drift}; it {after}")
    if "revoke" in plan.steps:
        notices += _renewals(seen)
    return RotationPlan((plan,), notices=tuple(notices), actions=ACTIONS)


def _blocked(token: DeclaredToken, seen: CaTokensSeen) -> Iterator[Refusal]:
    if not seen.problems and (not seen.complete or seen.held.current is None):
        yield Refusal(
            "Vault holds no CA token of a complete set-up",
            "run cold-boot with --set initialise=true to finish it",
            token.role,
        )
    for name, authority in seen.authorities.items():
        if authority.provider != "vault":
            by = "Consul's built-in provider" if authority.provider == "consul" else "off"
            yield Refusal(
                f"the CA of {name} is not on Vault but {by}, for maintenance or after break-glass",
                "run vault-maintenance with direction=end, or cold-boot, first",
                token.role,
            )
    for host, file in seen.files.items():
        if file.error:
            yield Refusal(
                f"the CA configuration on {host} cannot be read: {file.error}",
                "bring the host up, or correct ca_config_file or what lies there",
                token.role,
            )
    for problem in seen.problems:
        yield Refusal(problem.error, problem.do, token.role)


def _plan(token: DeclaredToken, seen: CaTokensSeen, options: Options) -> TokenPlan:
    held = seen.held
    live, before = seen.lives(held.current), seen.lives(held.previous)
    age = seen.at - seen.created[held.current] if live and held.current else None
    limit = token.max_age_hours if options.older_than_hours is None else options.older_than_hours

    def way(reason: str, steps: tuple[Do, ...]) -> TokenPlan:
        """With a new token, the one that it replaces goes, or the one before that still stands."""
        replaces = "promote" in steps and live
        old = held.current if replaces else held.previous
        if not (replaces or before):
            # There is none to revoke, but what is gone may still be configured somewhere.
            steps = tuple(step for step in steps if step not in {"soak", "revoke"})
        return TokenPlan(token.role, steps, reason, age, replaces, old or "")

    spare: tuple[Do, ...] = ("withdraw",) if held.pending is not None else ()
    if held.previous and live:
        # What an earlier run began is ended first, and nothing else done.
        return way("an earlier run replaced it and did not end", (*spare, *RETIRE))
    if seen.lives(held.pending):
        return way("created by an earlier run, not promoted yet", (*NEW[2:], *RETIRE))
    if held.pending is not None:
        return way("stored by an earlier run, not created yet", (*spare, *NEW, *RETIRE))
    if not live:
        return way("Vault has it no more", (*NEW, *RETIRE))
    assert age is not None
    if age >= timedelta(hours=limit):
        return way(f"due after {age_text(timedelta(hours=limit))}", (*NEW, *RETIRE))
    if _drift(seen) and token.drift == "put back":
        return TokenPlan(token.role, ("put back",), "not everywhere the one that Vault keeps", age)
    return TokenPlan(token.role, (), f"not due before {age_text(timedelta(hours=limit))}", age)


def _renewals(seen: CaTokensSeen) -> Iterator[str]:
    """
    Where Consul will go on renewing the token before, in vain and without a pause.

    A provider that is replaced is not stopped, and renews its token until the process ends
    (hashicorp/consul#12607). Refused, it asks some 450 times a second and takes half a processor
    (hashicorp/consul#10862), from when two thirds of the period are over.
    """
    places = [
        f"{name} ({'.'.join(map(str, version))})"
        for name, version in seen.versions.items()
        if RENEWS <= version < (1, 10, 10) or (1, 11, 0) <= version < (1, 11, 5)
    ]
    if places:
        yield (
            f"Consul in {', '.join(places)} goes on renewing the revoked token, and within "
            f"{age_text(seen.period * 2 / 3)} asks Vault for that without a pause: restart its "
            "servers, one after the other, before then (fixed in Consul 1.10.10 and 1.11.5)"
        )


def _drift(seen: CaTokensSeen) -> str:
    """Where another token than the rotation's own is configured; empty if nowhere."""
    ours = {"current", "hidden"}
    if seen.held.previous is not None:
        ours.add("previous")  # on its way
    strange = [n for n, a in seen.authorities.items() if a.token not in ours]
    files = [n for n, f in seen.files.items() if f.token not in {*ours, "absent"}]
    parts = [f"{name} signs with another token" for name in strange]
    parts += [f"another is in the file of {compress(files)}"] if files else []
    return "; ".join(parts)
