"""Vault and Consul as far as tokens go: what a survey shows of them, and what each step does."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from typing import Any, Self

from blocks.topology import Mesh, parse
from tasks.planning.rotation import ORDER, Do, home
from tasks.planning.rotation_plan import RotationPlan, TokenPlan
from tasks.planning.tokens_seen import (
    Grants,
    Slots,
    TokenSeen,
    TokensSeen,
    declared_grants,
    described,
    description,
)
from tests.planning.meshes import NOW, document

PRIMARY, SECONDARY = "us-east-1", "eu-west-1"
HOUR = timedelta(hours=1)


def declared(role: str = "payments", **more: Any) -> dict[str, Any]:
    return {
        "role": role,
        "kind": "service",
        "policies": ["payments"],
        "path": f"services/{role}",
        "may": ["kv read payments/config"],
        "may_not": ["kv write payments/config"],
        "max_age_hours": 720,
    } | more


def mesh(*tokens: dict[str, Any], **more: Any) -> Mesh:
    return parse(document() | {"tokens": list(tokens or [declared()])} | more)


@dataclass
class World:
    """The truth: what Vault holds of each role, and every token in every datacenter."""

    mesh: Mesh
    vault: dict[str, Slots[str]] = field(default_factory=dict)
    consul: dict[str, dict[str, TokenSeen]] = field(default_factory=dict)
    policies: frozenset[str] = frozenset({"payments"})
    now: datetime = NOW
    numbers: Any = field(default_factory=lambda: count(1))
    carried: dict[str, str | None] = field(default_factory=dict)  # what agents have, by role

    def __post_init__(self) -> None:
        self.consul = {dc.name: {} for dc in self.mesh.datacenters} | self.consul

    def copy(self) -> Self:
        """Another world just like it; what never changes is shared."""
        made = copy(self)
        made.vault = dict(self.vault)
        made.consul = self._tokens()
        made.numbers = copy(self.numbers)
        made.carried = dict(self.carried)
        return made

    def _tokens(self) -> dict[str, dict[str, TokenSeen]]:
        return {name: dict(tokens) for name, tokens in self.consul.items()}

    def put(
        self,
        accessor: str,
        role: str = "payments",
        *,
        age: timedelta = HOUR,
        grants: Grants | None = None,
        text: str | None = None,
        local: str = "",
    ) -> str:
        """A token in Consul, as declared unless said otherwise; its accessor."""
        known = {t.role: t for t in self.mesh.roles()}
        if grants is None and role in known:
            grants = declared_grants(self.mesh, known[role])
        if text is None:
            text = described(known[role]) if role in known else description(role)
        token = TokenSeen(
            accessor,
            text,
            Grants(frozenset({"payments"})) if grants is None else grants,
            self.now - age,
            bool(local),
        )
        for name in [local] if local else self.consul:
            self.consul[name][accessor] = token
        return accessor

    def drop(self, accessor: str) -> None:
        for tokens in self.consul.values():
            tokens.pop(accessor, None)

    def find(self, accessor: str | None) -> TokenSeen | None:
        return next((t[accessor] for t in self.consul.values() if accessor in t), None)

    def change(self, accessor: str, **what: Any) -> None:
        for tokens in self.consul.values():
            if accessor in tokens:
                tokens[accessor] = replace(tokens[accessor], **what)

    def seen(self) -> TokensSeen:
        """What a survey shows."""
        return TokensSeen(
            self.now, dict(self.vault), {}, self._tokens(), self.policies, own="management"
        )

    def do(self, step: Do, plan: TokenPlan, *, parts: int = 9) -> int:
        """One step, or only its first `parts` calls; how many it has."""
        calls = self._calls(step, plan)
        for call in calls[:parts]:
            call()
        return len(calls)

    def _calls(self, step: Do, plan: TokenPlan) -> list[Any]:
        role, slots = plan.role, self.vault.get(plan.role, Slots())

        def keep(new: Slots[str]) -> Any:
            return lambda: self.vault.update({role: new})

        def arm(accessor: str) -> None:
            token = self.mesh.token(role)
            grants = declared_grants(self.mesh, token)
            self.change(accessor, grants=grants, description=described(token))

        def carry(accessor: str | None) -> Any:
            return lambda: self.carried.update({role: accessor})

        match step:
            case "put back":
                return [lambda: arm(slots.current or "")]
            case "withdraw":
                return [lambda: self.drop(slots.pending or ""), keep(slots.withdrawn())]
            case "store":
                assert slots.pending is None, "a secret in Vault was written over"
                return [keep(slots.storing(f"new-{next(self.numbers)}"))]
            case "create":
                accessor = slots.pending
                assert accessor, "created without its secret in Vault"
                declared_ = self.mesh.token(role)
                where = home(self.mesh, declared_) if declared_.local else ""
                if self.find(accessor):
                    return [lambda: arm(accessor)]
                return [lambda: self.put(accessor, role, age=0 * HOUR, local=where)]
            case "promote":
                found = self.find(slots.pending)
                assert found, "promoted what Consul does not know"
                assert found.grants == declared_grants(self.mesh, self.mesh.token(role))
                return [keep(slots.promoted(replaces=plan.replaces))]
            case "hand":
                return [carry(slots.pending)]
            case "adopt" if plan.handed:
                return [carry(slots.current)]
            case "use":
                # A client agent falls back to its default token between the two.
                return [carry(None), carry(slots.current)]
            case "disarm":
                self._is_spare(plan)
                return [lambda: self.change(plan.old, grants=Grants())]
            case "revoke":
                self._is_spare(plan)
                found = self.find(plan.old)
                assert not (found and found.grants), "revoked without having been disarmed"
                return [lambda: self.drop(plan.old)]
            case "forget":
                assert self.find(slots.previous) is None, "forgotten while it lives"
                return [keep(slots.forgotten())]
        return []

    def _is_spare(self, plan: TokenPlan) -> None:
        read = {slots.current for slots in self.vault.values()}
        assert plan.old, "nothing to disarm or revoke is named"
        assert plan.old not in read, "what consumers read is taken away"
        assert plan.old not in self.carried.values(), "what an agent carries is taken away"


def batch(found: RotationPlan, world: World) -> Iterator[tuple[str, World]]:
    """A plan carried out as the flow does, step by step for all; the world after each call."""
    for step in ORDER:
        for token in found.todo:
            if step in token.steps:
                for parts in range(1, world.copy().do(step, token)):
                    partly = world.copy()
                    partly.do(step, token, parts=parts)
                    yield f"{step} of {token.role}, {parts} calls", partly
                world.do(step, token)
                yield f"{step} of {token.role}", world.copy()
