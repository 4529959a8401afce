"""
Intentions: declared in the primary, and really there in every datacenter.

Consul before 1.9 keeps each as an entry of its own; `service-intentions`
config entries came with 1.9, whose `/exact` endpoint answers a misleading 403
before.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from blocks.errors import NotConverged
from blocks.topology import Datacenter, Intention
from tasks import consul, record, stopping
from tasks.step import step

if TYPE_CHECKING:
    from blocks.http import Api
    from blocks.mesh import Connections

LIST = "/v1/connect/intentions"
Pair = tuple[str, str]


@step("intentions in {datacenter.name}")
def ensure_declared(connections: Connections, datacenter: Datacenter, token: SecretStr) -> None:
    """
    Make the declared intentions exist in the primary.

    Others, made by hand, are left alone: deny-all is the default either way.
    """
    with _client(connections, datacenter, token) as api:
        have = _by_pair(api.get(LIST).json(list))
        for wanted in connections.topology.intentions:
            found = have.get((wanted.source, wanted.destination))
            before = str(found.get("Action")) if found else "absent"
            if before == wanted.action:
                continue
            _write(connections, api, datacenter, wanted, found)
            record.current().change(
                f"consul {datacenter.name}",
                f"intention {wanted.source} -> {wanted.destination} {wanted.action}",
                before=before,
            )


def _client(connections: Connections, datacenter: Datacenter, token: SecretStr) -> Any:
    address = consul.url(connections, datacenter.consul.servers[0])
    return connections.consul(datacenter.name).client(address, token=token, dc="", deadline=10.0)


def _by_pair(entries: list[dict[str, Any]]) -> dict[Pair, dict[str, Any]]:
    return {(str(e["SourceName"]), str(e["DestinationName"])): e for e in entries}


def _write(
    connections: Connections,
    api: Api,
    datacenter: Datacenter,
    wanted: Intention,
    found: dict[str, Any] | None,
) -> None:
    body = {
        "SourceName": wanted.source,
        "DestinationName": wanted.destination,
        "SourceType": "consul",
        "Action": wanted.action,
    }
    if connections.consul(datacenter.name).version(api).number >= (1, 9, 0):
        api.put(
            f"{LIST}/exact",
            params={"source": wanted.source, "destination": wanted.destination},
            json={"SourceType": "consul", "Action": wanted.action},
        )
    elif found:
        api.put(f"{LIST}/{found['ID']}", json=body)
    else:
        # A repeat after a lost answer is refused as a duplicate; the look above finds it then.
        api.post(LIST, json=body)


def missing_in(
    connections: Connections, primary: Datacenter, secondary: Datacenter, token: SecretStr
) -> list[str]:
    """The primary's intentions that a secondary has not, or has otherwise."""
    there = _by_pair(consul.operator_get(connections, primary, token, LIST) or [])
    here = _by_pair(consul.operator_get(connections, secondary, token, LIST) or [])
    return [
        f"{source} -> {destination}"
        for (source, destination), entry in there.items()
        if (here.get((source, destination)) or {}).get("Action") != entry.get("Action")
    ]


def undeclared_in(connections: Connections, datacenter: Datacenter, token: SecretStr) -> set[Pair]:
    """The declared intentions that a datacenter has not, or has otherwise."""
    here = _by_pair(consul.operator_get(connections, datacenter, token, LIST) or [])
    return {
        (i.source, i.destination)
        for i in connections.topology.intentions
        if (here.get((i.source, i.destination)) or {}).get("Action") != i.action
    }


@step("intentions replicated to {secondary.name}")
def await_replicated(
    connections: Connections,
    primary: Datacenter,
    secondary: Datacenter,
    token: SecretStr,
    *,
    deadline: float = 60.0,
    patience: float = 2.0,
) -> str:
    """
    Wait until a secondary has the primary's intentions; how many there are.

    A secondary whose leader began to replicate before it had its replication
    token waits, up to ten minutes, in a blocking query of an anonymous caller
    that sees no intention (seen on 1.8.7). Only a change of an intention wakes
    it, so after `patience` seconds a declared one is written again unchanged.

    Raises:
        NotConverged: not within `deadline` seconds; what is missing is named.
    """
    began = nudged = time.monotonic()
    while missing := missing_in(connections, primary, secondary, token):
        now = time.monotonic()
        if now - began > deadline:
            raise NotConverged(
                f"intentions missing: {', '.join(missing)}",
                where=secondary.name,
                remedy="does its replication token live, with intentions = read? "
                "restarting its leader begins the replication anew",
            )
        if now - nudged > patience:
            nudged = now
            _wake(connections, primary, token)
        stopping.pause(0.1)
    return f"{len(connections.topology.intentions)} declared"


def _wake(connections: Connections, primary: Datacenter, token: SecretStr) -> None:
    declared = {(i.source, i.destination): i for i in connections.topology.intentions}
    with _client(connections, primary, token) as api:
        for pair, found in _by_pair(api.get(LIST).json(list)).items():
            if pair in declared:
                _write(connections, api, primary, declared[pair], found)
                record.current().change(
                    f"consul {primary.name}",
                    f"intention {pair[0]} -> {pair[1]} written again unchanged, to wake replication",
                    before=str(found.get("Action")),
                )
                return
