"""
Is every ACL token known, wanted and as declared? A verdict with its reasons.

Pure: what Vault and Consul hold of tokens, in every datacenter, and what the
catalogs know of those who would use them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

from blocks.declared_tokens import DeclaredToken
from blocks.dynamic_tokens import access_tokens
from blocks.topology import Mesh
from tasks.planning.dynamic import MountSeen
from tasks.planning.engine_audit import engine_findings
from tasks.planning.minted import minted_for
from tasks.planning.plan import compress
from tasks.planning.rotation import foreign, of_acl
from tasks.planning.tokens_seen import (
    ANONYMOUS,
    Grants,
    Slots,
    TokenSeen,
    TokensSeen,
    age_text,
    declared_grants,
    described,
    differences,
)
from tasks.planning.verdict import Finding, Verdict

MANY = 20  # findings of a kind that get a line each
LATE = timedelta(days=1)  # a rotation that runs daily replaces what is due within this
ROTATE = "run token-rotation"
_RANK = {"fail": 0, "warn": 1, "ok": 2}


@dataclass(frozen=True)
class BootToken:
    """A token that the boot gives to agents."""

    name: str  # of its entry in Vault
    description: str
    grants: Grants


@dataclass(frozen=True)
class AuditSeen:
    """Everything a verdict is made from; every list is whole."""

    tokens: TokensSeen
    boot: tuple[BootToken, ...] = ()  # those of this topology
    kept: Mapping[str, str] = field(default_factory=dict)  # accessors in Vault, by name
    management: str = ""  # accessor of the management token in Vault
    managing: frozenset[str] = frozenset()  # ACL roles that grant global-management, or mighty ones
    mighty: frozenset[str] = frozenset()  # policies with `acl = "write"`: management in effect
    services: Mapping[str, frozenset[str]] = field(default_factory=dict)  # by datacenter
    engines: Mapping[str, MountSeen] = field(default_factory=dict)  # of Consul secrets, by mount


def with_documents(mesh: Mesh) -> list[DeclaredToken]:
    """The roles of which Vault holds a token's ids and secret."""
    return [*of_acl(mesh), *access_tokens(mesh)]


def judge(mesh: Mesh, seen: AuditSeen) -> Verdict:
    """Whether every token is one that somebody answers for; each reason a finding."""
    return _verdict(
        [
            *_anonymous(seen),
            *_management(mesh, seen),
            *_some("orphans", _orphans(mesh, seen)),
            *_some("strangers", _strangers(mesh, seen)),
            *_declared(mesh, seen),
            *_some("consul secrets engine", engine_findings(mesh, seen.tokens, seen.engines)),
            *_of_the_boot(mesh, seen),
            *_some("legacy tokens", _legacy(mesh, seen)),
            *_some("tokens with nobody behind", _nobody(mesh, seen)),
            _looked_at(seen),
        ]
    )


def confirmed(first: Verdict, second: Verdict) -> Verdict:
    """
    What two looks, one after the other, both show; judged at the same moment.

    A rotation that is under way moves tokens between a look at Consul and one at
    Vault. What only the second shows is told, and is no alarm.
    """
    before = set(first.findings)
    return _verdict(
        found
        if found.level != "fail" or found in before
        else replace(found, level="warn", text=f"{found.text}; not so a moment before")
        for found in second.findings
    )


def _verdict(findings: Iterable[Finding]) -> Verdict:
    return Verdict(tuple(sorted(findings, key=lambda f: _RANK[f.level])))


