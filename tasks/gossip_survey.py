"""Looking at the gossip key: in Vault, in every keyring, on every disk; nothing is changed."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from pydantic import SecretStr

from blocks.errors import MeshError, Transient
from tasks import gossip_disks, gossip_freeze, gossip_ring, gossip_store, stopping
from tasks.gossip_store import Document
from tasks.planning.gossip_seen import GossipSeen, Pool, Roll
from tasks.step import step
from tasks.token_clients import Clients

if TYPE_CHECKING:
    from blocks.declared_tokens import DeclaredToken
    from blocks.mesh import Connections


PATIENCE = 3.0  # seconds; an agent that is busy, or was started just now, counts as failed at first


class Seen(NamedTuple):
    """What was seen: for the plan, and with Vault's keys for the steps."""

    gossip: GossipSeen
    document: Document


@step("survey of the gossip key")
def look(connections: Connections, token: DeclaredToken, management: SecretStr) -> Seen:
    """
    What Vault, every agent and every disk have of the gossip key.

    Raises:
        Transient: agents come or go at this moment.
    """
    document, unreadable = Document(), ""
    with Clients(connections, management) as clients:
        try:
            document = gossip_store.read(clients.vault, clients.mesh, token.path)
        except Transient:
            raise
        except MeshError as error:
            unreadable = error.message
        roll, pools, _ = agents(clients)
        ends = time.monotonic() + PATIENCE
        while not roll.whole and time.monotonic() < ends:
            stopping.pause(0.3)
            roll, pools, _ = agents(clients)
        frozen = gossip_freeze.look(clients) is not None
    current = document.slots.current
    seen = GossipSeen(
        datetime.now(UTC),
        document.fingerprints,
        current and current.since,
        unreadable,
        roll,
        pools,
        gossip_disks.look(connections),
        frozen,
    )
    return Seen(seen, document)


def agents(clients: Clients) -> tuple[Roll, tuple[Pool, ...], dict[str, SecretStr]]:
    """
    Who is there, what all of them have, and the keys; no keyrings if one is absent and none are told.

    Raises:
        Transient: the keyrings are of others than those who are there.
    """
    roll = gossip_ring.roll_call(clients)
    try:
        pools, keys = gossip_ring.look(clients)
    except Transient:
        if roll.whole:
            raise
        return roll, (), {}
    if roll.whole and (differ := [p.name for p in pools if p.nodes != roll.alive.get(p.name)]):
        raise Transient("agents come or go at this moment", where=", ".join(differ))
    return roll, pools, keys
