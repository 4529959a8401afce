"""What one worker of a token rotation speaks through: Vault's active node, a server a datacenter."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from pydantic import SecretStr

from blocks.errors import NoLeader
from tasks import consul, vault_serving

if TYPE_CHECKING:
    from blocks.http import Api
    from blocks.mesh import Connections


class Clients:
    """
    The clients of one worker, each opened when it is first needed and kept.

    One client a worker: a connection that many share costs several times the
    throughput. Where Vault is active and which Consul server answers is looked
    at anew, so that a repeated step goes to those that live.
    """

    def __init__(self, connections: Connections, management: SecretStr) -> None:
        self.connections, self.mesh = connections, connections.topology
        self.management = management
        self.opened = time.monotonic()
        self._made: dict[str, Api] = {}
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._closing.close()

    @property
    def vault(self) -> Api:
        """
        Vault's active node, logged in as the runbooks.

        Raises:
            NoLeader: Vault does not serve, which is no role's own fault.
        """
        if "vault" not in self._made:
            cluster = self.connections.vault()
            host = vault_serving.active(self.connections)
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
                consul.url(self.connections, best.host), token=self.management, dc=""
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

    @property
    def primary(self) -> Api:
        """A server of the primary."""
        return self.consul(self.mesh.primary)
