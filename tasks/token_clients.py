"""
What the workers of a token rotation speak through: Vault's active node, a server a datacenter.

Each worker has clients of its own, and hands them on to whoever works next: what
a step costs for one role would else be mostly handshakes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

from pydantic import SecretStr

from blocks.errors import NoLeader
from tasks import consul, vault

if TYPE_CHECKING:
    from blocks.http import Api
    from blocks.mesh import Connections

# After that, who leads is looked at anew, and a login that nears its end renewed.
KEEP_SECONDS = 30.0


class Clients:
    """
    The clients of one worker, each opened when it is first needed and kept.

    One client a worker: a connection that many share costs several times the
    throughput. Where Vault is active and which Consul server answers is looked
    at anew, so that a repeated step goes to those that live.
    """

    def __init__(self, connections: Connections, management: SecretStr) -> None:
        self.connections, self.mesh = connections, connections.topology
        self._management = management
        self.opened = self.began = time.monotonic()
        self.seen_well: set[tuple[str, str]] = set()  # consumers, since `began`
        self._made: dict[str, Api] = {}
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._closing.close()

    def begin(self) -> bool:
        """Whether they are good for one more piece of work, which begins now."""
        self.began = time.monotonic()
        self.seen_well.clear()
        return self.began - self.opened < KEEP_SECONDS

    @property
    def vault(self) -> Api:
        """Vault's active node, logged in as the runbooks."""
        if "vault" not in self._made:
            cluster = self.connections.vault()
            host = vault.await_active(self.connections)
            node = cluster.node(host, token=cluster.login())
            self._made["vault"] = self._closing.enter_context(node)
        return self._made["vault"]

    def consul(self, datacenter: str) -> Api:
        """
        A server of one datacenter, its leader if it has one, with the management token.

        Raises:
            NoLeader: no server answers.
        """
        if (key := f"consul {datacenter}") not in self._made:
            dc = self.mesh.datacenter(datacenter)
            up = [
                s
                for s in (consul.look_at_server(self.connections, h) for h in dc.consul.servers)
                if s.state in {"leading", "following"}
            ]
            if not up:
                raise NoLeader("no server answers", where=datacenter)
            best = min(up, key=lambda s: s.state != "leading")
            client = self.connections.consul(datacenter).client(
                consul.url(self.connections, best.host), token=self._management, dc=""
            )
            self._made[key] = self._closing.enter_context(client)
        return self._made[key]

    @property
    def primary(self) -> Api:
        """A server of the primary."""
        return self.consul(self.mesh.primary)


class Crew:
    """Clients that nobody works with at the moment. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[SecretStr, Clients]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        while (clients := self._taken(None)) is not None:
            clients.__exit__()

    def _taken(self, management: SecretStr | None) -> Clients | None:
        with self._lock:
            for number, (token, _) in enumerate(self._idle):
                if management in {None, token}:
                    return self._idle.pop(number)[1]
        return None

    @contextmanager
    def at_work(self, connections: Connections, management: SecretStr) -> Iterator[Clients]:
        """
        Clients for one worker, handed back afterwards.

        Not after an error: the server that made it may be the wrong one by now,
        and whoever repeats the work is to look who serves.
        """
        while (clients := self._taken(management)) is not None and not clients.begin():
            clients.__exit__()
        clients = clients or Clients(connections, management)
        try:
            yield clients
        except BaseException:
            clients.__exit__()
            raise
        with self._lock:
            self._idle.append((management, clients))


def at_work(connections: Connections, management: SecretStr) -> AbstractContextManager[Clients]:
    """Clients for one worker, kept as long as the connections for whoever works next."""
    return connections.keep("crew", Crew).at_work(connections, management)
