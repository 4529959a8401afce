"""
The declared set-up of a new Vault, made with a root token that then dies.

Mounts for secrets and certificates, the policies, the AppRole the runbooks log
in with, and the orphan periodic token that Consul's CA provider uses. Every
step looks first, so a set-up that was interrupted is simply finished.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Literal

from pydantic import SecretStr

from blocks.dynamic_tokens import mounts
from blocks.errors import Absent, BadInput, Forbidden, NotConverged
from blocks.topology import Mesh
from tasks import ca_role, record, vault
from tasks.step import step

if TYPE_CHECKING:
    from blocks.http import Api
    from blocks.mesh import Connections

RUNBOOK_ROLE = "mesh-runbooks"
RUNBOOK_POLICY = "mesh-runbooks"
CA_POLICY = ca_role.NAME
CA_TOKEN_PATH = "consul/ca-token"


def runbook_policy(mesh: Mesh) -> str:
    """What the runbooks may do in Vault: their secrets, health, raft, and issuing certificates."""
    kv, pki = mesh.vault.kv_mount, mesh.vault.pki_mount
    issuers = "\n".join(
        f'path "{d.consul.intermediate_pki_path.strip("/")}/config/issuers"'
        ' { capabilities = ["read", "update"] }\n'
        f'path "{d.consul.intermediate_pki_path.strip("/")}/issuers" {{ capabilities = ["list"] }}'
        for d in mesh.datacenters
    )
    return f"""{issuers}
