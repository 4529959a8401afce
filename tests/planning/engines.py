"""Vault's Consul secrets engine as far as planning goes, beside what `World` has."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Self

from blocks.dynamic_tokens import access_tokens, consul_address
from blocks.topology import Mesh, parse
from tasks.planning.dynamic import Definition, EnginesSeen, MountSeen, declared_definition
from tasks.planning.minted import Lease
from tasks.planning.rotation_plan import TokenPlan
from tasks.planning.tokens_seen import Grants, Slots
from tests.planning.meshes import document
from tests.planning.tokens import HOUR, World

ENGINE = "consul-engine"
MANAGEMENT = Grants(frozenset({"global-management"}))
# As the flow goes: what the engine is told stands between the steps of any token.
ORDER = (
    *("define", "put back", "configure back", "withdraw", "store", "create", "prove"),
    *("configure", "promote", "adopt", "disarm", "mint without", "soak", "revoke", "forget"),
    *("mint", "end"),
)


def dynamic(role: str = "reader", **more: Any) -> dict[str, Any]:
    return {
        "role": role,
        "kind": "dynamic",
        "policies": ["payments"],
        "may": ["kv read payments/config"],
        "may_not": ["kv write payments/config"],
    } | more


def mesh(*tokens: dict[str, Any], **more: Any) -> Mesh:
    return parse(document() | {"tokens": list(tokens or [dynamic()])} | more)


@dataclass
class EngineWorld(World):
    """The truth of one mount: what it works with, its roles and leases."""

    policies: frozenset[str] = frozenset({"payments", "global-management"})
    engine: str = ""  # accessor of the token that it works with
    definitions: dict[str, Definition] = field(default_factory=dict)
    leases: dict[str, tuple[Lease, ...]] = field(default_factory=dict)
    wrong: str = ""
    address: str | None = None  # where it reaches Consul, if not as declared

    def __post_init__(self) -> None:
        super().__post_init__()
        self.definitions = dict(self.definitions) or {
            t.role: declared_definition(self.mesh, t) for t in self.mesh.tokens
        }

    def copy(self) -> Self:
        made = super().copy()
        made.definitions, made.leases = dict(self.definitions), dict(self.leases)
        return made

    def access(self, accessor: str, *, grants: Grants = MANAGEMENT, age: timedelta = HOUR) -> str:
        """An access token in Consul."""
        return self.put(accessor, ENGINE, grants=grants, age=age)

    def minted(self, accessor: str, *, ago: timedelta, role: str = "reader") -> str:
        """A token that the engine made so long ago."""
        at = int((self.now - ago).timestamp() * 1e9)
        return self.put(accessor, text=f"Vault {role} approle {at}", age=ago)

    def lease(self, id_: str, *, ago: timedelta, role: str = "reader") -> None:
        self.leases[role] = (*self.leases.get(role, ()), Lease(id_, self.now - ago))

    @property
    def mints(self) -> bool:
        """Whether the engine's token lives and may make others."""
        found = self.find(self.engine)
        return bool(found and found.grants)

    def look(self) -> EnginesSeen:
        (token,) = access_tokens(self.mesh)
        at = f"https://{consul_address(self.mesh, token)}" if self.engine else ""
        mount = MountSeen(
            self.wrong,
            "enable it" if self.wrong else "",
            at if self.address is None else self.address,
            dict(self.definitions),
            dict(self.leases),
        )
        return EnginesSeen(self.seen(), {"consul": mount})

    def _calls(self, step: Any, plan: TokenPlan) -> list[Any]:
        slots = self.vault.get(plan.role, Slots())

        def tell(accessor: str | None) -> Any:
            assert accessor
            assert self.find(accessor), "the engine is told of a token that Consul has not"

            def call() -> None:
                self.engine, self.address = accessor, None

            return call

        if plan.role == ENGINE and not plan.orphan:
            if step == "configure":
                return [tell(slots.pending or slots.current)]
            if step == "configure back":
                return [tell(slots.current)]
        if step == "define":
            wanted = declared_definition(self.mesh, self.mesh.token(plan.role))
            return [lambda: self.definitions.update({plan.role: wanted})]
        if step == "end":
            return [lambda: self.leases.pop(plan.role, None)]
        return super()._calls(step, plan)
