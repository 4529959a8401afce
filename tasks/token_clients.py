"""
What the workers of a token rotation speak through: Vault's active node, a server a datacenter.

Each worker has clients of its own, and hands them on to whoever works next: what
a step costs for one role would else be mostly handshakes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import SecretStr

from blocks.errors import MeshError, NoLeader
from tasks import consul, stopping, vault_serving

if TYPE_CHECKING:
    from blocks.http import Api
    from blocks.mesh import Connections

T = TypeVar("T")

# After that, who leads is looked at anew, and a login that nears its end renewed.
KEEP_SECONDS = 30.0
LOOK_SECONDS = 2.0  # what one worker saw of that, those who begin with it need not look at again


class Clients:
    """
    The clients of one worker, each opened when it is first needed and kept.

    One client a worker: a connection that many share costs several times the
    throughput. Where Vault is active and which Consul server answers is looked
    at anew, so that a repeated step goes to those that live.
    """

    def __init__(
        self, connections: Connections, management: SecretStr, crew: Crew | None = None
    ) -> None:
        self.connections, self.mesh = connections, connections.topology
        self.management = management
        self._crew = crew or Crew()
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
        """
        Vault's active node, logged in as the runbooks.

        Raises:
            NoLeader: Vault does not serve, which is no role's own fault.
        """
        if "vault" not in self._made:
            cluster = self.connections.vault()
            host, token = self._crew.seen("vault", self._active_node)
            self._made["vault"] = self._closing.enter_context(cluster.node(host, token=token))
        return self._made["vault"]

    def consul(self, datacenter: str) -> Api:
        """
        A server of one datacenter, its leader if it has one, with the management token.

        Raises:
            NoLeader: no server answers.
        """
        if (key := f"consul {datacenter}") not in self._made:
            host = self._crew.seen(key, lambda: self._best_server(datacenter))
            client = self.connections.consul(datacenter).client(
                consul.url(self.connections, host), token=self.management, dc=""
            )
            self._made[key] = self._closing.enter_context(client)
        return self._made[key]

    def agent(self, host: str) -> Api:
        """The agent on a host, with the management token."""
        if (key := f"agent {host}") not in self._made:
            client = self.connections.consul(self.mesh.datacenter_of(host).name).client(
                consul.url(self.connections, host), token=self.management, dc="", deadline=5.0
            )
            self._made[key] = self._closing.enter_context(client)
        return self._made[key]

    def _active_node(self) -> tuple[str, SecretStr]:
        return vault_serving.active(self.connections), self.connections.vault().login()

    def _best_server(self, datacenter: str) -> str:
        servers = self.mesh.datacenter(datacenter).consul.servers
        up = [
            s
            for s in (consul.look_at_server(self.connections, host) for host in servers)
            if s.state in {"leading", "following"}
        ]
        if not up:
            raise NoLeader("no server answers", where=datacenter)
        return min(up, key=lambda s: s.state != "leading").host

    @property
    def primary(self) -> Api:
        """A server of the primary."""
        return self.consul(self.mesh.primary)


class Crew:
    """Clients that nobody works with at the moment. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[tuple[SecretStr, Clients]] = []
        self._looking = threading.Lock()
        self._seen: dict[str, tuple[float, Any]] = {}

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

    def seen(self, what: str, look: Callable[[], T]) -> T:
        """
        What `look` sees, or what somebody saw a moment ago and nobody stumbled over since.

        An error too: of thirty who wait for a node that does not come, one waits.
        """
        with self._looking:
            at, found = self._seen.get(what, (-LOOK_SECONDS, None))
            if time.monotonic() - at >= LOOK_SECONDS:
                try:
                    found = look()
                except stopping.Stopped:
                    raise  # what puts things back afterwards is to look all the same
                except MeshError as error:
                    found = error
                self._seen[what] = (time.monotonic(), found)
            if isinstance(found, MeshError):
                raise found
            known: T = found
            return known

    def _stumbled(self) -> None:
        """What was seen to serve may serve no more."""
        for what, (_, found) in list(self._seen.items()):
            if not isinstance(found, MeshError):
                self._seen.pop(what, None)

    @contextmanager
    def at_work(self, connections: Connections, management: SecretStr) -> Iterator[Clients]:
        """
        Clients for one worker, handed back afterwards.

        Not after an error: the server that made it may be the wrong one by now,
        and whoever repeats the work is to look who serves.
        """
        while (clients := self._taken(management)) is not None and not clients.begin():
            clients.__exit__()
        clients = clients or Clients(connections, management, self)
        try:
            yield clients
        except BaseException:
            self._stumbled()
            clients.__exit__()
            raise
        with self._lock:
            self._idle.append((management, clients))


def at_work(connections: Connections, management: SecretStr) -> AbstractContextManager[Clients]:
    """Clients for one worker, kept as long as the connections for whoever works next."""
    return connections.keep("crew", Crew).at_work(connections, management)
