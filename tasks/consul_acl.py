"""
Consul's ACLs on day 0: the one bootstrap, policies, and the agents' tokens.

The bootstrap answer is the only copy of the first management token, but not an
irreversible loss: the leader accepts a reset index on its disk. All other
tokens get accessor and secret chosen here and are stored in Vault first.
"""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import SecretStr

from blocks import agent_tokens
from blocks.errors import Absent, Forbidden, Invalid, MeshError, NotConverged, Refused, Transient
from blocks.topology import Datacenter, Mesh
from tasks import consul, hosts, record, vault
from tasks.step import step
from tasks.vault_setup import read_secret, write_secret
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.http import Api
    from blocks.mesh import Connections

BOOTSTRAP_PATH = "consul/bootstrap"
# The token is kept, and one of an earlier bootstrap that nobody has may still live.
UNSWEPT = "unswept"
BOOTSTRAP_DEADLINE = 60.0  # a short one hides a success: hashicorp/consul-k8s waits 5 minutes
_RESET_INDEX = re.compile(r"reset index: (\d+)")


class Role(NamedTuple):
    """A token that agents carry."""

    name: str  # "agent-us-consul-1", "default-us-app-1", "replication"
    description: str
    body: dict[str, Any]


# https://developer.hashicorp.com/consul/docs/security/acl/acl-federated-datacenters;
# node and agent rules so that the same token serves while a secondary comes up.
REPLICATION_RULES = """
acl = "write"
operator = "write"
service_prefix "" { policy = "read" intentions = "read" }
node_prefix "" { policy = "write" }
agent_prefix "" { policy = "read" }
"""

# What every agent's default token needs besides its own identity: to find the
# services it calls, and to answer DNS.
CATALOG_RULES = """
node_prefix "" { policy = "read" }
service_prefix "" { policy = "read" intentions = "read" }
query_prefix "" { policy = "read" }
"""

POLICIES = {
    agent_tokens.REPLICATION_POLICY: REPLICATION_RULES,
    agent_tokens.CATALOG_POLICY: CATALOG_RULES,
}


@step("bootstrap ACLs in {datacenter.name}")
def bootstrap(
    connections: Connections, datacenter: Datacenter, vault_token: SecretStr
) -> SecretStr:
    """
    The management token; made by ACL bootstrap if this mesh never had one.

    Holds afterwards: the token is in Vault and was read back before anybody
    used it. A bootstrap of ours whose answer was lost is reset on the leader's
    disk and repeated.

    Raises:
        Refused: somebody else bootstrapped; the exact remedy is in the error.
    """
    mesh = connections.topology
    with connections.vault().node(vault.await_active(connections), token=vault_token) as api:
        found, version = read_secret(api, mesh, BOOTSTRAP_PATH)
        if found and found.get("secret"):
            token = SecretStr(str(found["secret"]))
            _require_management(connections, datacenter, token)
            if found.get("state") == UNSWEPT:
                _sweep(connections, datacenter, api, found, version)
            return token
        ours = bool(found) and found.get("state") == "intended"  # type: ignore[union-attr]
        if not ours:
            write_secret(api, mesh, BOOTSTRAP_PATH, {"state": "intended"}, version)
            record.current().change("vault", "intent to bootstrap Consul's ACLs written")
            version += 1
        made, repeated = _bootstrap(connections, datacenter, ours=ours)
        keep = {"accessor": str(made["AccessorID"]), "secret": str(made["SecretID"])}
        state = UNSWEPT if repeated else "held"
        write_secret(api, mesh, BOOTSTRAP_PATH, keep | {"state": state}, version)
        record.current().change(
            f"consul {datacenter.name}",
            "ACLs bootstrapped, token stored in Vault",
            after=keep["accessor"],
        )
        token = SecretStr(keep["secret"])
        if repeated:
            _sweep(connections, datacenter, api, keep, version + 1)
        return token


def _sweep(
    connections: Connections, datacenter: Datacenter, api: Api, kept: dict[str, Any], version: int
) -> None:
    """Leave the kept management token as the only one of a repeated bootstrap, and note that."""
    token = SecretStr(str(kept["secret"]))
    _remove_lost(connections, datacenter, token, keep=str(kept["accessor"]))
    write_secret(api, connections.topology, BOOTSTRAP_PATH, kept | {"state": "held"}, version)


def stored_management(connections: Connections, vault_token: SecretStr) -> SecretStr:
    """
    The management token that Vault keeps.

    Raises:
        Absent: Vault keeps none; ACL bootstrap has not happened through this runbook.
    """
    mesh = connections.topology
    with connections.vault().node(vault.await_active(connections), token=vault_token) as api:
        found, _ = read_secret(api, mesh, BOOTSTRAP_PATH)
    if not found or not found.get("secret"):
        raise Absent(
            f"Vault keeps no management token at {mesh.vault.kv_mount}/{BOOTSTRAP_PATH}",
            where="vault",
            remedy="run cold-boot with --set initialise=true, or store the token there by hand",
        )
    return SecretStr(str(found["secret"]))


