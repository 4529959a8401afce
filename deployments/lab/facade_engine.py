"""
A stand-in for Vault's Consul secrets engine, which OpenBao has not.

It mints real Consul tokens with the access token it was configured with, under
leases that end: by their time, by being revoked, or with the token of Vault
that asked. A lease is on the disk before its token exists, so that a kill in
between leaves nothing that nobody ends.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import ssl
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from deployments.lab.facade_store import Store

MOUNT = "consul"
DEFAULT_SECONDS = 768 * 3600  # Vault's own
CONSUL_SECONDS = 10.0
PENDING_SECONDS = 30.0  # a lease whose token was never confirmed is ended after that
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class Refused(Exception):
    """What the engine answers instead: a status, and why."""

    def __init__(self, status: int, why: str = "") -> None:
        super().__init__(why)
        self.status = status
        self.errors = [why] if why else []


@dataclass(frozen=True)
class Asker:
    """The token of Vault that asks for a credential."""

    accessor: str
    name: str
    ends: float | None  # a moment; None if it never does


class Engine:
    """The engine at one mount; safe to use from many threads."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # Configuration and roles.

    def configure(self, body: dict[str, Any]) -> None:
        """Reach Consul in this way from now on."""
        if not body.get("address") or not body.get("token"):
            raise Refused(400, "address and token are needed; the facade bootstraps no ACLs")
        with self._store.change() as kept:
            known = ("address", "scheme", "token", "ca_cert")
            kept["config"] = {key: body[key] for key in known if body.get(key)}

    def configuration(self) -> dict[str, Any] | None:
        """How Consul is reached, without the token."""
        config = self._store.read()["config"]
        if not config:
            return None
        return {"address": config["address"], "scheme": config.get("scheme", "http")}

    def define(self, role: str, body: dict[str, Any]) -> None:
        """Keep a role, in place of one that is there."""
        lists = ("consul_policies", "consul_roles", "service_identities", "node_identities")
        role_kept: dict[str, Any] = {key: _names(body.get(key)) for key in lists}
        if not any(role_kept.values()):
            raise Refused(400, f"a role needs one of {', '.join(lists)}")
        role_kept |= {
            "local": body.get("local") in {True, "true"},
            "ttl": _seconds(body.get("ttl")),
            "max_ttl": _seconds(body.get("max_ttl")),
        }
        with self._store.change() as kept:
            kept["roles"][role] = role_kept

    def role(self, name: str) -> dict[str, Any] | None:
        """A role as it is kept; as with Vault, empty lists are left out."""
        found = self._store.read()["roles"].get(name)
        if found is None:
            return None
        said = {key: value for key, value in found.items() if value != []}
        return said | {"lease": found["ttl"], "token_type": "client"}

    def roles(self) -> list[str]:
        """The names of all roles."""
        return sorted(self._store.read()["roles"])

    def undefine(self, role: str) -> None:
        """Keep a role no more; its leases live on."""
        with self._store.change() as kept:
            kept["roles"].pop(role, None)

    # Credentials and leases.

    def mint(self, role: str, asker: Asker) -> dict[str, Any]:
        """A new Consul token of a role with its lease, as Vault's API gives it."""
        kept = self._store.read()
        if (wanted := kept["roles"].get(role)) is None:
            raise Refused(400, f'role "{role}" not found')
        if not kept["config"]:
            raise Refused(400, "the engine's access to Consul is not configured")
        now = time.time()
        ttl, most = wanted["ttl"] or DEFAULT_SECONDS, wanted["max_ttl"] or DEFAULT_SECONDS
        accessor, secret = str(uuid.uuid4()), str(uuid.uuid4())
        id_ = f"{MOUNT}/creds/{role}/{uuid.uuid4().hex[:24]}"
        lease: dict[str, Any] = {"role": role, "accessor": accessor, "asker": asker.accessor}
        lease |= {"asker_ends": asker.ends, "issued": now, "ends": now + min(ttl, most)}
        lease |= {"last": now + most, "pending": True}
        with self._store.change() as changed:
            changed["leases"][id_] = lease
        body = _token(wanted, f"Vault {role} {asker.name} {time.time_ns()}")
        ids = {"AccessorID": accessor, "SecretID": secret}
        try:
            self._ask("PUT", "/v1/acl/token", body | ids)
        except Refused:
            with contextlib.suppress(Refused):
                self.revoke([id_])
            raise
        with self._store.change() as changed:
            if id_ not in changed["leases"]:
                raise Refused(500, "the lease was revoked meanwhile")
            changed["leases"][id_]["pending"] = False
        data = {"accessor": accessor, "token": secret, "local": wanted["local"]}
        return {
            "lease_id": id_,
            "renewable": True,
            "lease_duration": min(ttl, most),
            "data": data | {"consul_namespace": "", "partition": ""},
        }

    def lookup(self, id_: str) -> dict[str, Any]:
        """A lease as Vault shows it."""
        lease = self._lease(id_)
        return {
            "id": id_,
            "issue_time": _moment(lease["issued"]),
            "expire_time": _moment(lease["ends"]),
            "last_renewal": _moment(lease["renewed"]) if "renewed" in lease else None,
            "renewable": True,
            "ttl": max(0, int(lease["ends"] - time.time())),
        }

    def listed(self, prefix: str) -> list[str]:
        """What follows a prefix in the ids of leases, one level down."""
        prefix = prefix.rstrip("/") + "/"
        rest = (i[len(prefix) :] for i in self._store.read()["leases"] if i.startswith(prefix))
        return sorted({name if not more else f"{name}/" for name, _, more in map(_split, rest)})

    def renew(self, id_: str) -> dict[str, Any]:
        """A lease for another while, never beyond its role's `max_ttl` since it was issued."""
        self._lease(id_)
        with self._store.change() as kept:
            lease = kept["leases"].get(id_)
            if lease is None:
                raise Refused(400, "invalid lease")
            ttl = kept["roles"].get(lease["role"], {}).get("ttl") or DEFAULT_SECONDS
            lease["renewed"] = time.time()
            lease["ends"] = min(time.time() + ttl, lease["last"])
            left = int(lease["ends"] - time.time())
        return {"lease_id": id_, "renewable": True, "lease_duration": left}

    def revoke(self, ids: Iterable[str]) -> None:
        """End leases and their tokens; one that Consul does not let go of stays."""
        for id_ in list(ids):
            lease = self._store.read()["leases"].get(id_)
            if lease is None:
                continue
            self._ask("DELETE", f"/v1/acl/token/{quote(lease['accessor'])}", gone=True)
            with self._store.change() as kept:
                kept["leases"].pop(id_, None)

    def revoke_prefix(self, prefix: str) -> None:
        """End all leases whose id begins so."""
        self.revoke(self._where(lambda id_, _: id_.startswith(prefix.rstrip("/") + "/")))

    def revoke_of(self, asker: str) -> None:
        """End all leases that a token of Vault asked for; where Consul is away, as soon as it is back."""
        ids = self._where(lambda _, lease: lease["asker"] == asker)
        if not ids:
            return
        with self._store.change() as kept:
            for id_ in ids:
                if id_ in kept["leases"]:
                    kept["leases"][id_]["asker_ends"] = time.time()
        with contextlib.suppress(Refused):
            self.revoke(ids)

    def expire(self) -> None:
        """End what is over."""
        now = time.time()

        def over(_id: str, lease: dict[str, Any]) -> bool:
            orphan = lease["asker_ends"] is not None and lease["asker_ends"] <= now
            lost = lease["pending"] and lease["issued"] + PENDING_SECONDS <= now
            return bool(lease["ends"] <= now or orphan or lost)

        for id_ in self._where(over):
            with contextlib.suppress(Refused):  # Consul is away: again at the next look
                self.revoke([id_])

    def _where(self, wanted: Callable[[str, dict[str, Any]], bool]) -> list[str]:
        return [i for i, lease in self._store.read()["leases"].items() if wanted(i, lease)]

    def _lease(self, id_: str) -> dict[str, Any]:
        lease: dict[str, Any] | None = self._store.read()["leases"].get(id_)
        if lease is None or lease["ends"] <= time.time():
            raise Refused(400, "invalid lease")
        return lease

    def _ask(
        self, verb: str, path: str, body: dict[str, Any] | None = None, *, gone: bool = False
    ) -> None:
        """Have Consul do something; `gone`: that there is no such token is fine."""
        config = self._store.read()["config"]
        connection = _connection(config)
        try:
            content = json.dumps(body) if body is not None else None
            connection.request(verb, path, content, {"X-Consul-Token": config.get("token", "")})
            answer = connection.getresponse()
            said = answer.read().decode(errors="replace").strip()
        except (OSError, http.client.HTTPException) as error:
            why = "i/o timeout" if isinstance(error, TimeoutError) else str(error).lower()
            raise Refused(500, f"dial tcp {config.get('address')}: {why}") from None
        finally:
            connection.close()
        if answer.status >= 300:
            # Of the token to be deleted, not of the engine's own: that one is looked at.
            if gone and "ACL not found" in said and self._is_known():
                return
            raise Refused(500, f"Unexpected response code: {answer.status} ({said})")

    def _is_known(self) -> bool:
        try:
            self._ask("GET", "/v1/acl/token/self")
        except Refused:
            return False
        return True


