"""
Vault's Consul secrets engine: its access token, its roles, credentials and their leases.

Raw endpoints, because hvac has not all of their fields
(https://developer.hashicorp.com/vault/api-docs/secret/consul,
https://developer.hashicorp.com/vault/api-docs/system/leases). All take an `Api`
at the engine with a token of Vault.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from blocks.errors import BadAnswer, BadInput, MeshError
from tasks import vault
from tasks.planning.dynamic import Definition
from tasks.planning.minted import Lease
from tasks.token_store import Held

if TYPE_CHECKING:
    from blocks.declared_tokens import DeclaredToken
    from blocks.http import Api
    from blocks.mesh import Connections

# Vault revokes the leases of a token that ends: what a killed run asked for ends by itself.
ASKER_SECONDS = 120
ASKER = "mesh-runbooks-proof"
GONE = "invalid lease"  # what Vault says of a lease that has ended


@contextmanager
def opened(connections: Connections, token: DeclaredToken) -> Iterator[Api]:
    """The engine that a role is of: at its own address, or at Vault's active node."""
    cluster = connections.vault()
    login = cluster.login()
    if not token.engine_address:
        with cluster.node(vault.await_active(connections), token=login) as api:
            yield api
        return
    apart = cluster.model_copy(update={"nodes": {"engine": token.engine_address}})
    with apart.node("engine", token=login) as api:
        yield api


def mounted(api: Api, mount: str) -> str:
    """The type of what Vault has at a mount; empty if there is nothing."""
    found = api.get("/v1/sys/mounts").json(dict).get("data") or {}
    return str((found.get(f"{mount}/") or {}).get("type") or "")


def configured(api: Api, mount: str) -> tuple[str, tuple[str, ...]]:
    """
    How the engine reaches Consul, as URL, and Vault's warnings; empty if it is not configured.

    The token is never given back.
    """
    found = api.get(f"/v1/{mount}/config/access", answers=(404,)).json(dict)
    data = found.get("data") or {}
    url = f"{data.get('scheme') or 'http'}://{data['address']}" if data.get("address") else ""
    return url, tuple(str(line) for line in found.get("warnings") or ())


def configure(connections: Connections, api: Api, mount: str, consul: str, held: Held) -> None:
    """Make the engine reach Consul at this URL, with this token; a repeat changes nothing."""
    scheme, _, address = consul.partition("://")
    block = connections.consul(connections.topology.primary)
    pem = block.ca_pem or (_text(block.ca_file) if block.ca_file else "")
    body = {
        "address": address,
        "scheme": scheme,
        "token": held.secret.get_secret_value(),
        **({"ca_cert": pem} if pem else {}),
    }
    api.post(f"/v1/{mount}/config/access", json=body)


def _text(file: str) -> str:
    try:
        return Path(file).read_text()
    except (OSError, ValueError) as error:
        raise BadInput(f"consul's ca_file {file}: {type(error).__name__}") from None


def definition(api: Api, mount: str, role: str) -> Definition | None:
    """A role as Vault keeps it, None if it has none such."""
    answer = api.get(f"/v1/{mount}/roles/{role}")
    if answer.absent:
        return None
    data = answer.json(dict).get("data") or {}

    def names(*fields: str) -> frozenset[str]:
        # Vault before 1.11 says `policies`.
        return frozenset(str(x) for field in fields for x in data.get(field) or ())

    return Definition(
        names("consul_policies", "policies"),
        names("consul_roles"),
        names("service_identities"),
        names("node_identities"),
        bool(data.get("local")),
        int(data.get("ttl") or 0),
        int(data.get("max_ttl") or 0),
    )


def define(api: Api, mount: str, role: str, wanted: Definition) -> None:
    """Make Vault keep a role as it is declared."""
    body: dict[str, Any] = {
        "consul_policies": sorted(wanted.policies),
        "consul_roles": sorted(wanted.roles),
        "service_identities": sorted(wanted.services),
        "node_identities": sorted(wanted.nodes),
        "local": wanted.local,
        "ttl": wanted.ttl,
        "max_ttl": wanted.max_ttl,
    }
    api.post(f"/v1/{mount}/roles/{role}", json=body)


def leases(api: Api, mount: str, role: str) -> tuple[Lease, ...]:
    """
    Every lease of a role, the oldest first.

    Listing needs `sudo` in Vault. A lease that ends meanwhile is left out.
    """
    prefix = f"{mount}/creds/{role}"
    answer = api.request("LIST", f"/v1/sys/leases/lookup/{prefix}", mutates=False)
    if answer.absent:
        return ()
    ids = [f"{prefix}/{key}" for key in answer.json(dict)["data"]["keys"]]
    return tuple(sorted((x for id_ in ids if (x := lease(api, id_))), key=lambda x: x.issued))


def lease(api: Api, id_: str) -> Lease | None:
    """One lease, None if it has ended."""
    body = {"lease_id": id_}
    answer = api.put("/v1/sys/leases/lookup", json=body, mutates=False, answers=(400,))
    if answer.status == 400 and GONE in answer.text:
        return None
    data = answer.json(dict).get("data") or {}
    try:
        return Lease(id_, datetime.fromisoformat(data["issue_time"]))
    except (KeyError, TypeError, ValueError):
        raise BadAnswer(f"{answer.what}: this is no lease", where=api.server) from None


def end(api: Api, id_: str) -> None:
    """Make a lease end, and its token with it, before Vault answers; one that has ended is fine."""
    body = {"lease_id": id_, "sync": True}
    answer = api.put("/v1/sys/leases/revoke", json=body, answers=(400,))
    if answer.status == 400 and GONE not in answer.text:
        raise BadAnswer(f"{answer.what}: the lease was not revoked", where=api.server)


@contextmanager
def credential(api: Api, mount: str, role: str) -> Iterator[Held]:
    """
    A fresh credential of a role for the length of a `with`; it is given back at the end.

    Which lease is whose cannot be asked of Vault. So it is asked for with a token
    made for this alone, whose end is the end of all its leases: of one whose
    answer was lost too, and after a kill when that token's two minutes are over.
    """
    asker = _asker(api)
    try:
        yield issued(api, mount, role, headers=asker)
    except BaseException:
        with suppress(MeshError):  # what went wrong first is told; the asker ends by itself
            _dismiss(api, asker)
        raise
    _dismiss(api, asker)


def issued(api: Api, mount: str, role: str, headers: dict[str, str] | None = None) -> Held:
    """A new credential of a role, under a lease that ends by itself."""
    # A read that makes something.
    path = f"/v1/{mount}/creds/{role}"
    answer = api.get(path, headers=headers, mutates=True, absent_ok=False)
    data = answer.json(dict).get("data") or {}
    accessor, token = data.get("accessor"), data.get("token")
    if not isinstance(accessor, str) or not isinstance(token, str) or not token:
        raise BadAnswer(f"{answer.what}: it gives no token", where=api.server)
    return Held(accessor, SecretStr(token))


def _asker(api: Api) -> dict[str, str]:
    body = {
        "ttl": f"{ASKER_SECONDS}s",
        "explicit_max_ttl": f"{ASKER_SECONDS}s",
        "renewable": False,
        "display_name": ASKER,
    }
    answer = api.post("/v1/auth/token/create", json=body)
    token = (answer.json(dict).get("auth") or {}).get("client_token")
    if not isinstance(token, str) or not token:
        raise BadAnswer(f"{answer.what}: it gives no token", where=api.server)
    return {"X-Vault-Token": token}


def _dismiss(api: Api, asker: dict[str, str]) -> None:
    api.post("/v1/auth/token/revoke-self", headers=asker, answers=(403,))
