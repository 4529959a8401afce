"""
Which ACL tokens a mesh has: declared as roles, without a secret, without I/O.

A role has one live token. What it grants, where its secret lies in Vault, who
consumes it and what proves it stand here; which token that is at the moment
stands in Vault and Consul alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from pydantic import Field

from blocks import agent_tokens
from blocks.nearest import did_you_mean
from blocks.parts import Name, Part

if TYPE_CHECKING:
    from blocks.topology import Mesh

TokenKind = Literal[
    "service",
    "agent",
    "default",
    "replication",
    "config_file_service_registration",
    "ca-provider",
    "dynamic",
    "gossip",
]
Resource = Literal["kv read", "kv write", "service read", "leaf sign", "acl read", "operator read"]

# Secrets that the boot makes and that other runbooks look after.
_RESERVED = ("consul/", "approvals/")
# The one path among them that a role has.
GOSSIP_PATH = "consul/gossip"
_WITHOUT_NAME = {"acl read", "operator read"}
# What Consul's own token at Vault may is decided by its policy there, and all datacenters have it.
_OF_CA = {"role", "kind", "drift", "soak_seconds", "max_age_hours"}


class Permission(NamedTuple):
    """One thing that a token may or may not do, and that can be tried without changing anything."""

    resource: Resource
    name: str  # key, or service; empty where there is but one

    def __str__(self) -> str:
        return f"{self.resource} {self.name}".strip()


class DeclaredToken(Part):
    """A role that has one live ACL token."""

    role: Name = Field(description="Name of the role; its tokens carry it in their description.")
    kind: TokenKind = Field(description="How its consumers get it, and how that is proven.")
    policies: list[str] = Field(default=[], description="Names of ACL policies.")
    roles: list[str] = Field(default=[], description="Names of ACL roles.")
    service_identities: list[str] = Field(default=[], description="Names of services.")
    node_identities: list[Name] = Field(default=[], description="Hosts of the mesh.")
    datacenters: list[Name] = Field(
        default=[], description="Where it is used and proven; all datacenters if none is named."
    )
    local: bool = Field(default=False, description="Exists in its one datacenter only.")
    path: str = Field(default="", description="Path of its secret below `vault.kv_mount`.")
    consumers: list[Name] = Field(
        default=[], description="Services that use it: healthy in the catalog while they can."
    )
    may: list[str] = Field(default=[], description="What it must be allowed.")
    may_not: list[str] = Field(default=[], description="What it must be denied.")
    drift: Literal["put back", "report"] = Field(
        default="put back", description="What becomes of a token that was edited by hand."
    )
    overlap_seconds: float = Field(
        default=60.0, ge=0, description="How long old and new both work, for consumers to adopt."
    )
    soak_seconds: float = Field(
        default=60.0, ge=0, description="How long the old one stands disarmed before it is revoked."
    )
    max_age_hours: float = Field(default=720.0, gt=0, description="Older than this it is due.")
    mount: str = Field(default="consul", description="dynamic: mount of the secrets engine.")
    engine_address: str = Field(
        default="", description="dynamic: URL at which the engine is asked, if not a node's own."
    )
    consul_address: str = Field(
        default="", description="dynamic: `host:port` at which the engine reaches Consul."
    )
    ttl_seconds: int = Field(default=3600, ge=1, description="dynamic: length of a lease.")
    max_ttl_seconds: int = Field(
        default=86400, ge=1, description="dynamic: how long a lease can be renewed."
    )


class ForeignToken(Part):
    """Tokens in Consul that are none of the runbooks' business."""

    accessor: str | None = Field(default=None, description="The one with this accessor.")
    description: str | None = Field(
        default=None, description="Those whose description is this; `*` at its end for any rest."
    )


class CarriedToken(DeclaredToken):
    """One role of a declaration that stands for many: a token that agents carry."""

    declaration: Name = Field(description="The role by which it was declared.")
    description: str = Field(description="What its token says of itself, as the boot's does.")
    hosts: list[Name] = Field(description="Hosts whose agents carry it.")


def roles(mesh: Mesh) -> list[DeclaredToken]:
    """Every role that has a token of its own."""
    from blocks import dynamic_tokens

    each = [role for token in mesh.tokens for role in _each(mesh, token)]
    return [*each, *dynamic_tokens.access_tokens(mesh)]


