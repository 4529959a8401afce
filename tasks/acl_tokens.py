"""
Single ACL tokens in Consul: listed as a whole, created with ids chosen before, disarmed, revoked.

All take an `Api` with the management token; secrets go in bodies and headers
only.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from blocks.errors import BadAnswer, Forbidden, Invalid, Refused
from tasks.planning.tokens_seen import ANONYMOUS, Grants, TokenSeen, declared_grants, described
from tasks.token_store import Held

if TYPE_CHECKING:
    from blocks.declared_tokens import DeclaredToken
    from blocks.http import Answer, Api
    from blocks.topology import Mesh

GLOBAL_MANAGEMENT = "00000000-0000-0000-0000-000000000001"
GRANTS = ("Policies", "Roles", "ServiceIdentities", "NodeIdentities")


def as_token(secret: SecretStr) -> dict[str, str]:
    """Headers of a request that is made with another token than its client's."""
    return {"X-Consul-Token": secret.get_secret_value()}


def own_accessor(api: Api) -> str:
    """
    The accessor of the token that `api` itself speaks with.

    Raises:
        Forbidden: Consul does not know it.
    """
    return str(api.get("/v1/acl/token/self").json(dict)["AccessorID"])


def filtered(answer: Answer) -> bool:
    """Whether Consul left things out that its caller may not see; it says so from 1.11 on."""
    return answer.headers.get("x-consul-results-filtered-by-acls", "").lower() == "true"


def listed(api: Api, own: str) -> dict[str, TokenSeen]:
    """
    Every token of a datacenter by its accessor.

    Raises:
        Refused: the list is not whole: filtered, or without the token it was asked for with.
        BadAnswer: an entry is not the API's.
    """
    answer = api.get("/v1/acl/tokens", params={"consistent": "1"})
    try:
        found = {str(entry["AccessorID"]): _seen(entry) for entry in answer.json(list)}
    except (KeyError, TypeError, ValueError):
        raise BadAnswer(f"{answer.what}: an entry is no token", where=api.server) from None
    if filtered(answer) or not {own, ANONYMOUS} <= found.keys():
        raise Refused(
            "the list of tokens is not whole",
            where=api.server,
            remedy="the runbooks' token needs acl = write; what is not seen would be taken for gone",
        )
    return found


def grants(entry: dict[str, Any]) -> Grants:
    """What a token may, from its entry in the API or from a body that would create it."""

    def names(field: str) -> frozenset[str]:
        return frozenset(str(link["Name"]) for link in entry.get(field) or [])

    def service(identity: dict[str, Any]) -> str:
        limited = " ".join(sorted(identity.get("Datacenters") or []))
        return f"{identity['ServiceName']} in {limited}" if limited else identity["ServiceName"]

    return Grants(
        names("Policies"),
        names("Roles"),
        frozenset(service(i) for i in entry.get("ServiceIdentities") or []),
        frozenset(
            f"{i['NodeName']} in {i['Datacenter']}" for i in entry.get("NodeIdentities") or []
        ),
    )


def manages(entry: dict[str, Any]) -> bool:
    """Whether a token or role has the policy `global-management` itself; it may be renamed."""
    return any(link.get("ID") == GLOBAL_MANAGEMENT for link in entry.get("Policies") or [])


def _seen(entry: dict[str, Any]) -> TokenSeen:
    expires = entry.get("ExpirationTime")
    return TokenSeen(
        entry["AccessorID"],
        str(entry.get("Description") or ""),
        grants(entry),
        datetime.fromisoformat(entry["CreateTime"]),
        bool(entry.get("Local")),
        datetime.fromisoformat(expires) if expires else None,
        bool(entry.get("Legacy")),
        manages(entry),
    )


def declared_body(mesh: Mesh, token: DeclaredToken) -> dict[str, Any]:
    """A role's token as Consul's API takes it, without ids."""
    return {
        "Description": described(token),
        "Local": token.local,
        "Policies": [{"Name": name} for name in token.policies],
        "Roles": [{"Name": name} for name in token.roles],
        "ServiceIdentities": [{"ServiceName": name} for name in token.service_identities],
        "NodeIdentities": [
            {"NodeName": name, "Datacenter": mesh.datacenter_of(name).name}
            for name in token.node_identities
        ],
    }


def lookup(api: Api, accessor: str) -> dict[str, Any] | None:
    """A token by its accessor without its secret, None if there is none."""
    try:
        answer = api.get(f"/v1/acl/token/{accessor}")
    except Forbidden as error:
        # Consul 1.8 answers 403 `ACL not found` for an accessor that does not exist.
        if "ACL not found" in str(error):
            return None
        raise
    return None if answer.absent else _without_secret(answer.json(dict))


def create(api: Api, mesh: Mesh, token: DeclaredToken, held: Held) -> int:
    """
    Make a role's token exist with exactly these ids, as declared; its index.

    A repeat, whose answer was lost or whose run was killed, finds it there.

    Raises:
        Invalid: Consul refuses it; nothing was created.
    """
    ids = {"AccessorID": held.accessor, "SecretID": held.secret.get_secret_value()}
    try:
        made = api.put("/v1/acl/token", json=ids | declared_body(mesh, token)).json(dict)
    except Invalid as error:
        if "already in use" not in str(error) or (found := lookup(api, held.accessor)) is None:
            raise
        if _seen(found).grants != declared_grants(mesh, token):
            return change(api, held.accessor, declared_body(mesh, token))
        made = found
    return int(made["ModifyIndex"])


def change(api: Api, accessor: str, body: dict[str, Any]) -> int:
    """Make a token grant what `body` says, and only that; its index. Its secret stays."""
    made = api.put(f"/v1/acl/token/{accessor}", json={"AccessorID": accessor} | body).json(dict)
    return int(made["ModifyIndex"])


def image(api: Api, accessor: str) -> dict[str, Any] | None:
    """
    What a token grants, as `change` takes it to make it so again.

    None if it is gone or grants nothing.
    """
    if (found := lookup(api, accessor)) is None:
        return None
    kept: dict[str, Any] = {key: found.get(key) or [] for key in GRANTS}
    if not any(kept.values()):
        return None
    return kept | {
        "Description": str(found.get("Description") or ""),
        "Local": bool(found.get("Local")),
    }


def disarm(api: Api, accessor: str, before: dict[str, Any]) -> int:
    """Make a token grant nothing, of which `before` is the image; its index."""
    return change(api, accessor, before | {key: [] for key in GRANTS})


def revoke(api: Api, accessor: str) -> None:
    """Make a token exist no more."""
    try:
        api.delete(f"/v1/acl/token/{accessor}")
    except Forbidden as error:
        if "ACL not found" not in str(error):
            raise


def is_refused(api: Api, secret: SecretStr) -> bool:
    """Whether a datacenter answers 403 to a token."""
    return api.get("/v1/acl/token/self", headers=as_token(secret), answers=(403,)).status == 403


def _without_secret(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "SecretID"}
