"""Vault, Consul and servers' files as far as Consul's CA token goes, and what each step does to them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import count
from typing import Any, NamedTuple

from tasks.planning.ca_rotation import Authority, CaTokensSeen, Do, FileSeen, Which
from tasks.planning.plan import Refusal
from tasks.planning.rotation_plan import TokenPlan
from tasks.planning.tokens_seen import Slots
from tests.planning.meshes import NOW

US, EU = "us-east-1", "eu-west-1"
HOUR = timedelta(hours=1)


class Kept(NamedTuple):
    """What Vault's document holds of a token; no accessor before it is created."""

    accessor: str = ""
    nonce: str = ""


class Live(NamedTuple):
    """A token that Vault knows."""

    created: datetime
    nonce: str = ""


@dataclass
class World:
    """The truth."""

    slots: Slots[Kept] = field(default_factory=lambda: Slots(Kept("a")))
    live: dict[str, Live] = field(default_factory=dict)
    signs: dict[str, str] = field(default_factory=lambda: {US: "a", EU: "a"})  # accessors
    files: dict[str, str] = field(default_factory=lambda: {"us-consul-1": "a", "eu-consul-1": ""})
    provider: str = "vault"
    problems: tuple[Refusal, ...] = ()
    numbers: Any = field(default_factory=lambda: count(1))

    def copy(self) -> World:
        """Another just like it."""
        return deepcopy(self)

    def put(self, accessor: str, *, age: timedelta = HOUR, nonce: str = "") -> World:
        """Vault knows this token too."""
        self.live[accessor] = Live(NOW - age, nonce)
        return self

    def seen(self) -> CaTokensSeen:
        """What a survey shows."""
        accessors = Slots(
            *(
                k and k.accessor
                for k in (self.slots.current, self.slots.pending, self.slots.previous)
            )
        )
        return CaTokensSeen(
            NOW,
            accessors,
            True,
            {a: self.live[a].created for a in accessors if a in self.live},
            {dc: Authority(self.provider, self._which(a)) for dc, a in self.signs.items()},
            {host: FileSeen(self._which(a)) if a else FileSeen() for host, a in self.files.items()},
            {US: (1, 8, 7), EU: (1, 12, 0)},
            timedelta(hours=768),
            self.problems,
        )

    def _which(self, accessor: str) -> Which:
        names: tuple[Which, ...] = ("current", "pending", "previous")
        slots = (self.slots.current, self.slots.pending, self.slots.previous)
        for name, kept in zip(names, slots, strict=True):
            if kept and kept.accessor == accessor:
                return name
        return "other"

    def signed(self) -> bool:
        """Whether every datacenter signs with a token that lives."""
        return all(accessor in self.live for accessor in self.signs.values())

    def do(self, step: Do, plan: TokenPlan, *, parts: int = 99) -> int:
        """One step, or only its first `parts` calls; how many it has."""
        calls = self._calls(step, plan)
        for call in calls[:parts]:
            call()
        return len(calls)

    def _calls(self, step: Do, plan: TokenPlan) -> list[Callable[[], object]]:
        slots = self.slots

        def keep(new: Slots[Kept]) -> Callable[[], object]:
            return lambda: setattr(self, "slots", new)

        match step:
            case "withdraw":
                assert slots.pending, "nothing is pending"
                nonce = slots.pending.nonce
                gone = [a for a, t in self.live.items() if t.nonce == nonce]
                assert not set(gone) & set(self.signs.values()), "one that signs is withdrawn"
                return [*(lambda a=a: self.live.pop(a) for a in gone), keep(slots.withdrawn())]
            case "store":
                assert slots.pending is None, "a nonce was written over"
                return [keep(slots.storing(Kept("", f"n{next(self.numbers)}")))]
            case "create":
                assert slots.pending, "created without a nonce in Vault"
                assert not slots.pending.accessor
                nonce = slots.pending.nonce
                new = f"t-{nonce}-{next(self.numbers)}"
                return [
                    lambda: self.put(new, age=0 * HOUR, nonce=nonce),
                    keep(slots.storing(Kept(new, nonce))),
                ]
            case "promote":
                assert slots.pending
                assert slots.pending.accessor in self.live, "promoted what Vault does not know"
                return [keep(slots.promoted(replaces=plan.replaces))]
            case "adopt" | "put back":
                assert slots.current
                current = slots.current.accessor
                assert current in self.live, "adopted what Vault does not know"
                signs = [lambda dc=dc: self.signs.update({dc: current}) for dc in self.signs]
                # A file without a place for a token keeps none.
                had = [host for host, a in self.files.items() if a]
                files = [lambda host=host: self.files.update({host: current}) for host in had]
                return [*signs, *files]
            case "revoke":
                assert plan.old, "nothing to revoke is named"
                assert plan.old not in self.signs.values(), "revoked while it signs"
                assert slots.current
                assert plan.old != slots.current.accessor, "the kept one is revoked"
                return [lambda: self.live.pop(plan.old, None)]
            case "forget":
                previous = slots.previous
                assert previous is None or previous.accessor not in self.live, "forgotten alive"
                return [keep(slots.forgotten())]
        return []
