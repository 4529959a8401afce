"""
What a token rotation has to do, decided from what Vault and Consul show.

For each role one way leads from any state that a kill can leave, or a person,
to one live token: grow before shrink, and what consumers read is never taken
away. An interrupted rotation is finished before a new one of its role begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Literal

from blocks import agent_tokens
from blocks.declared_tokens import CarriedToken, DeclaredToken, ForeignToken, TokenKind
from blocks.topology import Mesh
from tasks.planning.minted import minted_for
from tasks.planning.plan import Refusal
from tasks.planning.rotation_plan import Options, RotationPlan, TokenPlan
from tasks.planning.tokens_seen import (
    ANONYMOUS,
    Slots,
    TokenSeen,
    TokensSeen,
    age_text,
    declared_grants,
    described,
    differences,
)

Do = Literal[
    "put back",  # a live token grants again what is declared
    "withdraw",  # a pending one that nobody was given goes
    "store",  # ids chosen, in Vault, pending
    "create",  # in Consul with these ids, as declared
    "prove",  # what it must and must not, in every datacenter
    "hand",  # agents that have no token which works are given this one before anything else
    "promote",  # consumers read it from Vault from now on
    "adopt",  # both work; agents are handed the new one; consumers are well
    "disarm",  # the old one grants nothing
    "use",  # agents work with the new one nevertheless
    "soak",  # watched meanwhile, armed again at once
    "revoke",  # gone, 403 everywhere
    "forget",  # gone from Vault too
]
# Kinds that are ACL tokens of a role's own.
KINDS: tuple[TokenKind, ...] = ("service", *agent_tokens.KINDS)
# The order that holds for every role: each way is a part of it.
ORDER: tuple[Do, ...] = Do.__args__  # type: ignore[attr-defined]
NEW: tuple[Do, ...] = ("store", "create", "prove", "promote")
RETIRE: tuple[Do, ...] = ("adopt", "disarm", "soak", "revoke", "forget")
# Of tokens that agents carry: handed out and proven anew by each run, since an agent tells
# nobody which it has.
RETIRE_CARRIED: tuple[Do, ...] = ("adopt", "disarm", "use", "soak", "revoke", "forget")
_HANDS = {"hand", "adopt", "use"}


def of_acl(mesh: Mesh) -> list[DeclaredToken]:
    """The roles whose token is an ACL token of their own."""
    return [token for token in mesh.roles() if token.kind in KINDS]


def plan_rotation(mesh: Mesh, seen: TokensSeen, options: Options) -> RotationPlan:
    """Every role's way to one live token, and what of Consul's tokens no role has."""
    chosen = [t for t in of_acl(mesh) if not options.roles or t.role in options.roles]
    planned = plan_roles(mesh, seen, chosen, options)
    if planned.refusals:
        return planned
    swept = _orphans(mesh, seen, options, {r.where for r in planned.blocked})
    return replace(
        planned,
        tokens=(*planned.tokens, *swept),
        notices=(*planned.notices, *_removed(mesh, seen, options), *_strangers(mesh, seen)),
    )


def plan_roles(
    mesh: Mesh, seen: TokensSeen, chosen: Sequence[DeclaredToken], options: Options
) -> RotationPlan:
    """The way of each of these roles, whose token is an ACL token; of no other token."""
    if refusals := tuple(_own(seen, chosen)):
        return RotationPlan(refusals=refusals)
    plans: list[TokenPlan] = []
    blocked: list[Refusal] = []
    notices: list[str] = []
    times = Counter(a for t in chosen for a in seen.held.get(t.role, Slots()))
    for token in chosen:
        if reasons := [*_blocked(seen, token), *_confused(mesh, seen, token, times)]:
            blocked += reasons
            continue
        plan = _plan(mesh, seen, token, options)
        if (reason := seen.not_to_hand.get(token.role)) and _HANDS & set(plan.steps):
            blocked.append(reason)
            continue
        plans.append(plan)
        if drift := _drift(mesh, seen, token):
            after = "is put back" if "put back" in plan.steps else "is left so, as declared"
            notices.append(f"{token.role}: {drift}; it {after}")
    return RotationPlan(tuple(plans), tuple(blocked), notices=tuple(notices))


def _own(seen: TokensSeen, chosen: Iterable[DeclaredToken]) -> Iterator[Refusal]:
    for token in chosen:
        if seen.own and seen.own in set(seen.held.get(token.role, Slots())):
            yield Refusal(
                "this run works with that very token, and nobody saws off the branch he sits on",
                f"leave {token.role} out with --set roles=..., and rotate it in a run of its own "
                "with another management token in MESH_CONSUL_TOKEN",
                token.role,
            )


def _blocked(seen: TokensSeen, token: DeclaredToken) -> Iterator[Refusal]:
    if error := seen.unreadable.get(token.role):
        yield Refusal(
            f"what Vault keeps at {token.path} cannot be read: {error}",
            "make the path readable and writable for the runbooks, or correct what lies there",
            token.role,
        )
    for what, lacks in lacking(seen, token):
        yield Refusal(
            lacks,
            f"create it, or correct the role's {'policies' if what == 'policy' else 'roles'}"
            " in the topology; its live token was left as it is",
            token.role,
        )


def lacking(seen: TokensSeen, token: DeclaredToken) -> Iterator[tuple[str, str]]:
    """What a role is to be granted and Consul has not: `policy` or `role`, and the words for it."""
    for what, names, known in (
        ("policy", token.policies, seen.policies),
        ("role", token.roles, seen.roles),
    ):
        for name in names:
            if name not in known:
                yield what, f"Consul has no ACL {what} {name}"


def _confused(
    mesh: Mesh, seen: TokensSeen, token: DeclaredToken, times: Counter[str]
) -> Iterator[Refusal]:
    """Whatever a person wrote into Vault: what one role revokes, none may read."""
    for accessor in sorted(set(seen.held.get(token.role, Slots()))):
        found = seen.find(accessor, mesh.primary)
        of = found[1].role if found else ""
        if times[accessor] > 1 or of not in {"", token.role}:
            yield Refusal(
                f"Vault has token {accessor} at {token.path} and in another place"
                if times[accessor] > 1
                else f"Vault has token {accessor} at {token.path}, which is one of {of}",
                f"take it out at {token.path}, or delete that secret: then a new token is issued",
                token.role,
            )


def home(mesh: Mesh, token: DeclaredToken) -> str:
    """The datacenter in which a role's tokens are created."""
    return token.datacenters[0] if token.local else mesh.primary