def _connection(config: dict[str, Any]) -> http.client.HTTPConnection:
    address = config.get("address", "")
    if config.get("scheme", "http") == "http":
        return http.client.HTTPConnection(address, timeout=CONSUL_SECONDS)
    context = ssl.create_default_context(cadata=config.get("ca_cert"))
    return http.client.HTTPSConnection(address, timeout=CONSUL_SECONDS, context=context)


def _token(role: dict[str, Any], description: str) -> dict[str, Any]:
    services = [text.partition(":")[::2] for text in role["service_identities"]]
    return {
        "Description": description,
        "Local": role["local"],
        "Policies": [{"Name": name} for name in role["consul_policies"]],
        "Roles": [{"Name": name} for name in role["consul_roles"]],
        "ServiceIdentities": [
            {"ServiceName": name, **({"Datacenters": dcs.split(",")} if dcs else {})}
            for name, dcs in services
        ],
        "NodeIdentities": [
            dict(zip(("NodeName", "Datacenter"), text.split(":"), strict=True))
            for text in role["node_identities"]
        ],
    }


def _names(value: Any) -> list[str]:
    return value.split(",") if isinstance(value, str) and value else list(value or ())


def _seconds(value: Any) -> int:
    match = re.fullmatch(r"(\d+)([smhd]?)", str(value or 0))
    if match is None:
        raise Refused(400, "a time to live is a number of seconds, or such as 30m")
    return int(match[1]) * _UNITS[match[2]]


def _split(rest: str) -> tuple[str, str, str]:
    return rest.partition("/")


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
