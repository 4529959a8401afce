"""
What a rotation has to do with Vault's Consul secrets engine, decided from what is there.

Of each mount: its access token, which is rotated as any token with its secret in
Vault, but for one more step, `configure`, before it is promoted: what the engine
works with cannot be read, so it is written whenever it could be another. While
a new token is pending, the engine has that or the current one, and both live;
with a previous one beside, it has the current one.

Of each role: its definition in Vault, a proof of what it mints, and the leases
that are too old.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Literal

from blocks.declared_tokens import DeclaredToken
from blocks.dynamic_tokens import AccessToken, access_tokens, consul_address, engine_roles
from blocks.topology import Mesh
from tasks.planning.minted import Lease, minted_for, without_lease
from tasks.planning.plan import Refusal
from tasks.planning.rotation import foreign, lacking, plan_roles
from tasks.planning.rotation_plan import Action, Options, RotationPlan, TokenPlan
from tasks.planning.tokens_seen import Slots, TokensSeen, age_text

EngineDo = Literal[
    "define",  # Vault has the role as it is declared
    "configure",  # the engine works with the token that is to be, and mints with it
    "mint",  # a fresh credential may what it must, and is given back
    "end",  # leases that are too old, when their consumers have had time to ask anew
]
ACTIONS = (
    Action("define", frozenset({"define", "put back"})),
    Action("issue", frozenset({"withdraw", "store", "create"})),
    Action(
        "configure",
        frozenset({"prove", "configure", "promote", "adopt"}),
        "proven, then the engine mints with it while both work",
    ),
    Action(
        "disarm",
        frozenset({"disarm"}),
        "the one before grants nothing from then on, and the engine mints all the same",
    ),
    Action("revoke", frozenset({"soak", "revoke", "forget"}), "after the soak, with proof of 403"),
    Action("mint", frozenset({"mint"}), "a fresh credential, proven and given back"),
    Action("end leases", frozenset({"end"}), "when their consumers have had time to ask anew"),
)
# With one of these the engine may work with another token than it is to have.
_TELL = {"withdraw", "promote", "adopt", "disarm", "soak"}


@dataclass(frozen=True)
class Definition:
    """What a role of the engine grants and for how long, as Vault keeps it."""

    policies: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    services: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()  # `NAME:DC`
    local: bool = False
    ttl: int = 0
    max_ttl: int = 0


def declared_definition(mesh: Mesh, token: DeclaredToken) -> Definition:
    """What Vault is to keep of a role."""
    return Definition(
        frozenset(token.policies),
        frozenset(token.roles),
        frozenset(token.service_identities),
        frozenset(f"{n}:{mesh.datacenter_of(n).name}" for n in token.node_identities),
        token.local,
        token.ttl_seconds,
        token.max_ttl_seconds,
    )


@dataclass(frozen=True)
class MountSeen:
    """One mount of the engine."""

    wrong: str = ""  # why it cannot be worked with, and what to do
    do: str = ""
    consul: str = ""  # `SCHEME://HOST:PORT` that it is configured with
    definitions: Mapping[str, Definition] = field(default_factory=dict)  # by role
    leases: Mapping[str, tuple[Lease, ...]] = field(default_factory=dict)  # by role
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class EnginesSeen:
    """Everything a plan is made from."""

    tokens: TokensSeen
    mounts: Mapping[str, MountSeen]


def plan_engines(mesh: Mesh, seen: EnginesSeen, options: Options) -> RotationPlan:
    """The ways of all roles of the engine, of its access tokens, and of tokens without a lease."""
    roles = [t for t in engine_roles(mesh) if _chosen(t, options)]
    access = [t for t in access_tokens(mesh) if _chosen(t, options)]
    blocked = list(_unworkable(seen, [*roles, *access]))
    whole = {name for name, mount in seen.mounts.items() if not mount.wrong}
    roles = [t for t in roles if t.mount in whole]
    planned = plan_roles(mesh, seen.tokens, [t for t in access if t.mount in whole], options)
    if planned.refusals:
        return planned
    told = {t.role: t for t in access}
    orphans = list(_orphans(mesh, seen, whole))
    strays = {orphan.role for orphan in orphans}
    tokens = [_told(mesh, seen, told[p.role], p, p.role in strays) for p in planned.tokens]
    replaced = {told[plan.role].mount for plan in tokens if "promote" in plan.steps}
    notices = list(planned.notices)
    for token in roles:
        if reasons := list(_missing(seen.tokens, token)):
            blocked += reasons
            continue
        tokens.append(_role(mesh, seen, token, options, replaced))
        if (drift := drift_of(mesh, seen.mounts[token.mount], token)) and token.drift == "report":
            notices.append(f"{token.role}: {drift}; it is left so, as declared")
    for name in dict.fromkeys(t.mount for t in [*roles, *access]):
        notices += [f"{name}: {warning}" for warning in seen.mounts[name].warnings]
    apart = {r.where for r in (*planned.blocked, *blocked)} | set(seen.tokens.unreadable)
    orphans = [o for o in orphans if o.role not in apart]
    orphans = [o for o in orphans if not options.roles or o.role in options.roles]
    return RotationPlan(
        (*tokens, *orphans),
        (*planned.blocked, *blocked),
        notices=tuple(notices),
        actions=ACTIONS,
    )


def _chosen(token: DeclaredToken, options: Options) -> bool:
    return not options.roles or token.role in options.roles


def _unworkable(seen: EnginesSeen, tokens: Iterable[DeclaredToken]) -> Iterator[Refusal]:
    """One line a mount, however many roles it has."""
    by_mount: dict[str, list[str]] = {}
    for token in tokens:
        by_mount.setdefault(token.mount, []).append(token.role)
    for name, roles in by_mount.items():
        if wrong := seen.mounts[name].wrong:
            yield Refusal(wrong, seen.mounts[name].do, " ".join(roles))


def _missing(seen: TokensSeen, token: DeclaredToken) -> Iterator[Refusal]:
    for _, lacks in lacking(seen, token):
        yield Refusal(
            lacks,
            "create it, or correct the role in the topology; what Vault has was left as it is",
            token.role,
        )


def _told(
    mesh: Mesh, seen: EnginesSeen, token: AccessToken, plan: TokenPlan, stray: bool
) -> TokenPlan:
    """
    The way of an access token, with what the engine has to be told.

    `stray`: another one is about to be revoked, and the engine may work with that.
    """
    if _TELL & set(plan.steps):
        return replace(plan, steps=("configure", *plan.steps))
    if not seen.tokens.held.get(token.role, Slots()).current:
        return plan
    at, has = consul_url(mesh, token), seen.mounts[token.mount].consul
    if has != at:
        reason = f"the engine reaches Consul at {has}" if has else "the engine is not configured"
    elif stray:
        reason = "the engine may work with one that Vault's KV does not hold"
    else:
        return plan
    return replace(plan, steps=(*plan.steps, "configure"), reason=reason)


def consul_url(mesh: Mesh, token: DeclaredToken) -> str:
    """Where the engine is to reach Consul."""
    return f"https://{consul_address(mesh, token)}"


def _role(
    mesh: Mesh, seen: EnginesSeen, token: DeclaredToken, options: Options, replaced: set[str]
) -> TokenPlan:
    limit = token.max_age_hours if options.older_than_hours is None else options.older_than_hours
    due = due_leases(seen, token, limit)
    leases = seen.mounts[token.mount].leases.get(token.role, ())
    reasons, steps = [], []
    drift = drift_of(mesh, seen.mounts[token.mount], token)
    has = seen.mounts[token.mount].definitions.get(token.role)
    if has is None or (drift and token.drift == "put back"):
        steps.append("define")
        reasons.append(drift)
    if steps or token.mount in replaced:
        steps.append("mint")
        if token.mount in replaced:
            reasons.append("its engine works with another token")
    if due:
        steps.append("end")
        old = age_text(timedelta(hours=limit))
        reasons.append(f"{len(due)} of {len(leases)} leases are {old} old or more")
    if not steps:
        left = drift or "as declared"
        reasons.append(f"{left}, and no lease due before {age_text(timedelta(hours=limit))}")
    return TokenPlan(token.role, tuple(steps), "; ".join(reasons))


def due_leases(seen: EnginesSeen, token: DeclaredToken, hours: float) -> tuple[Lease, ...]:
    """The leases of a role that were issued so long ago, whether or not they were renewed since."""
    leases = seen.mounts[token.mount].leases.get(token.role, ())
    return tuple(x for x in leases if seen.tokens.at - x.issued >= timedelta(hours=hours))


def drift_of(mesh: Mesh, mount: MountSeen, token: DeclaredToken) -> str:
    """How Vault's role differs from what is declared; empty if it does not."""
    has = mount.definitions.get(token.role)
    if has is None:
        return "Vault has no such role yet"
    wanted = declared_definition(mesh, token)
    parts = [
        f"{what} {_words(getattr(has, what))}"
        for what in ("policies", "roles", "services", "nodes", "local", "ttl", "max_ttl")
        if getattr(has, what) != getattr(wanted, what)
    ]
    return f"its role in Vault has {', '.join(parts)}" if parts else ""