def meant(mesh: Mesh, name: str) -> list[str]:
    """The roles that a name stands for: one, or all of a declaration; none if nobody has it."""
    return [
        role.role
        for role in roles(mesh)
        if name == role.role or (isinstance(role, CarriedToken) and name == role.declaration)
    ]


def _each(mesh: Mesh, token: DeclaredToken) -> Iterator[DeclaredToken]:
    if token.kind not in agent_tokens.KINDS:
        yield token
        return
    for one in agent_tokens.every(mesh):
        if one.kind == token.kind and one.datacenter in (token.datacenters or [one.datacenter]):
            yield _carried(mesh, token, one)


def _carried(mesh: Mesh, token: DeclaredToken, one: agent_tokens.AgentToken) -> CarriedToken:
    services = [s.name for s in mesh.services if s.host in one.hosts]
    used_by_services = one.kind in {"default", "config_file_service_registration"}
    # Each may what its consumer cannot do without, and nothing of what the runbooks may.
    # What only a write can show (an agent's own node) is proven by the agent that has it.
    may = [f"leaf sign {name}" for name in dict.fromkeys(services)] if used_by_services else []
    may_not = ["acl read", "operator read"]
    if one.kind == "replication":
        may, may_not = may_not, ["kv read mesh-runbooks-proof"]
    # Made of what was checked; a host's name may leave no room for what stands before it.
    return CarriedToken.model_construct(
        role=one.name,
        kind=one.kind,
        policies=list(one.policies),
        service_identities=list(one.services),
        node_identities=list(one.nodes),
        datacenters=[one.datacenter],
        path=one.path,
        consumers=list(dict.fromkeys(services)) if used_by_services else [],
        may=may,
        may_not=may_not,
        drift=token.drift,
        overlap_seconds=0.0,
        soak_seconds=token.soak_seconds,
        max_age_hours=token.max_age_hours,
        declaration=token.role,
        description=one.description,
        hosts=list(one.hosts),
    )


def permission(text: str) -> Permission | None:
    """What a line of `may` or `may_not` means; None if it means nothing."""
    words = text.split()
    resource, name = " ".join(words[:2]), " ".join(words[2:])
    for known in get_args(Resource):
        if resource == known and bool(name) != (known in _WITHOUT_NAME) and " " not in name:
            return Permission(known, name)
    return None


def permissions(lines: list[str]) -> list[Permission]:
    """What the lines of a checked `may` or `may_not` mean."""
    return [found for line in lines if (found := permission(line))]


def problems(mesh: Mesh) -> Iterator[str]:
    """Everything about a well-formed `tokens` section that could not be, one line each."""
    single = [t.role for t in mesh.tokens]
    for what, values in (
        ("tokens.role", single + [t.role for t in roles(mesh) if isinstance(t, CarriedToken)]),
        ("tokens.path", [path for t in mesh.tokens if (path := t.path.strip("/"))]),
    ):
        for value, count in Counter(values).items():
            if count > 1:
                yield f"{what}: {value} is there {count} times"
    for token in mesh.tokens:
        where = f"tokens[{token.role}]"
        yield from _OF_KIND[token.kind](where, token, mesh)
    for number, foreign in enumerate(mesh.foreign_tokens):
        if (foreign.accessor is None) == (foreign.description is None):
            yield f"foreign_tokens[{number}]: name either an accessor or a description"


def _service(where: str, token: DeclaredToken, mesh: Mesh) -> Iterator[str]:
    yield from _path(where, token.path)
    yield from _grants(where, token, mesh)
    yield from _places(where, token, mesh)
    yield from _proof(where, token)


def _ca_provider(where: str, token: DeclaredToken, mesh: Mesh) -> Iterator[str]:
    for field in sorted(token.model_fields_set - _OF_CA):
        yield f"{where}.{field}: means nothing for a ca-provider"
    first = next(t.role for t in mesh.tokens if t.kind == "ca-provider")
    if token.role != first:
        yield f"{where}: {first} is the CA provider's token already, and there is one"


