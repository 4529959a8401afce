"""
The mark against joins while the gossip key is rotated, in the primary's KV.

A host that is new, or that lost its keyring, starts with the one key of its
configuration. Between `use` and the last configuration written that may be the
old key, with which nobody can join any more (hashicorp/consul#719). An agent
that only starts again has both keys in its keyring and joins at any moment:
whoever starts agents that were members before need not ask.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from tasks import record
from tasks.planning.plan import Refusal
from tasks.step import step
from tasks.token_clients import Clients

if TYPE_CHECKING:
    from pydantic import SecretStr

    from blocks.mesh import Connections

KEY = "mesh-runbooks/gossip-rotation"


class Freeze(NamedTuple):
    """Joins are frozen: since when, and until when at most."""

    since: datetime
    expires: datetime


def look(clients: Clients) -> Freeze | None:
    """The mark, if it stands, expired or not."""
    answer = clients.primary.get(f"/v1/kv/{KEY}", params={"raw": "1"})
    if answer.absent:
        return None
    try:
        found = json.loads(answer.body)
        return Freeze(*(datetime.fromisoformat(found[name]) for name in ("since", "expires")))
    except (KeyError, TypeError, ValueError):
        now = datetime.now(UTC)
        return Freeze(now, now)  # a mark nobody can date has expired


@step("may hosts join {connections.topology.name}")
def joins_frozen(connections: Connections, management: SecretStr) -> Refusal | None:
    """
    Why no host may be added now; None if one may.

    For every runbook that adds hosts: to be asked before the first is made. The
    mark of a rotation that was killed expires by itself; the rotation is then
    still to be ended, and a host that joins needs the key that Vault has.

    Raises:
        MeshError: nobody can say. Then none may be added either.
    """
    with Clients(connections, management) as clients:
        found = look(clients)
    if found is None or found.expires <= datetime.now(UTC):
        return None
    return Refusal(
        f"the gossip key is being rotated since {found.since:%Y-%m-%d %H:%M} UTC: "
        "a host that joins now may have the wrong one",
        "wait for its end; if it was killed, run token-rotation again. The mark expires at "
        f"{found.expires:%H:%M} UTC",
        "gossip",
    )


def mark(clients: Clients, *, lasting: timedelta) -> None:
    """The mark stands for so long from now; one that stood keeps its beginning."""
    now = datetime.now(UTC).replace(microsecond=0)
    before = look(clients)
    since = before.since if before else now
    content = {"since": since.isoformat(), "expires": (now + lasting).isoformat()}
    clients.primary.put(f"/v1/kv/{KEY}", content=json.dumps(content).encode())
    record.current().change(
        f"consul {clients.mesh.primary}", "joins frozen", after=f"until {content['expires']}"
    )


def unmark(clients: Clients) -> None:
    """The mark is gone."""
    if look(clients) is not None:
        clients.primary.delete(f"/v1/kv/{KEY}")
        record.current().change(f"consul {clients.mesh.primary}", "joins free", before="frozen")
