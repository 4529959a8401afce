"""Which part of the mesh answers behind an address, for the boot graph."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from blocks.topology import Mesh

_PORTS = {"https": 443, "http": 80}


class AddressBook:
    """Every address that a part of the mesh listens on, and who it is."""

    def __init__(self, mesh: Mesh) -> None:
        self.domain = mesh.dns_domain.strip(".")
        self.datacenter_of = {host.name: dc.name for dc, host in mesh.hosts()}
        self._instances: dict[str, list[str]] = defaultdict(list)
        self._listeners: dict[tuple[str, int], str] = {}
        self._sidecars: dict[tuple[str, str, int], list[str]] = defaultdict(list)
        hosts = {host.name: host for _, host in mesh.hosts()}

        def listens(host: str, port: int, node: str) -> None:
            self._listeners[hosts[host].address.lower(), port] = node
            self._listeners[host, port] = node

        for service in mesh.services:
            node = f"service:{service.name}@{service.host}"
            self._instances[service.name].append(node)
            listens(service.host, service.port, node)
            listens(service.host, service.sidecar_port, node)
        for component in mesh.components:
            if component.url:
                self._listeners[split(component.url)] = f"component:{component.name}"
        for dc in mesh.datacenters:
            for server in dc.consul.servers:
                for port in (dc.consul.https_port, 8500, 8501):
                    listens(server, port, f"consul:{dc.name}")
                listens(server, 8600, f"dns:{dc.name}")
                listens(server, 53, f"dns:{dc.name}")
            for gateway in dc.gateways:
                for end in (gateway.lan, gateway.wan):
                    self._listeners[split(end)] = f"gateways:{dc.name}"
        for name in mesh.vault.nodes:
            listens(name, mesh.vault.port, "vault")
        for service in mesh.services:
            for upstream in service.upstreams:
                _, port = split(upstream.listen)
                carried = [f"service:{service.name}@{service.host}"]
                carried += self._instances[upstream.service]
                self._sidecars[service.host, split(upstream.listen)[0], port] += carried

    def behind(self, address: str, datacenter: str, host: str = "") -> Iterator[tuple[str, str]]:
        """
        The boot graph nodes that must serve before `address` can be reached.

        Dialled from `datacenter`, whose Consul resolves names, and from
        `host`, whose sidecars listen on its loopback. Each node with what the
        address is; nothing for one outside the mesh.
        """
        name, port = split(address)
        labels = name.rstrip(".").lower().split(".")
        domain = self.domain.split(".")
        if len(labels) > len(domain) and labels[-len(domain) :] == domain:
            yield f"dns:{datacenter}", "a name that Consul serves"
            labels = labels[: -len(domain)]
            if "vault" in labels[:-1] and "service" in labels:
                yield "vault", "Vault's name in Consul"
            for service in labels[:-1]:
                for instance in self._instances.get(service, []):
                    yield instance, "a service that the mesh carries"
            return
        if node := self._listeners.get((name, port)):
            yield node, f"an address of {node}"
        for carried in self._sidecars.get((host, name, port), []):
            yield carried, "an upstream of a sidecar"


_ADDRESS = re.compile(r"^(?:(?P<scheme>\w+)://)?(?P<host>\[[^\]]*\]|[^:/]*)(?::(?P<port>\d+))?")


def split(address: str) -> tuple[str, int]:
    """Host and port of a URL or `host:port`; the scheme's port, or 0, if none is named."""
    match = _ADDRESS.match(address)
    assert match is not None  # every part of it may be empty
    port = int(match["port"]) if match["port"] else _PORTS.get(match["scheme"] or "", 0)
    return match["host"].strip("[]").lower(), port
