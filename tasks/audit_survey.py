"""Looking at every ACL token and at who would use it, in every datacenter; nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import SecretStr

from blocks import agent_tokens
from blocks.dynamic_tokens import mounts
from blocks.errors import Forbidden, Refused
from tasks import acl_tokens, consul_acl, engine_survey, token_survey
from tasks.planning.acl_rules import writes_acl
from tasks.planning.token_audit import AuditSeen, BootToken, with_documents
from tasks.step import fan_out, step
from tasks.token_clients import Clients
from tasks.vault_setup import read_secret

if TYPE_CHECKING:
    from blocks.http import Answer, Api
    from blocks.mesh import Connections
    from blocks.topology import Mesh


@step("survey of all tokens of {connections.topology.name}")
def look(connections: Connections, management: SecretStr) -> AuditSeen:
    """
    All tokens of Consul, all that Vault keeps of them, and the services that run.

    Raises:
        Refused: a list is not whole: what it leaves out would be taken for gone.
        Transient: the datacenters' lists differ.
    """
    mesh = connections.topology
    tokens = token_survey.look(connections, with_documents(mesh), management).tokens
    with Clients(connections, management) as clients:
        acl_roles = clients.primary.get("/v1/acl/roles").json(list)
        policies = clients.primary.get("/v1/acl/policies").json(list)
        catalogs = {dc.name: _catalog(clients.consul(dc.name)) for dc in mesh.datacenters}
        kept = _kept(clients.vault, mesh)
        bootstrap, _ = read_secret(clients.vault, mesh, consul_acl.BOOTSTRAP_PATH)
    used = {name for _, token in tokens.every(mesh.primary) for name in token.grants.policies}
    used |= {name for role in acl_roles for name in acl_tokens.grants(role).policies}
    mighty = _mighty(connections, management, {p["ID"]: p["Name"] for p in policies}, used)
    return AuditSeen(
        tokens,
        tuple(
            BootToken(role.name, role.description, acl_tokens.grants(role.body))
            for role in consul_acl.roles(mesh)
        ),
        kept,
        str((bootstrap or {}).get("accessor") or ""),
        frozenset(
            str(role["Name"])
            for role in acl_roles
            if acl_tokens.manages(role) or acl_tokens.grants(role).policies & mighty
        ),
        mighty,
        catalogs,
        engine_survey.look(connections, list(mounts(mesh))),
    )


def _mighty(
    connections: Connections,
    management: SecretStr,
    policies: dict[str, str],
    used: set[str],
    workers: int = 8,
) -> frozenset[str]:
    """Those of the policies in use, by name, that let their token write ACLs."""
    found: set[str] = set()

    def read(ids: Sequence[str]) -> None:
        with Clients(connections, management) as clients:
            for id_ in ids:
                try:  # the list has no rules in it
                    answer = clients.primary.get(f"/v1/acl/policy/{id_}")
                except Forbidden as error:
                    if "ACL not found" not in str(error):  # deleted meanwhile, on 1.8
                        raise
                    continue
                if not answer.absent and writes_acl(str(answer.json(dict).get("Rules") or "")):
                    found.add(policies[id_])

    ids = [id_ for id_, name in policies.items() if name in used]
    fan_out(read, [part for n in range(workers) if (part := ids[n::workers])], workers=workers)
    return frozenset(found)


def _catalog(api: Api) -> frozenset[str]:
    answer: Answer = api.get("/v1/catalog/services", params={"consistent": "1"})
    names = frozenset(str(name) for name in answer.json(dict))
    # Consul 1.8 filters without a word; servers register `consul` themselves.
    if acl_tokens.filtered(answer) or "consul" not in names:
        raise Refused(
            "the catalog is not whole",
            where=api.server,
            remedy="the runbooks' token must be allowed to read every service",
        )
    return names


def _kept(api: Api, mesh: Mesh) -> dict[str, str]:
    """Accessors of the boot's tokens in Vault by name, those of hosts that are no more too."""
    path = f"/v1/{mesh.vault.kv_mount}/metadata/{agent_tokens.FOLDER}"
    answer = api.get(path, params={"list": "true"}, answers=(404,))
    if answer.absent:
        return {}
    found: dict[str, str] = {}
    for name in answer.json(dict)["data"]["keys"]:
        document, _ = read_secret(api, mesh, f"{agent_tokens.FOLDER}/{name}")
        if accessor := str((document or {}).get("accessor") or ""):
            found[str(name)] = accessor
    return found
