"""Looking at all declared tokens, in Vault and in every datacenter; nothing is changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from pydantic import SecretStr

from blocks.errors import Absent, Forbidden, MeshError, NotConverged, Transient
from tasks import acl_tokens, consul, consul_acl, federation, token_store, vault
from tasks.planning.plan import Refusal
from tasks.planning.tokens_seen import TokenSeen, TokensSeen
from tasks.step import fan_out, step
from tasks.token_clients import Clients, at_work
from tasks.token_store import Document

if TYPE_CHECKING:
    from blocks.declared_tokens import DeclaredToken
    from blocks.mesh import Connections

# Replication that is only a moment behind is no reason to refuse.
REPLICATION_DEADLINE = 10.0
COLD_BOOT = "run cold-boot first: it brings the mesh back and proves it"
NOTHING = Document()  # what Vault holds of a token that no role has


class Behind(Transient):
    """A datacenter's tokens are not the primary's: some are about to come, or to go."""


class Seen(NamedTuple):
    """What was seen of the tokens: for the plan, and with the secrets for the steps."""

    tokens: TokensSeen
    documents: dict[str, Document]


def management(connections: Connections) -> SecretStr:
    """
    The token that rotations work with: one given explicitly, else the one that Vault keeps.

    Raises:
        Absent: there is neither.
    """
    given = connections.consul(connections.topology.primary).token
    return given or consul_acl.stored_management(connections, connections.vault().login())


@step("is {connections.topology.name} fit for a rotation")
def unfit(connections: Connections) -> list[Refusal]:
    """
    Every reason why no token may be rotated now (R10).

    Vault must serve, every datacenter have a leader, replication be current, and
    the runbooks' own token be good.
    """
    mesh = connections.topology
    if not any(node.state == "active" for node in vault.look_at_all(connections)):
        return [Refusal("no node of Vault is active: it is sealed or down", COLD_BOOT, "vault")]
    leaderless = [
        Refusal(f"no leader that serves ({seen.state})", COLD_BOOT, seen.datacenter)
        for seen in fan_out(lambda dc: consul.look(connections, dc), mesh.datacenters)
        if seen.state != "serving"
    ]
    if leaderless:
        return leaderless
    try:
        token = management(connections)
    except Absent as error:
        return [Refusal(error.message, error.remedy, error.where)]
    return list(_credential(connections, token)) or list(_replication(connections, token))


def _credential(connections: Connections, token: SecretStr) -> Iterator[Refusal]:
    with at_work(connections, token) as clients:
        for dc in connections.topology.datacenters:
            try:
                acl_tokens.own_accessor(clients.consul(dc.name))
            except Forbidden as error:
                yield Refusal(
                    f"the runbooks' own token is not known: {error.message}",
                    "put a good management token where they find it, see cold-boot's guide",
                    dc.name,
                )


def _replication(connections: Connections, token: SecretStr) -> Iterator[Refusal]:
    mesh = connections.topology
    primary = mesh.datacenter(mesh.primary)
    for dc in mesh.secondaries:
        try:
            federation.await_replication(
                connections, primary, dc, token, deadline=REPLICATION_DEADLINE
            )
        except NotConverged as error:
            yield Refusal(f"ACL replication is stale: {error.message}", error.remedy, dc.name)


@step("survey of tokens")
def look(connections: Connections, declared: Sequence[DeclaredToken], token: SecretStr) -> Seen:
    """
    What Vault and Consul hold of these roles, and all of Consul's tokens.

    Raises:
        Refused: a list is not whole.
        Behind: the datacenters' lists differ.
    """
    mesh = connections.topology
    with at_work(connections, token) as clients:
        own = acl_tokens.own_accessor(clients.primary)
        tokens = {
            dc.name: acl_tokens.listed(clients.consul(dc.name), own) for dc in mesh.datacenters
        }
        _require_parity(mesh.primary, tokens)
        policies, acl_roles = (
            frozenset(str(x["Name"]) for x in clients.primary.get(path).json(list))
            for path in ("/v1/acl/policies", "/v1/acl/roles")
        )
    documents, unreadable = _documents(connections, declared, token)
    seen = TokensSeen(
        datetime.now(UTC),
        {role: found.accessors for role, found in documents.items()},
        unreadable,
        tokens,
        policies,
        acl_roles,
        own,
        frozenset(role.description for role in consul_acl.roles(mesh))
        | {"Bootstrap Token (Global Management)"},
    )
    return Seen(seen, documents)


def _require_parity(primary: str, tokens: dict[str, dict[str, TokenSeen]]) -> None:
    """
    Every datacenter lists the same of the runbooks' tokens.

    One that is missing somewhere is about to come or to go, and no plan can be
    made from it. Others' tokens come and go with every login.
    """

    def ours(name: str) -> set[str]:
        return {a for a, token in tokens[name].items() if token.role and not token.local}

    for name in tokens:
        if differ := ours(name) ^ ours(primary):
            raise Behind(
                f"{len(differ)} tokens are not those of {primary} yet",
                where=name,
                remedy="are the gateways up? its leader's log says what replication fails on",
            )


def _documents(
    connections: Connections, declared: Sequence[DeclaredToken], token: SecretStr, workers: int = 8
) -> tuple[dict[str, Document], dict[str, str]]:
    documents: dict[str, Document] = {}
    unreadable: dict[str, str] = {}

    def read(some: Sequence[DeclaredToken]) -> None:
        with at_work(connections, token) as clients:
            for role in some:
                try:
                    documents[role.role] = token_store.read(
                        clients.vault, connections.topology, role.path
                    )
                except Transient:
                    raise
                except MeshError as error:
                    unreadable[role.role] = error.message

    fan_out(read, [part for n in range(workers) if (part := declared[n::workers])])
    return documents, unreadable


def unwell(clients: Clients, consumers: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """
    Consumers, as (service, datacenter), of which an instance does not pass its checks.

    Each with the hosts on which it does not. Many roles share one: what was seen
    to be well in this piece of work is not asked for again.
    """
    found: dict[tuple[str, str], str] = {}
    for service, datacenter in dict.fromkeys(consumers):
        if (service, datacenter) in clients.seen_well:
            continue
        wanted = {
            s.host for s in clients.mesh.services if (s.name, s.datacenter) == (service, datacenter)
        }
        path = f"/v1/health/service/{service}"
        passing = clients.consul(datacenter).get(path, params={"passing": "1"}).json(list)
        if missing := wanted - {str(entry["Node"]["Node"]) for entry in passing}:
            found[service, datacenter] = ", ".join(sorted(missing))
        else:
            clients.seen_well.add((service, datacenter))
    return found