def _require_management(connections: Connections, datacenter: Datacenter, token: SecretStr) -> None:
    try:
        consul.operator_get(connections, datacenter, token, "/v1/acl/token/self")
    except Forbidden as error:
        raise Refused(
            "the management token in Vault is not Consul's",
            where=datacenter.name,
            remedy=f"put the right one at {connections.topology.vault.kv_mount}/{BOOTSTRAP_PATH} "
            "(fields accessor, secret, state=held), or reset ACL bootstrap on the leader",
        ) from error


def _bootstrap(
    connections: Connections, datacenter: Datacenter, *, ours: bool
) -> tuple[dict[str, Any], bool]:
    """The new token, and whether there may be an earlier one whose answer was lost."""
    block = connections.consul(datacenter.name)

    def once() -> dict[str, Any] | str:
        """The new token, or the text of the refusal."""
        leader = consul.await_quorum(connections, datacenter)
        with block.client(
            consul.url(connections, leader), dc="", deadline=BOOTSTRAP_DEADLINE
        ) as api:
            try:
                made: dict[str, Any] = api.put("/v1/acl/bootstrap").json(dict)
                return made
            except Forbidden as error:
                return str(error)

    lost = False
    try:
        answer = once()
    except Transient:
        # It may have been carried out: ask again, a second one is refused if so.
        answer, lost = once(), True
    if isinstance(answer, dict):
        return answer, ours  # a run that was killed may have reset it already
    index = _RESET_INDEX.search(answer)
    if not (ours or lost) or not index:
        raise Refused(
            "ACLs were bootstrapped by somebody else, and Vault does not hold the token",
            where=datacenter.name,
            remedy=f"store it: vault kv put {connections.topology.vault.kv_mount}/{BOOTSTRAP_PATH} "
            "state=held accessor=... secret=..., or, if nobody has it, write the reset index "
            f"{index[1] if index else 'from the leader log'} into "
            f"{datacenter.consul.data_dir}/acl-bootstrap-reset on the leader; then run it again",
        )
    leader = consul.await_quorum(connections, datacenter)
    hosts.write(
        connections,
        connections.topology.host(leader),
        f"{datacenter.consul.data_dir}/acl-bootstrap-reset",
        index[1].encode(),
        0o600,
    )
    record.current().change(
        leader, "ACL bootstrap reset, its answer had been lost", before=index[1]
    )
    answer = once()
    if isinstance(answer, dict):
        return answer, True
    raise NotConverged(
        "ACL bootstrap is refused even after its reset on the leader",
        where=datacenter.name,
        remedy="the leader changed meanwhile: run it again",
    )


def _remove_lost(
    connections: Connections, datacenter: Datacenter, token: SecretStr, *, keep: str
) -> None:
    """Delete bootstrap tokens of this mesh whose answer was lost: management tokens nobody has."""
    block = connections.consul(datacenter.name)
    with block.client(
        consul.url(connections, datacenter.consul.servers[0]), token=token, dc="", deadline=10.0
    ) as api:
        for entry in api.get("/v1/acl/tokens").json(list):
            lost = str(entry.get("Description", "")).startswith("Bootstrap Token")
            if lost and entry["AccessorID"] != keep:
                api.delete(f"/v1/acl/token/{entry['AccessorID']}")
                record.current().change(
                    f"consul {datacenter.name}",
                    "lost bootstrap token deleted",
                    before=entry["AccessorID"],
                )


def roles(mesh: Mesh) -> list[Role]:
    """Every token that day 0 hands to agents, in the primary."""
    return [
        Role(
            token.name,
            token.description,
            {
                "Policies": [{"Name": name} for name in token.policies],
                "ServiceIdentities": [{"ServiceName": name} for name in token.services],
                "NodeIdentities": [
                    {"NodeName": name, "Datacenter": token.datacenter} for name in token.nodes
                ],
            },
        )
        for token in agent_tokens.of_the_boot(mesh)
    ]


@step("ACL policies in {datacenter.name}")
def ensure_policies(connections: Connections, datacenter: Datacenter, token: SecretStr) -> None:
    """Make the runbooks' policies exist in the primary as declared; others are left alone."""
    block = connections.consul(datacenter.name)
    with block.client(
        consul.url(connections, datacenter.consul.servers[0]), token=token, dc="", deadline=10.0
    ) as api:
        # By listing, not by name: 403 can mean "no such policy" or "your token is unknown"
        # (hashicorp/consul#8428).
        have = {p["Name"]: p["ID"] for p in api.get("/v1/acl/policies").json(list)}
        for name, rules in POLICIES.items():
            if name in have:
                found = api.get(f"/v1/acl/policy/{have[name]}").json(dict)
                if found.get("Rules", "").strip() == rules.strip():
                    continue
                api.put(
                    f"/v1/acl/policy/{have[name]}",
                    json={"ID": have[name], "Name": name, "Rules": rules},
                )
                record.current().change(
                    f"consul {datacenter.name}", f"policy {name} put back", before="differs"
                )
            else:
                _create_policy(api, name, rules)
                record.current().change(
                    f"consul {datacenter.name}", f"policy {name} created", before="absent"
                )


