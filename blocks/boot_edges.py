"""
The edges of the boot graph, read off a topology: who needs whom, and why.

Each edge that somebody could take away says how, and roughly at what cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from blocks.boot_addresses import AddressBook
from blocks.topology import Component, Datacenter, Mesh, Service

# What it costs to take an edge away; of a cycle the cheapest is named.
ADDRESS, CERTIFICATE, MOVE, SEAL, STORAGE, CA, INHERENT = 1, 2, 3, 10, 50, 60, 1000
KEEP_CA = "keep the Connect CA in Consul's own provider"


@dataclass(frozen=True)
class Edge:
    """`needer` cannot boot before `needed` serves."""

    needer: str
    needed: str
    reason: str
    cut: str = ""  # what to change so that the edge is gone; empty: nothing can
    cost: int = INHERENT


def service_node(service: Service) -> str:
    """The node of one instance of a service."""
    return f"service:{service.name}@{service.host}"


def edges(mesh: Mesh) -> Iterator[Edge]:
    """Every edge of the boot graph; a component may need a node that there is not."""
    book = AddressBook(mesh)
    for dc in mesh.datacenters:
        yield from _power(dc, book)
        yield from _consul(mesh, dc, book)
        yield Edge(
            f"dns:{dc.name}",
            f"consul:{dc.name}",
            f"Consul serves the names under .{mesh.dns_domain}",
        )
        yield from _gateways(mesh, dc, book)
    yield from _vault(mesh, book)
    for service in mesh.services:
        yield from _service(mesh, service)
    for component in mesh.components:
        yield from _component(component, book)


def _power(dc: Datacenter, book: AddressBook) -> Iterator[Edge]:
    node = f"power:{dc.name}"
    where = f"datacenters[{dc.name}]"
    for host in dc.hosts:
        yield from _dials(
            book,
            node,
            dc.name,
            f"{where}.hosts[{host.name}].address",
            host.address,
            names_only=True,
        )
    cloud = dc.cloud
    address = cloud.endpoint_url if cloud.kind == "aws" else cloud.address
    if address:
        field = "endpoint_url" if cloud.kind == "aws" else "address"
        yield from _dials(book, node, dc.name, f"{where}.cloud.{field}", address)


def _consul(mesh: Mesh, dc: Datacenter, book: AddressBook) -> Iterator[Edge]:
    node = f"consul:{dc.name}"
    yield Edge(node, f"power:{dc.name}", "its servers run there")
    yield Edge(
        node,
        "vault",
        "its CA provider is Vault, no leader stands without it",
        KEEP_CA,
        CA,
    )
    # The CA is Vault wherever it is dialled; only another node on the way is news.
    for edge in _dials(book, node, dc.name, "vault.address", mesh.vault.address):
        if edge.needed != "vault":
            yield edge
    for certificate in mesh.certificates:
        here = book.datacenter_of[certificate.host] == dc.name
        if here and (certificate.used_by, certificate.issued_by) == ("consul", "vault"):
            yield Edge(
                node,
                "vault",
                f"its certificate {certificate.path} on {certificate.host} is issued there",
                f"certificates[{certificate.host}]: issue {certificate.path} by the operator's CA",
                CERTIFICATE,
            )
    if dc.name != mesh.primary:
        yield Edge(node, f"gateways:{mesh.primary}", "it reaches its primary through them")
        for gateway in mesh.datacenter(mesh.primary).gateways:
            where = f"datacenters[{mesh.primary}].gateways[{gateway.host}].wan"
            yield from _dials(book, node, dc.name, where, gateway.wan, names_only=True)


def _gateways(mesh: Mesh, dc: Datacenter, book: AddressBook) -> Iterator[Edge]:
    if not dc.gateways:
        return
    node = f"gateways:{dc.name}"
    yield Edge(node, f"power:{dc.name}", "they run there")
    yield Edge(node, f"consul:{dc.name}", "Consul tells them their routes")
    yield Edge(node, "vault", "their certificates are signed by its CA", KEEP_CA, CA)
    for other in mesh.datacenters:
        for gateway in other.gateways:
            if other.name != dc.name:
                where = f"datacenters[{other.name}].gateways[{gateway.host}].wan"
                yield from _dials(book, node, dc.name, where, gateway.wan, names_only=True)


def _vault(mesh: Mesh, book: AddressBook) -> Iterator[Edge]:
    vault = mesh.vault
    homes = dict.fromkeys(book.datacenter_of[name] for name in vault.nodes)
    for home in homes:
        yield Edge("vault", f"power:{home}", "its nodes run there")
        if vault.storage == "consul":
            yield Edge(
                "vault",
                f"consul:{home}",
                "vault.storage is consul",
                "vault.storage: migrate it to raft",
                STORAGE,
            )
        if vault.seal != "shamir" and vault.seal_address:
            for edge in _dials(book, "vault", home, "vault.seal_address", vault.seal_address):
                own = edge.needed == "vault"
                yield Edge(
                    "vault",
                    edge.needed,
                    f"vault.seal_address {vault.seal_address} is this cluster itself"
                    if own
                    else edge.reason,
                    "vault.seal_address: seal by a Vault that this mesh does not carry"
                    if own
                    else edge.cut,
                    SEAL if own else edge.cost,
                )
    for certificate in mesh.certificates:
        if (certificate.used_by, certificate.issued_by) == ("vault", "vault"):
            yield Edge(
                "vault",
                "vault",
                f"its certificate {certificate.path} on {certificate.host} is issued by itself",
                f"certificates[{certificate.host}]: issue {certificate.path} by the operator's CA",
                CERTIFICATE,
            )
    for address in vault_stores(mesh):
        for home in homes:
            yield from _dials(book, "vault", home, *address)
    yield from _block_stores(mesh)


def vault_stores(mesh: Mesh) -> Iterator[tuple[str, str]]:
    """Addresses (field, URL) of the stores that hold Vault's key shares."""
    for holder in mesh.vault.holders:
        if holder.endpoint_url:
            yield f"vault.holders[{holder.name}].endpoint_url", holder.endpoint_url