def _of_agents(where: str, token: DeclaredToken, mesh: Mesh) -> Iterator[str]:
    """The mesh says which agents there are, and what their tokens grant."""
    known = {"role", "kind", "datacenters", "drift", "soak_seconds", "max_age_hours"}
    if odd := [
        name for name in DeclaredToken.model_fields if name in token.model_fields_set - known
    ]:
        yield f"{where}: {', '.join(odd)}: without meaning for kind {token.kind}"
    yield from _places(where, token, mesh)
    if not any(_each(mesh, token)):
        yield f"{where}: no agent there carries a token of kind {token.kind}"


def _dynamic(where: str, token: DeclaredToken, mesh: Mesh) -> Iterator[str]:
    from blocks import dynamic_tokens

    yield from dynamic_tokens.problems(where, token, mesh)
    yield from _grants(where, token, mesh)
    yield from _places(where, token, mesh)
    yield from _proof(where, token)


def _proof(where: str, token: DeclaredToken) -> Iterator[str]:
    for field, lines in (("may", token.may), ("may_not", token.may_not)):
        if not lines:
            yield f"{where}.{field}: needs at least one line to prove a new token by"
        for line in lines:
            if permission(line) is None:
                yield f"{where}.{field}: {_unlike(line)}"
    for line in sorted(set(token.may) & set(token.may_not)):
        yield f"{where}.may_not: {line} is in may too"


def _unlike(line: str) -> str:
    known = [r if r in _WITHOUT_NAME else f"{r} NAME" for r in get_args(Resource)]
    return f"{line!r} is none of {', '.join(known)}{did_you_mean(line, known)}"


def _path(where: str, path: str) -> Iterator[str]:
    if not path.strip("/") or path != path.strip("/") or "//" in path or " " in path:
        yield f"{where}.path: {path!r} is no path such as services/web-portal"
    elif any(path == r.rstrip("/") or (r[-1] == "/" and path.startswith(r)) for r in _RESERVED):
        yield f"{where}.path: {path} belongs to the runbooks themselves"


def _grants(where: str, token: DeclaredToken, mesh: Mesh) -> Iterator[str]:
    granted = [token.policies, token.roles, token.service_identities, token.node_identities]
    if not any(granted):
        yield f"{where}: grants nothing: it needs policies, roles or identities"
    if "global-management" in token.policies:
        yield f"{where}.policies: global-management is for no consumer"
    hosts = {host.name for _, host in mesh.hosts()}
    for name in token.node_identities:
        if name not in hosts:
            yield f"{where}.node_identities: {name} is no host"


def _places(where: str, token: DeclaredToken, mesh: Mesh) -> Iterator[str]:
    known = {dc.name for dc in mesh.datacenters}
    for name in token.datacenters:
        if name not in known:
            yield f"{where}.datacenters: {name} is none of the datacenters"
    if token.local and len(token.datacenters) != 1:
        yield f"{where}.datacenters: a local token needs exactly one"
    services = {service.name for service in mesh.services}
    for name in token.consumers:
        if name not in services:
            yield f"{where}.consumers: {name} is no service"


# What a gossip key has of a declaration; the rest is of tokens.
_OF_GOSSIP = {"role", "kind", "path", "soak_seconds", "max_age_hours"}


def _gossip(where: str, token: DeclaredToken, mesh: Mesh) -> Iterator[str]:
    if token.path != GOSSIP_PATH:
        yield from _path(where, token.path)
    for field in sorted(token.model_fields_set - _OF_GOSSIP):
        yield f"{where}.{field}: means nothing for the gossip key, which is no token"
    if [t.kind for t in mesh.tokens].count("gossip") > 1:
        yield f"{where}: the mesh has one gossip key, and one role of kind gossip"
    for dc in mesh.datacenters:
        if not dc.consul.gossip_file:
            yield f"datacenters[{dc.name}].consul.gossip_file: {token.role} needs it"


# What each kind demands of its declaration.
_OF_KIND: dict[TokenKind, Callable[[str, DeclaredToken, Mesh], Iterator[str]]] = {
    "service": _service,
    "gossip": _gossip,
    "ca-provider": _ca_provider,
    **dict.fromkeys(agent_tokens.KINDS, _of_agents),
    "dynamic": _dynamic,
}
