"""Is Vault's Consul secrets engine as declared, and is each token it made under a lease?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta

from blocks.dynamic_tokens import engine_roles
from blocks.topology import Mesh
from tasks.planning.dynamic import EnginesSeen, MountSeen, drift_of, due_leases
from tasks.planning.minted import minted_for, without_lease
from tasks.planning.rotation import foreign
from tasks.planning.tokens_seen import TokensSeen, age_text
from tasks.planning.verdict import Finding

LATE_HOURS = 24.0  # a rotation that runs daily ends what is due within this
ROTATE = "run token-rotation"


def engine_findings(
    mesh: Mesh, tokens: TokensSeen, engines: Mapping[str, MountSeen]
) -> Iterator[Finding]:
    """What is to be said of the engine's mounts, its roles, their leases and its tokens."""
    bad = [*_mounts(engines), *_roles(mesh, tokens, engines), *_minted(mesh, tokens, engines)]
    yield from bad
    if engines and not bad:
        leases = sum(len(found) for mount in engines.values() for found in mount.leases.values())
        roles = len(engine_roles(mesh))
        yield Finding("ok", "consul secrets engine", f"{roles} roles as declared, {leases} leases")


def _mounts(engines: Mapping[str, MountSeen]) -> Iterator[Finding]:
    for name, mount in engines.items():
        if mount.wrong:
            yield Finding("fail", f"{name} engine", mount.wrong, mount.do)


def _roles(mesh: Mesh, tokens: TokensSeen, engines: Mapping[str, MountSeen]) -> Iterator[Finding]:
    for token in engine_roles(mesh):
        mount = engines.get(token.mount)
        if mount is None or mount.wrong:
            continue
        if drift := drift_of(mesh, mount, token):
            new = token.role not in mount.definitions
            mends = new or token.drift == "put back"
            do = f"{ROTATE}, which puts it right" if mends else "put it back, or declare it so"
            yield Finding("warn" if new else "fail", token.role, drift, do)
        seen = EnginesSeen(tokens, engines)
        if late := due_leases(seen, token, token.max_age_hours + LATE_HOURS):
            age = age_text(timedelta(hours=token.max_age_hours))
            text = f"{len(late)} leases are a day older than the {age} that are allowed"
            yield Finding("fail", token.role, text, f"{ROTATE}, which ends them")


def _minted(mesh: Mesh, tokens: TokensSeen, engines: Mapping[str, MountSeen]) -> Iterator[Finding]:
    mount_of = {token.role: token.mount for token in engine_roles(mesh)}
    for _, token in tokens.every(mesh.primary):
        role = minted_for(mesh, token.description)
        mount = engines.get(mount_of.get(role, ""))
        if mount is None or mount.wrong or foreign(mesh.foreign_tokens, token):
            continue
        if without_lease(token.description, mount.leases.get(role, ()), tokens.at):
            yield Finding(
                "fail",
                "orphan",
                f"{token.accessor} was minted for {role} ({age_text(tokens.at - token.created)} "
                "old), and Vault has no lease of it",
                f"{ROTATE}, which disarms and revokes it",
            )