def _block_stores(mesh: Mesh) -> Iterator[Edge]:
    """Prefect's server, if the shares outside it are fewer than the threshold."""
    vault = mesh.vault
    elsewhere = sum(h.shares for h in vault.holders if h.store != "block")
    inside = [h.name for h in vault.holders if h.store == "block"]
    if vault.seal != "shamir" or not inside or elsewhere >= vault.key_threshold:
        return
    for component in mesh.components:
        if "prefect" in component.name and "worker" not in component.name:
            yield Edge(
                "vault",
                f"component:{component.name}",
                f"only {elsewhere} of {vault.key_threshold} key shares needed are outside Prefect's blocks",
                f"vault.holders[{inside[0]}].store: keep it outside Prefect",
                MOVE,
            )


def _service(mesh: Mesh, service: Service) -> Iterator[Edge]:
    node = service_node(service)
    yield Edge(node, f"power:{service.datacenter}", "it runs there")
    yield Edge(node, f"consul:{service.datacenter}", "its sidecar's upstreams come from it")
    yield Edge(node, "vault", "its sidecar's certificate is signed by its CA", KEEP_CA, CA)
    for upstream in service.upstreams:
        homes = {s.datacenter for s in mesh.services if s.name == upstream.service}
        homes = {upstream.datacenter} if upstream.datacenter else homes
        if homes and service.datacenter not in homes:
            for end in sorted({service.datacenter, *homes}):
                yield Edge(
                    node,
                    f"gateways:{end}",
                    f"its upstream {upstream.service} is in another datacenter",
                )


def _component(component: Component, book: AddressBook) -> Iterator[Edge]:
    node = f"component:{component.name}"
    home = book.datacenter_of[component.host]
    yield Edge(node, f"power:{home}", f"it runs on {component.host}")
    where = f"components[{component.name}]"
    for need in component.needs:
        # `dns:consul` is what a topology's author would write for the resolver nearby.
        needed = f"dns:{home}" if need == "dns:consul" else need
        yield Edge(
            node,
            needed,
            f"{where}.needs names it",
            f"{where}.needs: make it boot without {need}",
            MOVE,
        )
    for address in component.addresses:
        yield from _dials(book, node, home, f"{where}.addresses", address, host=component.host)


def _dials(
    book: AddressBook,
    node: str,
    datacenter: str,
    field: str,
    address: str,
    *,
    host: str = "",
    names_only: bool = False,
) -> Iterator[Edge]:
    """The edges that come from dialling an address; `names_only`: its name's resolver."""
    for needed, kind in book.behind(address, datacenter, host):
        if names_only and not needed.startswith("dns:"):
            continue
        yield Edge(
            node,
            needed,
            f"{field} {address} is {kind}",
            f"{field}: use an IP address, or a name outside .{book.domain}"
            if needed.startswith("dns:")
            else f"{field}: use one that the mesh does not carry",
            ADDRESS if needed.startswith("dns:") else MOVE,
        )
