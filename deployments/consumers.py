"""
Consumers of the demo: each uses a declared token as a service would, and counts what fails.

They stand in for applications, which the lab's are too simple to be: a thread
reads its role's secret from Vault twice a second and uses it 20 times a second
through the agent of its service's own host. One of a role of Vault's Consul
secrets engine asks for a new credential every second. The servers are real.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocks.declared_tokens import DeclaredToken, permissions
from blocks.errors import MeshError
from blocks.mesh import connect, load_mesh
from tasks import acl_tokens, consul, secrets_engine, token_store, vault
from tasks.token_proof import allowed

if TYPE_CHECKING:
    from blocks.mesh import Connections

HERTZ = 20
READ_SECONDS = 0.5
ASK_SECONDS = 1.0  # at the secrets engine, for a new credential


class Consumer(threading.Thread):
    """One consumer at work until it is told to stop."""

    def __init__(self, connections: Connections, role: DeclaredToken, host: str) -> None:
        super().__init__(name=f"{role.role}@{host}", daemon=True)
        self._connections, self._role, self._host = connections, role, host
        self._over = threading.Event()
        self._token = connections.vault().login()
        self._held: token_store.Held | None = None
        self.uses = 0
        self.failures: list[str] = []
        self.used: list[str] = []  # accessors, in the order of their first use

    def stop(self) -> None:
        """End it, after the use under way."""
        self._over.set()
        self.join()

    def run(self) -> None:
        """Use the token, read it anew, and so on."""
        mesh, read_at = self._connections.topology, 0.0
        block = self._connections.consul(mesh.datacenter_of(self._host).name)
        url = consul.url(self._connections, self._host)
        needed = permissions(self._role.may)[0]
        with block.client(url, dc="") as agent:
            while not self._over.is_set():
                began = time.monotonic()
                try:
                    if began - read_at > READ_SECONDS:
                        self._held, read_at = self._read(), began
                    assert self._held
                    if not allowed(agent, needed, self._held.secret):
                        self.failures.append(f"{self.name}: `{needed}` was denied")
                    self.uses += 1
                except MeshError as error:
                    self.failures.append(f"{self.name}: {error.message}")
                if self._held and self._held.accessor not in self.used:
                    self.used.append(self._held.accessor)
                self._over.wait(max(0.0, 1 / HERTZ - (time.monotonic() - began)))

    def _read(self) -> token_store.Held | None:
        """What a consumer reads: never the slots that a rotation keeps beside it."""
        mesh, cluster = self._connections.topology, self._connections.vault()
        with cluster.node(vault.await_active(self._connections), token=self._token) as api:
            return token_store.read(api, mesh, self._role.path).slots.current


class Leased(Consumer):
    """
    One that asks Vault's Consul secrets engine for credentials of its own.

    It uses a new one once a server of its datacenter knows it: an agent that is
    asked too soon remembers for half a minute that there is no such token.
    """

    def __init__(self, connections: Connections, role: DeclaredToken, host: str) -> None:
        super().__init__(connections, role, host)
        self._next: token_store.Held | None = None
        self._asked_at = 0.0

    def _read(self) -> token_store.Held | None:
        """The newest that is known here; the first is waited for."""
        if self._next is None and time.monotonic() - self._asked_at > ASK_SECONDS:
            with secrets_engine.opened(self._connections, self._role) as api:
                self._next = secrets_engine.issued(api, self._role.mount, self._role.role)
            self._asked_at = time.monotonic()
        while self._next and not self._is_known(self._next) and self._held is None:
            time.sleep(0.1)
        if self._next and self._is_known(self._next):
            self._held, self._next = self._next, None
        return self._held

    def _is_known(self, held: token_store.Held) -> bool:
        dc = self._connections.topology.datacenter_of(self._host)
        with self._connections.consul(dc.name).client(dc="") as server:
            return not acl_tokens.is_refused(server, held.secret)


_KINDS: dict[str, type[Consumer]] = {"service": Consumer, "dynamic": Leased}


def hosts_of(connections: Connections, role: DeclaredToken) -> list[str]:
    """Where a role's consumers run, in the datacenters in which it is used."""
    mesh = connections.topology
    places = role.datacenters or [dc.name for dc in mesh.datacenters]
    return list(
        dict.fromkeys(
            s.host for s in mesh.services if s.name in role.consumers and s.datacenter in places
        )
    )


@contextmanager
def consuming(topology: Path) -> Iterator[list[Consumer]]:
    """A consumer for each role and host of a topology, at work inside the `with`."""
    mesh = load_mesh(str(topology), environ=os.environ, use_prefect=False)
    with connect(mesh, environ=os.environ) as connections:
        consumers = [
            _KINDS[role.kind](connections, role, host)
            for role in mesh.tokens
            if role.kind in _KINDS
            for host in hosts_of(connections, role)
        ]
        for consumer in consumers:
            consumer.start()
        try:
            yield consumers
        finally:
            for consumer in consumers:
                consumer.stop()


def told(consumers: list[Consumer]) -> dict[str, Any]:
    """What they saw, in figures."""
    return {
        "consumers": len(consumers),
        "leased": sum(isinstance(c, Leased) for c in consumers),
        "uses": sum(c.uses for c in consumers),
        "failures": [line for c in consumers for line in c.failures],
        "adopted": sum(len(c.used) > 1 for c in consumers),
    }
