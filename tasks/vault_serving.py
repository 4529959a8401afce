"""Whether Vault serves while a runbook works: waited for as long as it may come back by itself."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from blocks.errors import MeshError, NoLeader
from tasks import stopping, vault

if TYPE_CHECKING:
    from blocks.mesh import Connections

# An active node that dies is followed by another in 2 to 3 s; a node that unseals
# itself is sealed for a moment too. Only a person ends a seal that lasts.
SEALED_SECONDS = 4.0
GONE_SECONDS = 30.0
EVERY = 0.25


class Serving:
    """One cluster as it is seen again and again."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._gone = 0.0  # since when it has no active node

    def host(self) -> str | None:
        """
        The host of the active node; None while one may still come back by itself.

        Raises:
            NoLeader: it is sealed, or gone for longer than an election takes.
        """
        try:
            host = self._connections.vault().active()
        except MeshError:
            host = None  # said below, once it is sure
        if host is not None:
            self._gone = 0.0
            return host
        now = time.monotonic()
        self._gone = self._gone or now
        nodes = vault.look_at_all(self._connections)
        states = {node.state for node in nodes}
        sealed = states == {"sealed"}
        if now - self._gone < (SEALED_SECONDS if sealed else GONE_SECONDS):
            return None
        seen = "sealed" if sealed else ", ".join(f"{n.host} is {n.state}" for n in nodes)
        error = NoLeader(
            f"Vault does not serve any more: {seen}",
            where="vault",
            remedy="run cold-boot, which unseals it; then run this again: it carries on from here",
        )
        error.repeated = True  # it was waited for, and each repetition would wait as long
        raise error


def active(connections: Connections) -> str:
    """
    The host of the active node, waited for.

    Raises:
        NoLeader: there is none, and it does not come back by itself.
        Stopped: the run is to stop.
    """
    serving = Serving(connections)
    while (host := serving.host()) is None:
        stopping.pause(EVERY)
    return host
