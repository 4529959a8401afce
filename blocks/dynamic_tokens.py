"""
Roles of Vault's Consul secrets engine, and the engine's own access token: declared, without I/O.

Consumers of such a role ask Vault for a credential of their own, a lease. What
the engine speaks to Consul with is one management token a mount; it follows
from the declared roles and is declared nowhere itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from blocks.declared_tokens import DeclaredToken

if TYPE_CHECKING:
    from blocks.topology import Mesh

ACCESS_PATH = "consul/engines"  # of access tokens in Vault's KV
MANAGEMENT = "global-management"
_MOUNT = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_-]*(/[A-Za-z0-9_-]+)*$")


class AccessToken(DeclaredToken):
    """
    The token that one mount of the engine speaks to Consul with.

    Consul lets only `acl = "write"` create tokens, and Vault's documentation asks
    for a management token.
    """


def engine_roles(mesh: Mesh) -> list[DeclaredToken]:
    """The declared roles of the engine."""
    return [token for token in mesh.tokens if token.kind == "dynamic"]


def mounts(mesh: Mesh) -> dict[str, list[DeclaredToken]]:
    """The engine's roles by the mount that they are of."""
    found: dict[str, list[DeclaredToken]] = {}
    for token in engine_roles(mesh):
        found.setdefault(token.mount, []).append(token)
    return found


def access_tokens(mesh: Mesh) -> list[AccessToken]:
    """
    The access token of each mount that a role names.

    Nobody but the engine reads it, and the engine is told: no overlap is needed. It
    is replaced as often as the role that asks for it most often.
    """
    return [_access_token(mesh, mount, roles) for mount, roles in mounts(mesh).items()]


def _access_token(mesh: Mesh, mount: str, roles: list[DeclaredToken]) -> AccessToken:
    return AccessToken(
        role=access_role(mount),
        kind="dynamic",
        mount=mount,
        engine_address=roles[0].engine_address,
        consul_address=consul_address(mesh, roles[0]),
        policies=[MANAGEMENT],
        path=f"{ACCESS_PATH}/{mount}",
        consumers=list(dict.fromkeys(c for role in roles for c in role.consumers)),
        may=["acl read"],
        overlap_seconds=0.0,
        soak_seconds=max(role.soak_seconds for role in roles),
        max_age_hours=min(role.max_age_hours for role in roles),
    )


def access_role(mount: str) -> str:
    """What the access token of a mount is called."""
    return f"{mount.replace('/', '-').replace('_', '-').lower()}-engine"


def consul_address(mesh: Mesh, token: DeclaredToken) -> str:
    """Where the engine reaches Consul, as `host:port`."""
    if token.consul_address:
        return token.consul_address
    name = token.datacenters[0] if token.local and token.datacenters else mesh.primary
    known = {dc.name: dc for dc in mesh.datacenters}
    if name not in known or known[name].consul.servers[0] not in {h.name for _, h in mesh.hosts()}:
        return ""  # the topology is wrong, which is said elsewhere
    dc = known[name]
    return f"{mesh.host(dc.consul.servers[0]).address}:{dc.consul.https_port}"


def problems(where: str, token: DeclaredToken, mesh: Mesh) -> Iterator[str]:
    """What about one role of the engine could not be, beside what holds for every kind."""
    if token.path:
        yield f"{where}.path: consumers of the engine ask for credentials, nothing lies at a path"
    if not _MOUNT.match(token.mount):
        yield f"{where}.mount: {token.mount!r} is no mount such as consul"
    if token.max_ttl_seconds < token.ttl_seconds:
        yield f"{where}.max_ttl_seconds: shorter than ttl_seconds"
    if token.engine_address and not token.engine_address.startswith(("https://", "http://")):
        yield f"{where}.engine_address: {token.engine_address} is no URL such as https://vault:8200"
    if any(t.role == access_role(token.mount) for t in mesh.tokens):
        yield f"{where}.mount: {access_role(token.mount)} is the name of its access token, and a role's"
    others = [t for t in engine_roles(mesh) if t.mount == token.mount]
    yield from _unlike(where, token, others, mesh)


def _unlike(
    where: str, token: DeclaredToken, others: Iterable[DeclaredToken], mesh: Mesh
) -> Iterator[str]:
    """One mount has one address and speaks to one Consul: its roles must say so alike."""
    known = {dc.name for dc in mesh.datacenters}
    for other in others:
        if other is token:
            return  # told where the later of two is
        if other.engine_address != token.engine_address:
            yield f"{where}.engine_address: {other.role} of the same mount has another"
        placed = all(
            set(t.datacenters) <= known and (t.datacenters or not t.local) for t in (other, token)
        )
        if placed and consul_address(mesh, other) != consul_address(mesh, token):
            yield f"{where}.consul_address: {other.role} of the same mount has another"