def _some(kind: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The worst of many alike, and how many more there are."""
    found = sorted(findings, key=lambda f: _RANK[f.level])
    yield from found[:MANY]
    if more := found[MANY:]:
        yield Finding(more[0].level, kind, f"{len(more)} more", "mend these; then the next show")


def _about(mesh: Mesh, seen: AuditSeen, token: TokenSeen) -> str:
    """`ACCESSOR "what it says of itself" (31 d old, without expiry)`."""
    at, where = seen.tokens.at, seen.tokens.find(token.accessor, mesh.primary)
    said = " ".join(token.description.split())
    said = f' "{said[:60]}{"..." * (len(said) > 60)}"' if said else ""
    facts = [f"{age_text(at - token.created)} old" if token.created.year > 1 else "of unknown age"]
    if token.legacy:
        facts.append("legacy")
    if token.local and where:
        facts.append(f"local to {where[0]}")
    left = f"expires in {age_text(token.expires - at)}" if token.expires else "without expiry"
    return f"{token.accessor or 'without accessor'}{said} ({', '.join([*facts, left])})"


def _granted(grants: Grants) -> str:
    return "; ".join(part.replace(" beside:", "") for part in differences(grants, Grants()))


# Who is known: each token is told of where it is worst.


def _manages(mesh: Mesh, seen: AuditSeen, token: TokenSeen) -> bool:
    if token.management or token.grants.roles & seen.managing:
        return True
    # Replication cannot do without: the secondary's leader reads secrets by it.
    return bool(token.grants.policies & seen.mighty) and token.accessor not in _replicate(
        mesh, seen
    )


def _replicate(mesh: Mesh, seen: AuditSeen) -> set[str]:
    """Tokens that datacenters replicate ACLs by."""
    kept = {a for name, a in seen.kept.items() if name.startswith("replication-")}
    roles = [token.role for token in mesh.roles() if token.kind == "replication"]
    return kept | {a for role in roles for a in seen.tokens.held.get(role, Slots())}


def _held(seen: AuditSeen) -> set[str]:
    return {accessor for slots in seen.tokens.held.values() for accessor in slots}


def _unknown(mesh: Mesh, seen: AuditSeen) -> Iterator[TokenSeen]:
    """Tokens that neither Vault holds nor the topology excuses, and no other finding names."""
    known = {ANONYMOUS, seen.management, *seen.kept.values(), *_held(seen)}
    for _, token in seen.tokens.every(mesh.primary):
        if token.accessor in known or foreign(mesh.foreign_tokens, token):
            continue
        if not token.legacy and not _manages(mesh, seen, token):
            yield token


# Findings, one kind after the other.


def _anonymous(seen: AuditSeen) -> Iterator[Finding]:
    bad: dict[str, list[str]] = {}
    for name, tokens in seen.tokens.tokens.items():
        token = tokens.get(ANONYMOUS)
        if token and token.grants:
            bad.setdefault(_granted(token.grants), []).append(name)
    for what, where in bad.items():
        yield Finding(
            "fail",
            "anonymous token",
            f"everybody who has none is granted {what} in {', '.join(where)}",
            f"take that from token {ANONYMOUS}, and give whoever needs it a token of his own",
        )
    if not bad:
        yield Finding("ok", "anonymous token", f"grants nothing in {', '.join(seen.tokens.tokens)}")


def _management(mesh: Mesh, seen: AuditSeen) -> Iterator[Finding]:
    kind, place = "management tokens", f"{mesh.vault.kv_mount}/consul/bootstrap"
    # The engine can do without no management token, and what Vault holds for it is its own.
    engines = {a for t in access_tokens(mesh) for a in seen.tokens.held.get(t.role, Slots())}
    live = [t for _, t in seen.tokens.every(mesh.primary) if _manages(mesh, seen, t)]
    live = [t for t in live if t.accessor not in engines]
    the_one = seen.management or seen.tokens.own
    beside = [t for t in live if t.accessor != the_one]
    if not seen.management:
        yield Finding(
            "warn",
            kind,
            f"Vault keeps none: this run was given token {the_one}",
            f"store it at {place} (fields accessor, secret, state=held)",
        )
    elif len(beside) == len(live):
        yield Finding(
            "fail",
            kind,
            f"Vault keeps {the_one}, which manages nothing in Consul",
            f"put the right one at {place} (fields accessor, secret, state=held)",
        )
    for token in beside:
        excused = foreign(mesh.foreign_tokens, token)
        own = " and is the one that this run was given" if token.accessor == seen.tokens.own else ""
        yield Finding(
            "warn" if excused else "fail",
            "management token",
            f"{_about(mesh, seen, token)} may do everything{_by(seen, token)}{own}"
            + (", as foreign_tokens has it" if excused else ""),
            "give whoever uses it what he needs and no more, then delete it",
        )
    ages = sorted(seen.tokens.at - token.created for token in live)
    if beside:
        span = f"{age_text(ages[0])} to {age_text(ages[-1])} old"
        yield Finding("warn", kind, f"{len(live)} live, {span}", "let one live, which Vault keeps")
    elif live and seen.management:
        yield Finding("ok", kind, f"one lives, which Vault keeps ({age_text(ages[0])} old)")


def _by(seen: AuditSeen, token: TokenSeen) -> str:
    mighty = "" if token.management else ", ".join(sorted(token.grants.policies & seen.mighty))
    return f" by acl = write in its policy {mighty}" if mighty else ""


def _orphans(mesh: Mesh, seen: AuditSeen) -> Iterator[Finding]:
    names = {token.description: token.name for token in seen.boot}
    declared = {token.role for token in with_documents(mesh)}
    for token in _unknown(mesh, seen):
        if token.role and token.role not in declared:
            yield Finding(
                "fail",
                "orphan",
                f"{_about(mesh, seen, token)} is of {token.role}, which is declared no more",
                f"declare it again, or {ROTATE} with --set retire={token.role}",
            )
        elif token.role and token.role not in seen.tokens.unreadable:
            yield Finding(
                "fail",
                "orphan",
                f"{_about(mesh, seen, token)} is none that Vault holds for {token.role}",
                f"{ROTATE}, which disarms and revokes it",
            )
        elif name := names.get(token.description):
            yield Finding(
                "fail",
                "orphan",
                f"{_about(mesh, seen, token)} looks like {name} of the boot, which is another token",
                "see who uses it, then delete it",
            )


def _strangers(mesh: Mesh, seen: AuditSeen) -> Iterator[Finding]:
    boot = {token.description for token in seen.boot}
    for token in _unknown(mesh, seen):
        if token.role or token.description in boot or minted_for(mesh, token.description):
            continue
        own = "; this run was given it" if token.accessor == seen.tokens.own else ""
        yield Finding(
            "warn" if token.expires else "fail",
            "stranger",
            f"{_about(mesh, seen, token)} is neither declared nor in foreign_tokens{own}",
            "see who uses it, then declare it as a role or in foreign_tokens, or delete it",
        )


def _declared(mesh: Mesh, seen: AuditSeen) -> Iterator[Finding]:
    good = 0
    new = [t.role for t in with_documents(mesh) if not any(seen.tokens.held.get(t.role, Slots()))]
    new = [role for role in new if role not in seen.tokens.unreadable]
    if new:
        yield Finding("warn", "declared tokens", f"no token yet: {compress(new)}", ROTATE)
    bad: list[Finding] = []
    for token in with_documents(mesh):
        if token.role not in new:
            found = list(_role(mesh, seen, token))
            bad += found
            good += not found
    yield from _some("declared tokens", bad)
    if good:
        yield Finding(
            "ok", "declared tokens", f"{good} of {len(with_documents(mesh))} live as declared"
        )


def _role(mesh: Mesh, seen: AuditSeen, token: DeclaredToken) -> Iterator[Finding]:
    if error := seen.tokens.unreadable.get(token.role):
        text = f"what Vault keeps at {token.path} cannot be read: {error}"
        yield Finding(
            "fail", token.role, text, "make the path readable, or correct what lies there"
        )
        return
    slots = seen.tokens.held[token.role]
    if slots.pending or slots.previous:
        since = seen.tokens.find(slots.current if slots.previous else slots.pending, mesh.primary)
        takes = timedelta(seconds=token.overlap_seconds + token.soak_seconds)
        late = since is not None and seen.tokens.at - since[1].created >= LATE + takes
        text = "a rotation of it is under way, or did not end"
        yield Finding(
            "fail" if late else "warn",
            token.role,
            f"{text} for more than a day" if late else text,
            f"{ROTATE}, which ends it",
        )
    if slots.current is None:
        return
    found = seen.tokens.find(slots.current, mesh.primary)
    if found is None:
        text = f"Vault has {slots.current} at {token.path}, and Consul has it no more"
        yield Finding("fail", token.role, text, f"{ROTATE}, which issues another")
        return
    where, live = found
    age, limit = seen.tokens.at - live.created, timedelta(hours=token.max_age_hours)
    if age >= limit:
        yield Finding(
            "fail" if age >= limit + LATE else "warn",
            token.role,
            f"{live.accessor} is {age_text(age)} old, {age_text(limit)} are allowed",
            f"{ROTATE}; if that runs daily, see in its report why it left this one",
        )
    parts = differences(live.grants, declared_grants(mesh, token))
    if live.description != described(token):
        parts.append("another description")
    if (live.local, live.local and where) != (token.local, token.local and token.datacenters[0]):
        parts.append(f"local to {where}" if live.local else "not local")
    if parts:
        mends = token.drift == "put back"
        yield Finding(
            "fail",
            token.role,
            f"{live.accessor} is not as declared: {'; '.join(parts)}",
            f"{ROTATE}, which puts it back" if mends else "put it back by hand, or declare it so",
        )


def _of_the_boot(mesh: Mesh, seen: AuditSeen) -> Iterator[Finding]:
    bad: list[Finding] = []
    wanted = {token.name: token for token in seen.boot}
    if new := [name for name in wanted if name not in seen.kept]:
        yield Finding("warn", "tokens of the boot", f"none yet: {compress(new)}", "run cold-boot")
    declared = {token.role for token in of_acl(mesh)}  # of those is told with the roles
    for name, accessor in seen.kept.items():
        if name in declared:
            continue
        found = seen.tokens.find(accessor, mesh.primary)
        path = f"{mesh.vault.kv_mount}/consul/tokens/{name}"
        if found is None:
            text = f"Vault has {accessor} at {path}, and Consul has it no more"
            do = "run cold-boot, which makes it again" if name in wanted else f"delete {path}"
            bad.append(Finding("fail", "orphan", text, do))
        elif name not in wanted:
            text = f"{_about(mesh, seen, found[1])} is for what the topology has no more"
            do = f"if that is gone for good, delete the token, then {path}"
            bad.append(Finding("fail", "nobody behind", text, do))
        elif parts := differences(found[1].grants, wanted[name].grants):
            text = f"{accessor} is not as the boot made it: {'; '.join(parts)}"
            bad.append(Finding("fail", name, text, "put it back by hand"))
    yield from _some("tokens of the boot", bad)
    if not bad and not new:
        text = f"{len(wanted)} live, as the boot made them"
        yield Finding("ok", "tokens of the boot", text)


def _legacy(mesh: Mesh, seen: AuditSeen) -> Iterator[Finding]:
    for _, token in seen.tokens.every(mesh.primary):
        if token.legacy and not _manages(mesh, seen, token):
            excused = foreign(mesh.foreign_tokens, token)
            yield Finding(
                "warn" if excused else "fail",
                "legacy token",
                f"{_about(mesh, seen, token)} is of the ACL system that Consul 1.11 took away",
                "give whoever uses it a token with policies, then delete it",
            )


def _nobody(mesh: Mesh, seen: AuditSeen) -> Iterator[Finding]:
    hosts = {f"{host.name} in {dc.name}" for dc, host in mesh.hosts()}
    names = {token.name for token in seen.boot}
    told = {accessor for name, accessor in seen.kept.items() if name not in names}
    for where, token in seen.tokens.every(mesh.primary):
        if token.accessor == ANONYMOUS or foreign(mesh.foreign_tokens, token):
            continue
        about = _about(mesh, seen, token)
        if (gone := sorted(token.grants.nodes - hosts)) and token.accessor not in told:
            text = f"{about} is for no host of the topology: {', '.join(gone)}"
            yield Finding("fail", "nobody behind", text, "delete it if the host is gone for good")
        if idle := sorted(s for s in token.grants.services if not _runs(seen, s, token, where)):
            text = f"{about} is for no instance in the catalog: {', '.join(idle)}"
            do = "start the service, or take the identity from the token if it is gone for good"
            yield Finding("warn", "nobody behind", text, do)


def _runs(seen: AuditSeen, service: str, token: TokenSeen, where: str) -> bool:
    name, _, limited = service.partition(" in ")
    places = [where] if token.local else limited.split() or list(seen.services)
    return any(name in seen.services.get(place, frozenset()) for place in places)


def _looked_at(seen: AuditSeen) -> Finding:
    counts = [f"{len(tokens)} in {name}" for name, tokens in seen.tokens.tokens.items()]
    return Finding("ok", "lists of tokens", f"whole, and the same everywhere: {', '.join(counts)}")