def _words(value: object) -> str:
    return " ".join(sorted(value)) or "none" if isinstance(value, frozenset) else str(value).lower()


def _orphans(mesh: Mesh, seen: EnginesSeen, whole: set[str]) -> Iterator[TokenPlan]:
    """Access tokens that Vault's KV does not hold, and minted tokens that have no lease."""
    held = {accessor for slots in seen.tokens.held.values() for accessor in slots}
    access = {t.role for t in access_tokens(mesh) if t.mount in whole}
    mount = {t.role: t.mount for t in engine_roles(mesh) if t.mount in whole}
    for where, token in seen.tokens.every(mesh.primary):
        if token.accessor in held or foreign(mesh.foreign_tokens, token):
            continue
        role = minted_for(mesh, token.description)
        if token.role in access:
            role, why = token.role, "is none that Vault holds for this role"
        elif role in mount and without_lease(
            token.description, seen.mounts[mount[role]].leases.get(role, ()), seen.tokens.at
        ):
            why = "was minted and has no lease"
        else:
            continue
        yield TokenPlan(
            role,
            ("disarm", "soak", "revoke") if token.grants else ("soak", "revoke"),
            f"token {token.accessor} {why}",
            seen.tokens.at - token.created,
            False,
            token.accessor,
            where,
            True,
        )
