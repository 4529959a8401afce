"""
Every agent's keyring, through Consul's API, and who of them is there to be asked.

One call goes to all agents of all datacenters and of the WAN, through the mesh
gateways, and repeating one changes nothing (Consul 1.8.7). Two things the API
does not say: a member that failed is not counted at all, so that all calls
succeed without it; for the second or two before it counts as failed they
answer 500, `3/4 nodes reported success`.
https://developer.hashicorp.com/consul/api-docs/operator/keyring
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import SecretStr

from blocks.errors import BadAnswer, Invalid, MeshError, Refused, Transient
from tasks.planning.gossip_seen import Pool, Roll, fingerprint
from tasks.token_clients import Clients

if TYPE_CHECKING:
    from blocks.http import Answer

WAN = "WAN"
DEADLINE = 30.0  # Consul asks every member, and waits for those that do not answer
_PATH = "/v1/operator/keyring"
Change = Literal["install", "use", "remove"]
_VERBS: dict[Change, str] = {"install": "POST", "use": "PUT", "remove": "DELETE"}
_STATUS = {0: "none", 1: "alive", 2: "leaving", 3: "left", 4: "failed"}
_LIKE_A_KEY = re.compile(r"[A-Za-z0-9+/]{20,}={0,2}")


def look(clients: Clients) -> tuple[tuple[Pool, ...], dict[str, SecretStr]]:
    """
    Which keys the agents of each pool have and use, and the keys by their fingerprints.

    Raises:
        Transient: an agent did not answer, or a datacenter is out of reach.
        Refused: this Consul does not tell which key is used.
    """
    pools: list[Pool] = []
    keys: dict[str, SecretStr] = {}
    for part in _asked(clients, "GET").json(list):
        try:
            name = WAN if part["WAN"] else str(part["Datacenter"])
            found = {str(k): int(n) for k, n in (part["Keys"] or {}).items()}
            nodes = int(part["NumNodes"])
            primary: Any = part.get("PrimaryKeys")
        except (KeyError, TypeError, ValueError, AttributeError):
            raise BadAnswer(f"GET {_PATH}: not the keyring API's answer", where="consul") from None
        if not isinstance(primary, dict):
            raise Refused(
                f"GET {_PATH} has no PrimaryKeys",
                where=name,
                remedy="nobody can prove that a key is in use there: run a newer Consul",
            )
        keys |= {fingerprint(key): SecretStr(key) for key in found}
        pools.append(Pool(name, nodes, _counted(found), _counted(primary)))
    wanted = {WAN, *(dc.name for dc in clients.mesh.datacenters)}
    if missing := wanted - {pool.name for pool in pools}:
        raise Transient("keyrings are not told", where=", ".join(sorted(missing)))
    return tuple(pools), keys


def _counted(keys: Mapping[str, int]) -> dict[str, int]:
    return {fingerprint(key): int(count) for key, count in keys.items()}


def change(clients: Clients, what: Change, key: SecretStr) -> None:
    """
    Ask every agent to install, use or remove a key.

    Holds afterwards: nothing. Who did is seen by looking.

    Raises:
        Transient: not all agents have done it.
    """
    _asked(clients, _VERBS[what], json={"Key": key.get_secret_value()})


def _asked(clients: Clients, verb: str, **options: Any) -> Answer:
    try:
        return clients.primary.request(verb, _PATH, deadline=DEADLINE, **options)
    except MeshError as error:
        # A bare 500 has a line a node, of those that did not do it. No text was seen to
        # quote a key, but keys are what this API is about.
        kind = Transient if isinstance(error, Invalid) else type(error)
        said = _LIKE_A_KEY.sub("***", error.message)
        raise kind(said, where=error.where, remedy=error.remedy) from None


def roll_call(clients: Clients) -> Roll:
    """
    Who is a living member, of all that are declared, and who else is one.

    Each datacenter's members as a server there sees them, the WAN's likewise.
    One that left is no stranger any more: it is gone and cannot come back
    without joining anew.

    Raises:
        Transient: a datacenter cannot be asked.
    """
    absent: dict[str, str] = {}
    lost: dict[str, str] = {}
    strangers: list[str] = []
    alive: dict[str, int] = {}

    def count(pool: str, declared: Mapping[str, str], members: Mapping[str, str]) -> None:
        """`declared` are hosts by their names as members; `members` their states."""
        alive[pool] = sum(state == "alive" for state in members.values())
        where = "" if pool != WAN else " in the WAN"
        for member, host in declared.items():
            if (state := members.get(member, "no member")) != "alive":
                absent.setdefault(host, state + where)
        for member in sorted(set(members) - set(declared)):
            if members[member] == "alive":
                strangers.append(member)
            elif members[member] != "left":
                lost[member] = members[member] + where

    mesh = clients.mesh
    for dc in mesh.datacenters:
        hosts = mesh.consul_hosts(dc.name)
        count(dc.name, {host: host for host in hosts}, _members(clients, dc.name, {}))
    servers = {f"{h}.{dc.name}": h for dc in mesh.datacenters for h in dc.consul.servers}
    count(WAN, servers, _members(clients, mesh.primary, {"wan": "1"}))
    return Roll(absent, lost, tuple(strangers), alive)


def _members(clients: Clients, datacenter: str, params: Mapping[str, str]) -> dict[str, str]:
    found = clients.consul(datacenter).get("/v1/agent/members", params=params).json(list)
    try:
        return {str(m["Name"]): _STATUS.get(m["Status"], "unknown") for m in found}
    except (KeyError, TypeError):
        raise BadAnswer("GET /v1/agent/members: not its answer", where=datacenter) from None
