"""Whether a token may what it must, and may not what it must not: tried with itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import SecretStr

from blocks.declared_tokens import Permission, permissions
from blocks.errors import NotConverged, Refused, Transient
from tasks.acl_tokens import as_token
from tasks.token_store import Held
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.declared_tokens import DeclaredToken
    from blocks.http import Api

NEVER = str(2**63 - 1)  # an index that no key has: the write is checked and never carried out
KNOWN_DEADLINE = 30.0


def prove(api: Api, datacenter: str, token: DeclaredToken, held: Held) -> None:
    """
    A datacenter knows a token, allows all its role needs, and denies what it must not.

    Raises:
        Refused: it is allowed or denied otherwise than declared; the line is named.
        NotConverged: the datacenter does not know it within 30 s.
    """
    await_known(api, datacenter, held)
    for lines, wanted in ((token.may, True), (token.may_not, False)):
        for permission in permissions(lines):
            if allowed(api, permission, held.secret) is not wanted:
                has, must = ("denied", "allowed") if wanted else ("allowed", "denied")
                raise Refused(
                    f"token {held.accessor} is {has} `{permission}`, which must be {must}",
                    where=datacenter,
                    remedy=f"correct the policies of {token.role}, or its "
                    f"{'may' if wanted else 'may_not'} in the topology",
                )


def await_known(api: Api, datacenter: str, held: Held) -> None:
    """
    Wait until a datacenter resolves a token to its own accessor.

    Raises:
        NotConverged: not within 30 s.
        Refused: the secret is another token's.
    """

    def known() -> bool:
        answer = api.get("/v1/acl/token/self", headers=as_token(held.secret), answers=(403,))
        if answer.status == 403:
            raise Transient("it is not known there", where=datacenter)
        if answer.json(dict).get("AccessorID") != held.accessor:
            raise Refused(
                f"the secret that Vault has of token {held.accessor} is another token's",
                where=datacenter,
                remedy="delete that secret in Vault: then a new token is issued",
            )
        return True

    wait_until(
        known,
        f"token {held.accessor} to be known",
        deadline=KNOWN_DEADLINE,
        where=datacenter,
        remedy="has ACL replication caught up? /v1/acl/replication says so",
    )


def allowed(api: Api, permission: Permission, secret: SecretStr) -> bool:
    """
    Whether a token is allowed something; nothing is changed by trying.

    Raises:
        NotConverged: it cannot be told: no instance of that service is there.
    """
    headers, name = as_token(secret), permission.name

    def get(path: str) -> bool:
        return api.get(path, headers=headers, answers=(403,)).status != 403

    match permission.resource:
        case "kv read":
            return get(f"/v1/kv/{name}")
        case "kv write":
            answer = api.put(
                f"/v1/kv/{name}",
                params={"cas": NEVER},
                headers=headers,
                content=b"",
                mutates=False,
                answers=(403,),
            )
            return answer.status != 403
        case "service read":
            path = f"/v1/health/service/{name}"
            answer = api.get(path, headers=headers, answers=(403,))
            if answer.status != 403 and answer.json(list):
                return True
            if not api.get(path).json(list):
                raise NotConverged(
                    f"no instance of {name} is there to prove `{permission}` by",
                    where=api.server,
                    remedy="register one, or prove the role by something else",
                )
            return False
        case "leaf sign":
            return get(f"/v1/agent/connect/ca/leaf/{name}")
        case "acl read":
            return get("/v1/acl/policies")
        case "operator read":
            return get("/v1/operator/raft/configuration")
