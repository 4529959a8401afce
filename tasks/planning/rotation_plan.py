"""
What a token rotation is about to do, role by role, and how that is shown.

The same for every kind of token; each kind has a planner of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any, NamedTuple

from tasks.planning.plan import Refusal, compress
from tasks.planning.tokens_seen import age_text


class Action(NamedTuple):
    """What a person sees as one thing done, and the steps that it is made of."""

    name: str
    steps: frozenset[str]
    later: str = ""  # said where the role's reason was said already
    handed: str = ""  # the same of tokens that agents are handed


# Of ACL tokens.
ACTIONS = (
    Action("put back", frozenset({"put back"})),
    Action("issue", frozenset({"withdraw", "store", "create"})),
    Action(
        "adopt",
        frozenset({"prove", "hand", "promote", "adopt"}),
        "proven, then read by its consumers while both work",
        "proven, then handed to its agents while both work",
    ),
    Action(
        "disarm",
        frozenset({"disarm", "use"}),
        "the one before grants nothing from then on, until it is revoked",
        "the one before grants nothing, and the agents must work with the new one",
    ),
    Action("revoke", frozenset({"soak", "revoke", "forget"}), "after the soak, with proof of 403"),
)


@dataclass(frozen=True)
class Options:
    """What an operator may say about a rotation."""

    roles: tuple[str, ...] = ()  # all if none is named
    older_than_hours: float | None = None  # else each role's own age
    retire: tuple[str, ...] = ()  # roles that are declared no more, whose tokens are to end


@dataclass(frozen=True)
class TokenPlan:
    """The way of one role, or of one token that no role has."""

    role: str
    steps: tuple[str, ...]
    reason: str
    age: timedelta | None = None  # of the live token
    replaces: bool = False  # the current token becomes the previous one
    old: str = ""  # accessor of the one to disarm and revoke
    old_at: str = ""  # datacenter in which that can be changed
    orphan: bool = False
    handed: bool = False  # agents carry it


@dataclass(frozen=True)
class RotationPlan:
    """The ways of all roles. With a refusal nothing may be changed."""

    tokens: tuple[TokenPlan, ...] = ()
    blocked: tuple[Refusal, ...] = ()  # roles that are left as they are, and why
    refusals: tuple[Refusal, ...] = ()
    notices: tuple[str, ...] = ()
    actions: tuple[Action, ...] = ACTIONS

    @property
    def todo(self) -> tuple[TokenPlan, ...]:
        """Those with something to do."""
        return tuple(token for token in self.tokens if token.steps)

    def as_rows(self, after: int = 0) -> list[dict[str, Any]]:
        """
        The plan as a table: what is done in its order, roles alike in one row, then `keep`.

        Only the first row of a role says why. Steps are numbered from the one
        that follows `after`.
        """
        rows: list[dict[str, Any]] = []
        told: set[tuple[str, str]] = set()
        number = after
        for action in self.actions:
            does = [t for t in self.todo if action.steps & set(t.steps)]
            if not does:
                continue
            number += 1
            whys: dict[str, list[TokenPlan]] = {}
            for token in does:
                first = (token.role, token.old) not in told
                later = (token.handed and action.handed) or action.later
                whys.setdefault(token.reason if first else later, []).append(token)
                told.add((token.role, token.old))
            for why, alike in whys.items():
                waits = str(number - 1) if number > 1 else "-"
                rows.append(_row(number, action.name, alike, why, waits))
        kept = sorted((t for t in self.tokens if not t.steps), key=lambda t: t.reason)
        for why, same in groupby(kept, key=lambda t: t.reason):
            rows.append(_row(number + 1, "keep", list(same), why, "-"))
        return rows


def _row(number: int, action: str, tokens: list[TokenPlan], why: str, waits: str) -> dict[str, Any]:
    ages = sorted(token.age for token in tokens if token.age is not None)
    if ages:
        oldest, youngest = age_text(ages[-1]), age_text(ages[0])
        span = oldest if oldest == youngest else f"{youngest} to {oldest}"
        why = f"{why} ({span} old)"
    return {
        "step": number,
        "action": action,
        "targets": compress(token.role for token in tokens),
        "reason": why,
        "waits_for": waits,
    }


def table(plans: Iterable[RotationPlan]) -> list[dict[str, Any]]:
    """Several plans, one after the other, as one table; what is kept comes last."""
    done: list[dict[str, Any]] = []
    kept: list[dict[str, Any]] = []
    for plan in plans:
        rows = plan.as_rows(max((row["step"] for row in done), default=0))
        done += [row for row in rows if row["action"] != "keep"]
        kept += [row for row in rows if row["action"] == "keep"]
    last = max((row["step"] for row in done), default=0) + 1
    return [*done, *(row | {"step": last} for row in kept)]