def _as_declared(mesh: Mesh, token: DeclaredToken, found: TokenSeen) -> bool:
    return found.grants == declared_grants(mesh, token) and found.description == described(token)


def _plan(mesh: Mesh, seen: TokensSeen, token: DeclaredToken, options: Options) -> TokenPlan:
    slots = seen.held.get(token.role, Slots())
    current = seen.find(slots.current, mesh.primary)
    before = seen.find(slots.previous, mesh.primary)
    limit = token.max_age_hours if options.older_than_hours is None else options.older_than_hours
    age = seen.at - current[1].created if current else None
    mend: tuple[Do, ...] = ()
    if current and token.drift == "put back" and not _as_declared(mesh, token, current[1]):
        mend = ("put back",)

    carried = isinstance(token, CarriedToken)

    def way(reason: str, new: tuple[Do, ...]) -> TokenPlan:
        """A new token; afterwards the one it replaces goes, or the one before that still stands."""
        if current:
            old = (slots.current, current[0])
            steps = (*mend, *new, *(RETIRE_CARRIED if carried else RETIRE))
            return TokenPlan(token.role, steps, reason, age, True, *_names(old), handed=carried)
        last = _names((slots.previous, before[0] if before else None))
        if not carried:
            steps = (*new, *_retire(token, slots, before))
            return TokenPlan(token.role, steps, reason, age, False, *last)
        if slots.current is None and slots.previous is None:
            # Promoted last: as long as it is pending it is known to have to be handed out.
            steps = (*(do for do in new if do != "promote"), "hand", "promote")
            return TokenPlan(token.role, steps, reason, age, False, handed=True)
        # One that is gone is kept as the previous one for the same reason.
        gone = slots.previous is None
        left: tuple[Do, ...] = ("adopt", "forget") if gone else _retire(token, slots, before)
        return TokenPlan(token.role, (*new, *left), reason, age, gone, *last, handed=True)

    if slots.previous and current:
        # What an earlier run began is ended first, and nothing else done with the role.
        spare: tuple[Do, ...] = ("withdraw",) if slots.pending else ()
        return TokenPlan(
            token.role,
            (*mend, *spare, *_retire(token, slots, before)),
            "an earlier run replaced it and did not end",
            age,
            False,
            *_names((slots.previous, before and before[0])),
            handed=carried,
        )
    if slots.pending:
        there = seen.find(slots.pending, mesh.primary)
        if there and (there[0], there[1].local) != (home(mesh, token), token.local):
            return way("one is pending that fits no more", ("withdraw", *NEW))
        if there and _as_declared(mesh, token, there[1]):
            return way("created by an earlier run, not promoted yet", NEW[2:])
        return way("stored by an earlier run, not created yet", NEW[1:])
    if current is None:
        return way("no token yet" if slots.current is None else "Consul has it no more", NEW)
    if (current[0], current[1].local) != (home(mesh, token), token.local):
        return way(f"declared {'local' if token.local else 'for all datacenters'}", NEW)
    assert age is not None
    if age >= timedelta(hours=limit):
        return way(f"due after {age_text(timedelta(hours=limit))}", NEW)
    if mend:
        return TokenPlan(token.role, mend, "edited by hand, or declared otherwise", age)
    return TokenPlan(token.role, (), f"not due before {age_text(timedelta(hours=limit))}", age)


