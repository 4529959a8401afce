"""
What is known of the declared tokens: in Vault by slots, in Consul by lists.

Plain data and no secret: a token is its accessor here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from blocks.declared_tokens import CarriedToken, DeclaredToken
from blocks.topology import Mesh
from tasks.planning.plan import Refusal

T = TypeVar("T")

ANONYMOUS = "00000000-0000-0000-0000-000000000002"
_OURS = re.compile(r"^token of ([a-z0-9-]+), rotated by mesh-runbooks$")


def description(role: str) -> str:
    """The description by which a role's tokens are known in Consul."""
    return f"token of {role}, rotated by mesh-runbooks"


def described(token: DeclaredToken) -> str:
    """What a role's token says of itself; one that agents carry as the boot has it."""
    return token.description if isinstance(token, CarriedToken) else description(token.role)


@dataclass(frozen=True)
class Slots(Generic[T]):
    """
    The tokens that Vault keeps of one role.

    `pending` is stored before Consul knows it, `current` is what consumers
    read, `previous` lives until it is revoked. Every change from one to the
    next is one write.
    """

    current: T | None = None
    pending: T | None = None
    previous: T | None = None

    def __iter__(self) -> Iterator[T]:
        return (t for t in (self.current, self.pending, self.previous) if t is not None)

    def storing(self, new: T) -> Slots[T]:
        """With a token that is about to be created."""
        return replace(self, pending=new)

    def promoted(self, *, replaces: bool) -> Slots[T]:
        """
        The pending token is what consumers read from now on.

        `replaces`: the one before lives and is to be revoked; else it is gone.

        Raises:
            ValueError: there is no pending one, or two would have to be kept as previous.
        """
        if self.pending is None:
            raise ValueError("nothing is pending")
        if replaces and self.previous is not None:
            raise ValueError("the token before the last is not revoked yet")
        return Slots(self.pending, None, self.current if replaces else self.previous)

    def withdrawn(self) -> Slots[T]:
        """Without the pending token, which nobody was given."""
        return replace(self, pending=None)

    def forgotten(self) -> Slots[T]:
        """Without the previous token, which lives no more."""
        return replace(self, previous=None)


@dataclass(frozen=True)
class Grants:
    """What a token may, as Consul keeps it."""

    policies: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    services: frozenset[str] = frozenset()  # `NAME`, or `NAME in DC DC` if limited
    nodes: frozenset[str] = frozenset()  # `NAME in DC`

    def __bool__(self) -> bool:
        return bool(self.policies or self.roles or self.services or self.nodes)


def differences(has: Grants, wanted: Grants) -> list[str]:
    """How what a token may differs from what it is to be granted; nothing if it does not."""
    parts = []
    for what in ("policies", "roles", "services", "nodes"):
        more = sorted(getattr(has, what) - getattr(wanted, what))
        less = sorted(getattr(wanted, what) - getattr(has, what))
        parts += [f"{what} without {', '.join(less)}"] if less else []
        parts += [f"{what} beside: {', '.join(more)}"] if more else []
    return parts


def declared_grants(mesh: Mesh, token: DeclaredToken) -> Grants:
    """What a role's token is to be granted."""
    return Grants(
        frozenset(token.policies),
        frozenset(token.roles),
        frozenset(token.service_identities),
        frozenset(f"{n} in {mesh.datacenter_of(n).name}" for n in token.node_identities),
    )


@dataclass(frozen=True)
class TokenSeen:
    """One token as Consul lists it."""

    accessor: str
    description: str
    grants: Grants
    created: datetime
    local: bool = False
    expires: datetime | None = None
    legacy: bool = False  # of the ACL system before Consul 1.4
    management: bool = False  # has the policy global-management itself, whatever that is called

    @property
    def role(self) -> str:
        """The role it was made for; empty if this runbook did not make it."""
        match = _OURS.match(self.description)
        return match[1] if match else ""


@dataclass(frozen=True)
class TokensSeen:
    """Everything a plan of a rotation is made from; every list is whole."""

    at: datetime
    held: Mapping[str, Slots[str]] = field(default_factory=dict)  # accessors by role
    unreadable: Mapping[str, str] = field(default_factory=dict)  # why, by role
    tokens: Mapping[str, Mapping[str, TokenSeen]] = field(default_factory=dict)  # by datacenter
    policies: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    own: str = ""  # accessor of what the run itself holds
    of_the_boot: frozenset[str] = frozenset()  # descriptions of the agents' tokens
    not_to_hand: Mapping[str, Refusal] = field(default_factory=dict)  # by role: its agents, now

    def find(self, accessor: str | None, primary: str) -> tuple[str, TokenSeen] | None:
        """A token by its accessor, with the datacenter in which it can be changed."""
        for name, tokens in self.tokens.items():
            if accessor and (found := tokens.get(accessor)):
                return (name if found.local else primary), found
        return None

    def every(self, primary: str) -> Iterator[tuple[str, TokenSeen]]:
        """Each token once, with the datacenter in which it can be changed."""
        told: set[str] = set()
        for name, tokens in self.tokens.items():
            for accessor, token in tokens.items():
                if accessor not in told:
                    told.add(accessor)
                    yield (name if token.local else primary), token


def age_text(age: timedelta) -> str:
    """`31 d`, `5 h`, `12 min`, `40 s`."""
    seconds = max(0, int(age.total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
