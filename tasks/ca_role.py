"""Vault's token role for Consul's CA provider: what a rotation may create tokens by, without root."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blocks.topology import seconds
from tasks import record
from tasks.planning.plan import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blocks.http import Api
    from blocks.topology import Mesh

NAME = "consul-connect-ca"  # of the role, and of the one policy that its tokens have
ROLE = f"auth/token/roles/{NAME}"
CREATE = f"auth/token/create/{NAME}"
ACCESSORS = "auth/token/accessors"
# What a rotation needs beside the rest of the runbooks' policy. Accessors are listed only where the
# answer to a creation was lost; Vault wants `sudo` for it.
RULES = f"""path "{CREATE}" {{ capabilities = ["create", "update"] }}
path "{ROLE}" {{ capabilities = ["read"] }}
path "{ACCESSORS}" {{ capabilities = ["list", "sudo"] }}
"""
GUIDE = "see docs/token-rotation.md, `A mesh set up before`"


def wanted(mesh: Mesh) -> dict[str, Any]:
    """The role as declared: orphans that live by being renewed, with the one policy."""
    return {
        "allowed_policies": [NAME],
        "orphan": True,
        "renewable": True,
        "token_period": seconds(mesh.vault.ca_token_period),
        "token_no_default_policy": True,
    }


def ensure(api: Api, mesh: Mesh) -> None:
    """The role is as declared; `api` speaks with a root token."""
    found = api.get(f"/v1/{ROLE}")
    if found.status == 200 and not _differs(found.json(dict).get("data") or {}, mesh):
        return
    api.post(f"/v1/{ROLE}", json=wanted(mesh))
    before = "absent" if found.status == 404 else "differs"
    record.current().change("vault", f"token role {NAME} written", before=before)


def _differs(found: dict[str, Any], mesh: Mesh) -> list[str]:
    return [name for name, value in wanted(mesh).items() if found.get(name) != value]


def missing(api: Api, mesh: Mesh) -> Iterator[Refusal]:
    """What a Vault that was set up before lacks for a rotation, in one line; `api` is the runbooks'."""
    needed = {CREATE: "update", ROLE: "read", f"{ACCESSORS}/": "list"}
    # Had by every mesh; without them a token that lives would be taken for one that does not.
    needed |= {"auth/token/lookup-accessor": "update", "auth/token/revoke-accessor": "update"}
    answer = api.put(
        "/v1/sys/capabilities-self",
        json={"paths": list(needed)},
        mutates=False,
        absent_ok=False,
        answers=(403,),
    )
    have = (answer.json(dict).get("data") or {}) if answer.status == 200 else {}
    lacks = [
        path.rstrip("/")
        for path, capability in needed.items()
        if not {capability, "root"} & set(have.get(path) or [])
    ]
    if lacks:
        yield Refusal(
            f"the runbooks' policy in Vault lacks {', '.join(lacks)}",
            f"add them to the policy mesh-runbooks; {GUIDE}",
            "vault",
        )
        return
    found = api.get(f"/v1/{ROLE}")
    if found.status != 200:
        yield Refusal(f"Vault has no token role {NAME}", f"write it; {GUIDE}", "vault")
    elif differs := _differs(found.json(dict).get("data") or {}, mesh):
        yield Refusal(
            f"Vault's token role {NAME} has other {', '.join(differs)} than declared",
            f"write it anew; {GUIDE}",
            "vault",
        )