def _create_policy(api: Api, name: str, rules: str) -> None:
    try:
        api.put("/v1/acl/policy", json={"Name": name, "Rules": rules})
    except Invalid as error:
        if "already exists" not in str(error):  # a lost answer, found again
            raise


@step("token {role.name}")
def ensure_token(
    connections: Connections,
    datacenter: Datacenter,
    role: Role,
    management: SecretStr,
    vault_token: SecretStr,
) -> SecretStr:
    """
    One agent token: its ids chosen here, stored in Vault, then created in Consul.

    A repeat finds the stored ids and creates or adopts exactly that token, so
    there is never a second one of a role. Where a rotation has replaced it, or
    is about to, it is that one.

    Raises:
        NotConverged: Consul has another secret under the accessor.
    """
    mesh = connections.topology
    path = f"{agent_tokens.FOLDER}/{role.name}"
    with connections.vault().node(vault.await_active(connections), token=vault_token) as store:
        found, version = read_secret(store, mesh, path)
        if found and not found.get("secret"):
            # A rotation that was killed chose the first ids of this role, and may have
            # created and handed them out: they are used as they are, and it is left to end.
            found = found.get("pending")
        if not found or not found.get("secret"):
            found = {"accessor": str(uuid.uuid4()), "secret": str(uuid.uuid4()), "state": "live"}
            write_secret(store, mesh, path, found, version)
            record.current().change(
                "vault", f"secret of token {role.name} written", before="absent"
            )
    secret = SecretStr(str(found["secret"]))
    block = connections.consul(datacenter.name)
    with block.client(
        consul.url(connections, datacenter.consul.servers[0]),
        token=management,
        dc="",
        deadline=10.0,
    ) as api:
        if _exists(api, str(found["accessor"])):
            return secret
        body = {
            "AccessorID": found["accessor"],
            "SecretID": found["secret"],
            "Description": role.description,
        }
        try:
            api.put("/v1/acl/token", json=body | role.body)
        except Invalid as error:
            if "already in use" not in str(error) or not _exists(api, str(found["accessor"])):
                raise
        record.current().change(
            f"consul {datacenter.name}", f"token {role.name} created", after=str(found["accessor"])
        )
    return secret


def _exists(api: Api, accessor: str) -> bool:
    try:
        return not api.get(f"/v1/acl/token/{accessor}").absent
    except Forbidden as error:
        # Consul 1.8 answers 403 `ACL not found` for an accessor that does not exist.
        if "ACL not found" in str(error):
            return False
        raise


@step("hand tokens to the agent on {host}")
def hand_tokens(
    connections: Connections,
    host: str,
    tokens: dict[str, SecretStr],
    management: SecretStr,
    *,
    deadline: float = 60.0,
) -> None:
    """
    Give an agent its tokens (`agent`, `default`, `replication`) over its own API, in their order.

    They survive restarts by `enable_token_persistence`. The agent never gives a
    token back, so that they are used is proven elsewhere: by what it registers.
    In a secondary the management token resolves through the gateways until
    replication has caught up.

    Raises:
        NotConverged: the agent did not accept them within `deadline` seconds.
    """
    block = connections.consul(connections.topology.datacenter_of(host).name)
    todo = dict(tokens)

    def accepted() -> bool:
        with block.client(
            consul.url(connections, host), token=management, dc="", deadline=5.0
        ) as api:
            for kind in list(todo):
                try:
                    api.put(
                        f"/v1/agent/token/{kind}", json={"Token": todo[kind].get_secret_value()}
                    )
                except Forbidden as error:  # not resolvable here yet
                    raise Transient(error.message, where=host) from None
                del todo[kind]
        return True

    wait_until(
        accepted,
        "the agent to accept its tokens",
        deadline=deadline,
        where=host,
        stage="tokens",
        every=0.1,
        remedy="the management token must resolve there: are the gateways up?",
    )
    record.current().change(host, f"agent given its tokens: {', '.join(sorted(tokens))}")


def needs_tokens(connections: Connections, host: str, management: SecretStr) -> bool:
    """
    Whether an agent carries no usable token of its own.

    Asked without a token: the agent then uses its `default` token, or is
    anonymous, which deny-all shows at once. For servers, which have none, the
    node's own registration by anti-entropy tells. One that does not answer is
    not said to lack any.
    """
    mesh = connections.topology
    dc = mesh.datacenter_of(host)
    try:
        if host in dc.consul.servers:
            node = consul.operator_get(connections, dc, management, f"/v1/catalog/node/{host}")
            return not node or not (node.get("Node") or {}).get("TaggedAddresses")
        address = consul.url(connections, host)
        with connections.consul(dc.name).client(address, dc="", deadline=5.0) as api:
            return not api.get(f"/v1/health/node/{host}").json(list)
    except Forbidden:
        return True
    except MeshError:
        return False  # it does not answer, which says nothing about its tokens