path "{kv}/*" {{ capabilities = ["create", "read", "update", "delete", "list"] }}
path "{pki}/issue/mesh-server" {{ capabilities = ["create", "update"] }}
path "{pki}/cert/ca" {{ capabilities = ["read"] }}
path "sys/storage/raft/configuration" {{ capabilities = ["read"] }}
path "sys/storage/raft/autopilot/state" {{ capabilities = ["read"] }}
path "sys/storage/raft/snapshot" {{ capabilities = ["read"] }}
path "sys/mounts" {{ capabilities = ["read"] }}
path "auth/token/lookup-accessor" {{ capabilities = ["create", "update"] }}
path "auth/token/revoke-accessor" {{ capabilities = ["create", "update"] }}
path "auth/token/lookup-self" {{ capabilities = ["read"] }}
path "auth/token/renew-self" {{ capabilities = ["update"] }}
{ca_role.RULES}{engine_rules(mesh)}"""


def engine_rules(mesh: Mesh) -> str:
    """
    What the runbooks may do at Vault's Consul secrets engine; nothing without a role of it.

    Vault asks for `sudo` to list leases. The token that asks for a credential
    is made for that alone, so that its end is the lease's.
    """
    rules = []
    for mount, roles in mounts(mesh).items():
        rules += [
            f'path "{mount}/config/access" {{ capabilities = ["create", "read", "update"] }}',
            f'path "{mount}/roles/*" {{ capabilities = ["create", "read", "update"] }}',
        ]
        for name in (role.role for role in roles):
            leases = f"sys/leases/lookup/{mount}/creds/{name}/"
            rules += [
                f'path "{mount}/creds/{name}" {{ capabilities = ["read"] }}',
                f'path "{leases}" {{ capabilities = ["list", "sudo"] }}',
            ]
    if rules:
        rules += [
            f'path "{path}" {{ capabilities = ["create", "update"] }}'
            for path in ("sys/leases/lookup", "sys/leases/revoke", "auth/token/create")
        ]
    return "".join(f"{rule}\n" for rule in rules)


def ca_policy(mesh: Mesh) -> str:
    """
    What Consul's CA provider may do in Vault.

    `tune` is needed since Consul 1.11 (hashicorp/consul#14898).
    """
    mounts = [mesh.vault.root_pki_path, *(d.consul.intermediate_pki_path for d in mesh.datacenters)]
    rules = ['path "sys/mounts" { capabilities = ["read", "list"] }']
    for mount in (m.strip("/") for m in mounts):
        rules.append(
            f'path "sys/mounts/{mount}*" {{ capabilities = ["create", "read", "update", "delete", "list"] }}'
        )
        rules.append(
            f'path "{mount}*" {{ capabilities = ["create", "read", "update", "delete", "list", "sudo"] }}'
        )
    rules.append('path "auth/token/lookup-self" { capabilities = ["read"] }')
    rules.append('path "auth/token/renew-self" { capabilities = ["update"] }')
    return "\n".join(rules)


@step("set up vault")
def set_up(connections: Connections, root: SecretStr) -> None:
    """
    Make Vault as declared: mounts, policies, AppRole with its credential stored.

    Mount-then-write goes to the active node: through a standby the write can
    answer 404 `no handler for route`.

    Raises:
        NotConverged: the credential that was stored does not log in.
    """
    mesh = connections.topology
    host = vault.await_active(connections)
    with connections.vault().node(host, token=root) as api:
        _mark(api, mesh, "pending")
        _mounts(api, mesh)
        for name, rules in ((RUNBOOK_POLICY, runbook_policy(mesh)), (CA_POLICY, ca_policy(mesh))):
            _policy(api, name, rules)
        ca_role.ensure(api, mesh)
        _issuer(api, connections)
        _approle(api, connections)


def _issuer(api: Api, connections: Connections) -> None:
    """
    The CA that issues server certificates, imported, and the role that signs them.

    Without a declared `vault.issuing_ca` no certificate can be `issued_by: vault`.
    """
    mesh = connections.topology
    if mesh.vault.issuing_ca is None:
        return
    mount = mesh.vault.pki_mount
    if api.request("LIST", f"/v1/{mount}/issuers", mutates=False).absent:
        kept = connections.store(mesh.vault.issuing_ca).read() or {}
        if not kept.get("certificate") or not kept.get("private_key"):
            raise Absent(
                "the issuing CA's store holds no certificate and private_key",
                where="vault",
                remedy="put both there as PEM, or leave vault.issuing_ca away",
            )
        bundle = f"{kept['private_key'].strip()}\n{kept['certificate'].strip()}\n"
        api.post(f"/v1/{mount}/config/ca", json={"pem_bundle": bundle})
        record.current().change("vault", f"issuing CA imported at {mount}", before="absent")
    role = f"/v1/{mount}/roles/mesh-server"
    if api.get(role).status == 404:
        body = {
            "allow_any_name": True,
            "enforce_hostnames": False,
            "server_flag": True,
            "client_flag": True,
            "key_type": "ec",
            "key_bits": 256,
            "max_ttl": "8760h",
        }
        api.post(role, json=body)
        record.current().change("vault", f"role mesh-server created at {mount}", before="absent")


def _wanted_mounts(mesh: Mesh) -> dict[str, dict[str, Any]]:
    wanted: dict[str, dict[str, Any]] = {
        mesh.vault.kv_mount: {"type": "kv", "options": {"version": "2"}},
        mesh.vault.pki_mount: {"type": "pki", "config": {"max_lease_ttl": "87600h"}},
        # Consul asks for its root without a TTL: the mount's default decides how long it lives.
        mesh.vault.root_pki_path: {
            "type": "pki",
            "config": {"max_lease_ttl": "87600h", "default_lease_ttl": "87600h"},
        },
    }
    for dc in mesh.datacenters:
        wanted[dc.consul.intermediate_pki_path] = {
            "type": "pki",
            "config": {"max_lease_ttl": "8760h", "default_lease_ttl": "8760h"},
        }
    return wanted


def _mounts(api: Api, mesh: Mesh) -> None:
    have = set(api.get("/v1/sys/mounts").json(dict).get("data") or {})
    for path, body in _wanted_mounts(mesh).items():
        mount = path.strip("/")
        if f"{mount}/" not in have:
            api.post(f"/v1/sys/mounts/{mount}", json=body)
            record.current().change("vault", f"mounted {body['type']} at {mount}", before="absent")


def _policy(api: Api, name: str, rules: str) -> None:
    path = f"/v1/sys/policies/acl/{name}"
    found = api.get(path)
    if found.status == 200 and found.json(dict)["data"].get("policy") == rules:
        return
    api.put(path, json={"policy": rules})
    before = "absent" if found.status == 404 else "differs"
    record.current().change("vault", f"policy {name} written", before=before)


def _approle(api: Api, connections: Connections) -> None:
    """
    The AppRole, and a secret id that is stored before Vault learns it.

    A custom secret id makes the order crash-safe: what is stored is either
    valid or can be made so.
    """
    store = connections.store(_credential_holder(connections.topology))
    if "approle/" not in (api.get("/v1/sys/auth").json(dict).get("data") or {}):
        api.post("/v1/sys/auth/approle", json={"type": "approle"})
        record.current().change("vault", "auth method approle enabled", before="absent")
    role = f"/v1/auth/approle/role/{RUNBOOK_ROLE}"
    if api.get(role).status == 404:
        api.post(
            role,
            json={"token_policies": [RUNBOOK_POLICY], "token_ttl": "1h", "token_max_ttl": "4h"},
        )
        record.current().change("vault", f"AppRole {RUNBOOK_ROLE} created", before="absent")
    role_id = str(api.get(f"{role}/role-id").json(dict)["data"]["role_id"])
    found = store.read() or {}
    if found.get("role_id") != role_id or not found.get("secret_id"):
        found = {"role_id": role_id, "secret_id": secrets.token_urlsafe(32)}
        store.write(found)
        record.current().change(
            "vault", f"credential of AppRole {RUNBOOK_ROLE} stored and read back"
        )
    if not _logs_in(api, found):
        api.post(f"{role}/custom-secret-id", json={"secret_id": found["secret_id"]})
        record.current().change("vault", f"secret id of AppRole {RUNBOOK_ROLE} activated")
        if not _logs_in(api, found):
            raise NotConverged("the runbooks' AppRole does not log in", where="vault")


def _credential_holder(mesh: Mesh) -> Any:
    if mesh.vault.credential is None:
        raise BadInput("vault.credential: needed to keep the runbooks' AppRole credential")
    return mesh.vault.credential


def _logs_in(api: Api, credential: dict[str, Any]) -> bool:
    body = {"role_id": credential["role_id"], "secret_id": credential["secret_id"]}
    answer = api.post("/v1/auth/approle/login", json=body, mutates=False, answers=(200, 400, 403))
    return answer.status == 200


def setup_state(api: Api, mesh: Mesh) -> Literal["partial", "done"]:
    """
    Whether the declared set-up is complete, as the runbooks' own credential sees it.

    `finish` says so, with the secret of Consul's CA token.
    """
    have = set(api.get("/v1/sys/mounts").json(dict).get("data") or {})
    if not {f"{path.strip('/')}/" for path in _wanted_mounts(mesh)} <= have:
        return "partial"
    found, _ = read_secret(api, mesh, CA_TOKEN_PATH)
    return "done" if found and found.get("state") == "live" else "partial"


# Secrets of the mesh, in KV v2.


def read_secret(api: Api, mesh: Mesh, path: str) -> tuple[dict[str, Any] | None, int]:
    """A secret's data and version; (None, 0) if there is none, (None, version) if it was deleted."""
    answer = api.get(f"/v1/{mesh.vault.kv_mount}/data/{path}", answers=(404,))
    data = answer.json(dict).get("data")
    if answer.status == 404 and not data:
        return None, 0
    return data.get("data"), int(data["metadata"]["version"])


def write_secret(api: Api, mesh: Mesh, path: str, value: dict[str, Any], version: int) -> None:
    """
    Write a secret if it is still at `version` (0: does not exist), and read it back.

    Raises:
        Invalid: somebody else wrote it meanwhile (check-and-set).
        NotConverged: what was read back differs.
    """
    now, at = read_secret(api, mesh, path)
    if now == value:
        return  # a lost answer: it was written
    api.post(
        f"/v1/{mesh.vault.kv_mount}/data/{path}", json={"data": value, "options": {"cas": version}}
    )
    now, at = read_secret(api, mesh, path)
    if now != value:
        raise NotConverged(f"secret {path} reads back otherwise (version {at})", where="vault")


@step("orphan token for Consul's CA provider")
def ensure_ca_token(connections: Connections, root: SecretStr) -> None:
    """
    The orphan periodic token of Consul's CA provider exists and is stored.

    Orphan, so that it outlives whoever created it. Its id is chosen here (a
    right of root tokens only) and written to Vault first, so that a lost
    answer or a kill leaves no second token behind. One that lived and lives no
    more gets a new id: Vault takes none of its own making, such as a rotation
    stored, and what somebody revoked is not made again.
    """
    mesh = connections.topology
    host = vault.await_active(connections)
    with connections.vault().node(host, token=root) as api:
        found, version = read_secret(api, mesh, CA_TOKEN_PATH)
        if not found:
            found = {"token": secrets.token_urlsafe(32), "state": "pending"}
            write_secret(api, mesh, CA_TOKEN_PATH, found, version)
            record.current().change("vault", "secret of Consul's CA token written", before="absent")
            version += 1
        accessor = _accessor(connections, host, SecretStr(str(found["token"])))
        if not accessor and found.get("accessor"):
            # A rotation's own notes stay: it ends what it has begun.
            found = {**found, "token": secrets.token_urlsafe(32), "state": "pending"}
            del found["accessor"]
            write_secret(api, mesh, CA_TOKEN_PATH, found, version)
            record.current().change(
                "vault", "secret of Consul's CA token written", before="one that lives no more"
            )
            version += 1
        if not accessor:
            made = api.post(
                "/v1/auth/token/create-orphan",
                json={
                    "id": found["token"],
                    "policies": [CA_POLICY],
                    "no_default_policy": True,
                    "period": mesh.vault.ca_token_period,
                    "display_name": "consul-connect-ca",
                },
            ).json(dict)
            accessor = str((made.get("auth") or {}).get("accessor") or "")
            record.current().change(
                "vault", "orphan periodic token for Consul's CA created", after=accessor
            )
        wanted = {**found, "accessor": accessor, "state": "pending"}
        if found != wanted:
            write_secret(api, mesh, CA_TOKEN_PATH, wanted, version)


@step("set-up of vault complete")
def finish(connections: Connections, vault_token: SecretStr) -> None:
    """
    Note that the set-up is complete, by the runbooks' own credential.

    Only once the root token is revoked: nobody looks again for one that a
    killed run left behind in a set-up that counts as complete (B11).
    """
    host = vault.await_active(connections)
    with connections.vault().node(host, token=vault_token) as api:
        _mark(api, connections.topology, "live")


def _mark(api: Api, mesh: Mesh, state: Literal["pending", "live"]) -> None:
    found, version = read_secret(api, mesh, CA_TOKEN_PATH)
    if found and found.get("state") != state:
        write_secret(api, mesh, CA_TOKEN_PATH, {**found, "state": state}, version)


def ca_token(connections: Connections, vault_token: SecretStr) -> SecretStr:
    """
    Consul's CA token, as Vault keeps it.

    Raises:
        Absent: the set-up was never finished.
    """
    host = vault.await_active(connections)
    with connections.vault().node(host, token=vault_token) as api:
        found, _ = read_secret(api, connections.topology, CA_TOKEN_PATH)
    if not found or not found.get("token"):
        raise Absent(
            f"no {CA_TOKEN_PATH} in Vault",
            where="vault",
            remedy="run cold-boot with --set initialise=true to finish the set-up",
        )
    return SecretStr(str(found["token"]))


def _accessor(connections: Connections, host: str, token: SecretStr) -> str:
    """A token's accessor; empty if Vault does not know the token."""
    try:
        with connections.vault().node(host, token=token) as api:
            return str(api.get("/v1/auth/token/lookup-self").json(dict)["data"]["accessor"])
    except Forbidden:
        return ""
