"""Looking at Consul's CA token: in Vault, in every datacenter, in servers' files; nothing is changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from pydantic import SecretStr

from blocks.errors import BadAnswer, MeshError, Refused
from blocks.topology import seconds
from tasks import ca_files, ca_role, ca_store, connect_ca
from tasks.ca_store import CaDocument, CaHeld
from tasks.planning.ca_rotation import Authority, CaTokensSeen, FileSeen, Which
from tasks.planning.plan import Refusal
from tasks.planning.tokens_seen import Slots
from tasks.step import fan_out, step
from tasks.token_clients import Clients

if TYPE_CHECKING:
    from typing import Any

    from blocks.http import Api
    from blocks.mesh import Connections
    from blocks.topology import Datacenter, Mesh

# What Vault and OpenBao answer to an accessor that they do not know.
UNKNOWN = (400, 403, 404)


class Seen(NamedTuple):
    """What was seen: for the plan, and with the secrets for the steps."""

    tokens: CaTokensSeen
    document: CaDocument


@step("survey of Consul's CA token")
def look(connections: Connections, management: SecretStr) -> Seen:
    """What Vault keeps of the token, which of those live, and who has which."""
    mesh = connections.topology
    with Clients(connections, management) as clients:
        document, problems = _document(clients.vault, mesh)
        problems = problems or tuple(ca_role.missing(clients.vault, mesh))
        # Without the right to look them up every token would seem dead.
        found = {a: lookup(clients.vault, a) for a in document.accessors if a and not problems}
        versions = {
            dc.name: connections.consul(dc.name).version(clients.consul(dc.name)).number
            for dc in mesh.datacenters
        }
    authorities = fan_out(
        lambda dc: _authority(connections, dc, management, document.slots), mesh.datacenters
    )
    places = files(mesh)
    seen = fan_out(lambda place: _file(connections, *place, document.slots), places)
    tokens = CaTokensSeen(
        datetime.now(UTC),
        document.accessors,
        document.complete,
        {a: datetime.fromtimestamp(int(t["creation_time"]), UTC) for a, t in found.items() if t},
        {dc.name: a for dc, a in zip(mesh.datacenters, authorities, strict=True)},
        {host: file for (host, _), file in zip(places, seen, strict=True)},
        versions,
        timedelta(seconds=seconds(mesh.vault.ca_token_period)),
        problems,
    )
    return Seen(tokens, document)


def _document(api: Api, mesh: Mesh) -> tuple[CaDocument, tuple[Refusal, ...]]:
    try:
        return ca_store.read(api, mesh), ()
    except Refused as error:
        return CaDocument(), (Refusal(error.message, error.remedy, "vault"),)


def files(mesh: Mesh) -> list[tuple[str, str]]:
    """Every server that may have a CA configuration in a file, with its path."""
    return [
        (host, dc.consul.ca_config_file)
        for dc in mesh.datacenters
        if dc.consul.ca_config_file
        for host in dc.consul.servers
    ]


def lookup(api: Api, accessor: str) -> dict[str, Any] | None:
    """What Vault knows of a token; None if it lives no more."""
    answer = api.post(
        "/v1/auth/token/lookup-accessor",
        json={"accessor": accessor},
        mutates=False,
        answers=UNKNOWN,
    )
    if answer.status in UNKNOWN:
        return None
    data = answer.json(dict).get("data")
    if not isinstance(data, dict) or "creation_time" not in data:
        raise BadAnswer(f"{answer.what}: the answer is about no token", where=api.server)
    return data


def _authority(
    connections: Connections, dc: Datacenter, management: SecretStr, slots: Slots[CaHeld]
) -> Authority:
    provider, config = connect_ca.configuration(connections, dc, management)
    held = str(config.get("Token") or connect_ca.HIDDEN)
    return Authority(provider, "hidden" if held == connect_ca.HIDDEN else _which(held, slots))


def _file(connections: Connections, host: str, path: str, slots: Slots[CaHeld]) -> FileSeen:
    try:
        held = ca_files.token(connections, host, path)
    except MeshError as error:
        return FileSeen(error=error.message)
    return FileSeen(_which(held.get_secret_value(), slots)) if held else FileSeen()


def _which(token: str, slots: Slots[CaHeld]) -> Which:
    names: tuple[Which, ...] = ("current", "pending", "previous")
    for name, held in zip(names, (slots.current, slots.pending, slots.previous), strict=True):
        if held and held.secret and held.secret.get_secret_value() == token:
            return name
    return "other"