def _names(old: tuple[str | None, str | None]) -> tuple[str, str]:
    return old[0] or "", old[1] or ""


def _retire(
    token: DeclaredToken, slots: Slots[str], before: tuple[str, TokenSeen] | None
) -> tuple[Do, ...]:
    """What is left to do with the previous token."""
    carried = isinstance(token, CarriedToken)
    if slots.previous is None:
        return ()
    if before is None:  # gone already
        return ("adopt", "forget") if carried else ("forget",)
    if carried:
        return RETIRE_CARRIED
    return RETIRE if before[1].grants else RETIRE[2:]


def _drift(mesh: Mesh, seen: TokensSeen, token: DeclaredToken) -> str:
    """How a live token differs from what is declared; empty if it does not."""
    found = seen.find(seen.held.get(token.role, Slots()).current, mesh.primary)
    if found is None:
        return ""
    parts = differences(found[1].grants, declared_grants(mesh, token))
    if found[1].description != described(token):
        parts.append("another description")
    return f"its token {found[1].accessor} has {'; '.join(parts)}" if parts else ""


def _orphans(
    mesh: Mesh, seen: TokensSeen, options: Options, blocked: set[str]
) -> Iterator[TokenPlan]:
    """Tokens that this runbook made and no role holds: of a retired role, of an older Vault."""
    untouched = blocked | set(seen.unreadable)
    expected = _expected(mesh, options)
    for where, token in _unheld(mesh, seen):
        if token.role in untouched or _kept_alive(token, expected):
            continue
        if options.roles and token.role not in {*options.roles, *options.retire}:
            continue
        steps: tuple[Do, ...] = ("disarm", "soak", "revoke") if token.grants else ("soak", "revoke")
        yield TokenPlan(
            token.role,
            steps,
            f"token {token.accessor} is none that Vault holds for this role",
            seen.at - token.created,
            False,
            token.accessor,
            where,
            True,
        )


def _unheld(mesh: Mesh, seen: TokensSeen) -> Iterator[tuple[str, TokenSeen]]:
    held = {accessor for slots in seen.held.values() for accessor in slots}
    others = {t.role for t in mesh.roles() if t.kind not in KINDS}  # each kind sees to its own
    for where, token in seen.every(mesh.primary):
        if not token.role or token.accessor in held or token.role in others:
            continue
        if not foreign(mesh.foreign_tokens, token):
            yield where, token


def _expected(mesh: Mesh, options: Options) -> set[str]:
    """Roles that are declared, or that somebody said are to end."""
    return {*(t.role for t in mesh.roles()), *options.retire}


def _kept_alive(token: TokenSeen, expected: set[str]) -> bool:
    """
    Whether a token's role is gone from the topology, and nobody said that it is to end.

    A section that got lost in a merge must not end, at night, all that it declared.
    """
    return bool(token.grants) and token.role not in expected


def _removed(mesh: Mesh, seen: TokensSeen, options: Options) -> Iterator[str]:
    expected = _expected(mesh, options)
    for where, token in _unheld(mesh, seen):
        if _kept_alive(token, expected):
            yield (
                f"{where}: token {token.accessor} is of {token.role}, which is declared no more; it lives: "
                f"declare it again, or end it with --set retire={token.role}"
            )


def _strangers(mesh: Mesh, seen: TokensSeen) -> Iterator[str]:
    held = {accessor for slots in seen.held.values() for accessor in slots}
    for where, token in seen.every(mesh.primary):
        known = (
            token.role
            or token.accessor in {ANONYMOUS, seen.own, *held}
            or token.description in seen.of_the_boot
            or minted_for(mesh, token.description)
            or foreign(mesh.foreign_tokens, token)
        )
        if not known:
            about = f' "{token.description}"' if token.description else ""
            yield (
                f"{where}: token {token.accessor}{about} is neither declared nor in foreign_tokens; "
                "it was left alone"
            )


def foreign(allowed: Iterable[ForeignToken], token: TokenSeen) -> bool:
    """Whether a token is declared to be none of the runbooks' business."""
    for entry in allowed:
        text = entry.description
        if entry.accessor == token.accessor or text == token.description:
            return True
        if text and text.endswith("*") and token.description.startswith(text[:-1]):
            return True
    return False
