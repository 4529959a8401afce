"""
What a mesh consists of, as it stands in git: no secrets, no Prefect, no I/O.

A topology names machines, clusters and services and where their secrets are
kept, never a secret itself. `parse` turns a document into a `Mesh` or raises
`BadInput` with one line a problem, each naming the field.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationError

from blocks import declared_tokens
from blocks.declared_tokens import DeclaredToken, ForeignToken
from blocks.errors import BadInput
from blocks.parts import Name, Part


class Host(Part):
    """One machine: where it answers and how its cloud calls it."""

    name: Name
    address: str = Field(description="IP address or DNS name that SSH and the servers answer on.")
    instance: str | None = Field(
        default=None, description="EC2 `Name` tag or Proxmox VM name; the host's name if absent."
    )
    ssh_port: int = Field(default=22, ge=1, le=65535)
    ssh_user: str = "root"
    host_key: str | None = Field(
        default=None, description="Pinned public key, `ssh-ed25519 AAAA...`; refused if absent."
    )
    root: str = Field(
        default="", description="Where the host's file system starts; empty on a real machine."
    )

    @property
    def instance_name(self) -> str:
        """The name to look for in the cloud."""
        return self.instance or self.name


class AwsCloud(Part):
    """An AWS region that holds the datacenter's machines as EC2 instances."""

    kind: Literal["aws"]
    region: str
    endpoint_url: str | None = Field(default=None, description="Only for a stand-in of AWS.")
    connection: str = Field(default="aws", description="Name of the credentials.")


class ProxmoxCloud(Part):
    """A Proxmox VE cluster that holds the datacenter's machines as VMs."""

    kind: Literal["proxmox"]
    address: str = Field(description="Base URL of the API, `https://pve.example:8006`.")
    ca_file: str | None = None
    connection: str = Field(default="proxmox", description="Name of the credentials.")


Cloud = Annotated[AwsCloud | ProxmoxCloud, Field(discriminator="kind")]


class ConsulServers(Part):
    """The Consul servers of one datacenter."""

    servers: list[Name] = Field(min_length=1, description="Hosts that run a server.")
    https_port: int = 8501
    unit: str = "consul"
    config_dir: str = "/etc/consul.d"
    data_dir: str = "/opt/consul"
    gossip_file: str | None = Field(
        default=None, description="Configuration file with `encrypt`, on every host of Consul."
    )
    ca_file: str | None = Field(
        default=None, description="CA of the HTTPS API, on the operator's machine."
    )
    intermediate_pki_path: str = Field(
        description="This datacenter's own Connect intermediate mount."
    )
    ca_config_file: str | None = Field(
        default=None,
        pattern="^/",
        description="The servers' own JSON file with a `ca_config`, if they have one.",
    )


class Gateway(Part):
    """One mesh gateway: a host with a Consul client agent and an Envoy."""

    host: Name
    lan: str = Field(description="address:port inside the datacenter")
    wan: str = Field(description="address:port that other datacenters dial")
    units: list[str] = ["consul", "mesh-gateway"]


class Datacenter(Part):
    """One Consul datacenter and the machines under it."""

    name: Name
    cloud: Cloud
    hosts: list[Host] = Field(min_length=1)
    consul: ConsulServers
    gateways: list[Gateway] = []


class Holder(Part):
    """
    Somebody or something that keeps unseal shares.

    A holder never has as many shares as the threshold, so that no single
    compromise opens Vault.
    """

    name: Name
    store: Literal["file", "aws-secrets-manager", "block", "prompt"]
    shares: int = Field(default=1, ge=1, description="How many; no meaning outside `holders`.")
    path: str | None = Field(
        default=None, description="file: a file of mode 0400 (created at init)."
    )
    secret: str | None = Field(default=None, description="aws-secrets-manager: name of the secret.")
    region: str | None = Field(default=None, description="aws-secrets-manager: its region.")
    endpoint_url: str | None = Field(default=None, description="Only for a stand-in of AWS.")
    connection: str = Field(
        default="aws", description="aws-secrets-manager: name of the credentials."
    )
    block: str | None = Field(
        default=None, description="block: name of the Prefect block document."
    )


class Snapshots(Part):
    """Where raft snapshots are kept, and how old the newest may be."""

    directory: str | None = None
    max_age_hours: float = Field(default=26.0, gt=0)


class Vault(Part):
    """The Vault cluster: secrets core and certificate authority."""

    nodes: list[Name] = Field(min_length=1, description="Hosts that run a node.")
    port: int = 8200
    unit: str = "vault"
    address: str = Field(description="URL that Consul's CA provider uses.")
    ca_file: str | None = Field(
        default=None, description="CA of the API, on the operator's machine."
    )
    consul_ca_file: str | None = Field(
        default=None, description="The same CA as Consul's servers see it, on their disks."
    )
    namespace: str | None = None
    seal: Literal["shamir", "transit", "awskms", "static"] = "shamir"
    seal_address: str | None = Field(default=None, description="transit: URL of the sealing Vault.")
    storage: Literal["raft", "consul"] = "raft"
    data_dir: str = "/opt/vault"
    key_shares: int = Field(default=5, ge=1)
    key_threshold: int = Field(default=3, ge=1)
    holders: list[Holder] = []
    credential: Holder | None = Field(
        default=None, description="Where the runbooks' own AppRole credential is kept."
    )
    issuing_ca: Holder | None = Field(
        default=None,
        description="Where the CA that signs server certificates is kept (certificate, private_key).",
    )
    kv_mount: str = "mesh"
    root_pki_path: str = "connect-root"
    pki_mount: str = Field(default="pki", description="Mount that issues server certificates.")
    leaf_ttl: str = "72h"
    ca_token_period: str = "768h"
    snapshots: Snapshots = Snapshots()


class Upstream(Part):
    """A service as its caller's sidecar offers it."""

    service: Name
    listen: str = Field(description="address:port on the caller's host")
    datacenter: Name | None = Field(default=None, description="Only this datacenter's instances.")


class Service(Part):
    """One instance of a service, with its sidecar, on one host."""

    name: Name
    datacenter: Name
    host: Name
    units: list[str]
    port: int
    sidecar_port: int = 20000
    health_path: str = "/health"
    upstreams: list[Upstream] = []


class Intention(Part):
    """Who may call whom; everything else is denied."""

    source: Name
    destination: Name
    action: Literal["allow", "deny"] = "allow"


class Certificate(Part):
    """A server certificate on a host's disk."""

    host: Name
    path: str
    key_path: str
    used_by: Literal["vault", "consul"]
    issued_by: Literal["operator", "vault"] = Field(
        default="operator",
        description="`vault`: renewable from `vault.pki_mount` once Vault serves.",
    )


class Component(Part):
    """Anything else that must boot: the Prefect server, a database, a resolver."""

    name: Name
    host: Name
    units: list[str]
    needs: list[str] = Field(
        default=[], description="Boot graph nodes: vault, consul:DC, component:NAME ..."
    )
    url: str | None = Field(default=None, description="Answers 200 when it is up.")
    addresses: list[str] = Field(
        default=[], description="What it dials at start, for the cycle check."
    )


class Mesh(Part):
    """A whole mesh; the root of a topology document."""

    name: Name
    primary: Name
    drillable: bool = False
    trust_domain: str | None = None
    dns_domain: str = "consul"
    datacenters: list[Datacenter] = Field(min_length=1)
    vault: Vault
    services: list[Service] = []
    intentions: list[Intention] = []
    certificates: list[Certificate] = []
    components: list[Component] = []
    tokens: list[DeclaredToken] = []
    foreign_tokens: list[ForeignToken] = []
    longest_outage_hours: float = Field(
        default=72.0, gt=0, description="What certificates and the CA token must outlive."
    )
    journal: str | None = Field(default=None, description="JSON-lines file of all runs' reports.")

    _origin: Path | None = PrivateAttr(default=None)

    @property
    def origin(self) -> Path | None:
        """The file it was read from, if it was: what stands beside it belongs to it."""
        return self._origin

    def read_from(self, file: Path) -> Self:
        """The same mesh, knowing its file."""
        copy = self.model_copy()
        copy._origin = file  # noqa: SLF001 - its own class
        return copy

    def hosts(self) -> Iterator[tuple[Datacenter, Host]]:
        """Every host with its datacenter."""
        for datacenter in self.datacenters:
            for host in datacenter.hosts:
                yield datacenter, host

    def host(self, name: str) -> Host:
        """One host by name; `KeyError` if the mesh has none such."""
        return {h.name: h for _, h in self.hosts()}[name]

    def datacenter(self, name: str) -> Datacenter:
        """One datacenter by name; `KeyError` if the mesh has none such."""
        return {d.name: d for d in self.datacenters}[name]

    def roles(self) -> list[DeclaredToken]:
        """Every role that has a token of its own, those that one declaration makes many of too."""
        return declared_tokens.roles(self)

    def token(self, role: str) -> DeclaredToken:
        """One role; `KeyError` if the mesh has none such."""
        return {t.role: t for t in self.roles()}[role]

    def datacenter_of(self, host: str) -> Datacenter:
        """The datacenter a host stands in."""
        return {h.name: d for d, h in self.hosts()}[host]

    @property
    def secondaries(self) -> list[Datacenter]:
        """All datacenters but the primary."""
        return [d for d in self.datacenters if d.name != self.primary]

    def consul_hosts(self, datacenter: str) -> list[str]:
        """Hosts that run a Consul agent: servers, then clients."""
        return [*self.datacenter(datacenter).consul.servers, *self.client_hosts(datacenter)]

    def client_hosts(self, datacenter: str) -> list[str]:
        """Hosts that run a Consul client agent: gateways and application hosts."""
        dc = self.datacenter(datacenter)
        names = [g.host for g in dc.gateways]
        names += [s.host for s in self.services if s.datacenter == datacenter]
        return list(dict.fromkeys(n for n in names if n not in dc.consul.servers))


def parse(document: object) -> Mesh:
    """
    A `Mesh` from a topology document.

    Raises:
        BadInput: with every problem found, one line each.
    """
    if not isinstance(document, dict):
        raise BadInput("topology: must be a mapping")
    try:
        mesh = Mesh.model_validate(document)
    except ValidationError as error:
        raise BadInput(_problem(document, e) for e in error.errors()) from None
    if problems := problems_of(mesh):
        raise BadInput(problems)
    return mesh


def _problem(document: Any, error: Any) -> str:
    """One line for one of pydantic's findings, lists named by what stands in them."""
    path, here = "", document
    for key in error["loc"]:
        if isinstance(key, int):
            try:
                here = here[key]
                named = here if isinstance(here, dict) else {}
                label = named.get("name", named.get("role", key))
            except (IndexError, KeyError, TypeError):
                label = key
            path += f"[{label}]"
        elif isinstance(here, dict) and key not in here and key in {"aws", "proxmox"}:
            continue  # the discriminator's value, not a field
        else:
            path += f".{key}" if path else str(key)
            here = here.get(key) if isinstance(here, dict) else None
    return f"{path}: {error['msg'][0].lower()}{error['msg'][1:]}"


def problems_of(mesh: Mesh) -> list[str]:
    """Everything about a well-formed mesh that would not boot, one line each."""
    from blocks import boot_graph  # it reads topologies, so it cannot come first

    nameless = [*_duplicates(mesh), *_unknown_names(mesh)]
    return [
        *nameless,
        *_quorums(mesh),
        *_pki_paths(mesh),
        *_holders(mesh.vault),
        *declared_tokens.problems(mesh),
        *([] if nameless else boot_graph.problems(mesh)),
    ]


def _duplicates(mesh: Mesh) -> Iterator[str]:
    hosts = [h for _, h in mesh.hosts()]
    for what, values in (
        ("datacenters.name", [d.name for d in mesh.datacenters]),
        ("datacenters.hosts.name", [h.name for h in hosts]),
        ("datacenters.hosts.address", [f"{h.address}" for h in hosts]),
        ("datacenters.gateways.wan", [g.wan for d in mesh.datacenters for g in d.gateways]),
        ("vault.holders.name", [h.name for h in mesh.vault.holders]),
        ("components.name", [c.name for c in mesh.components]),
        (
            "services (name, host)",
            [f"{s.name} on {s.host}" for s in mesh.services],
        ),
    ):
        for value, count in Counter(values).items():
            if count > 1:
                yield f"{what}: {value} is there {count} times"


def _unknown_names(mesh: Mesh) -> Iterator[str]:
    datacenters = {d.name for d in mesh.datacenters}
    hosts = {h.name for _, h in mesh.hosts()}
    services = {s.name for s in mesh.services}
    if mesh.primary not in datacenters:
        yield f"primary: {mesh.primary} is none of the datacenters ({', '.join(sorted(datacenters))})"
    for dc in mesh.datacenters:
        own = {h.name for h in dc.hosts}
        for name in [*dc.consul.servers, *(g.host for g in dc.gateways)]:
            if name not in own:
                yield f"datacenters[{dc.name}]: {name} is no host of this datacenter"
        if len(mesh.datacenters) > 1 and not dc.gateways:
            yield f"datacenters[{dc.name}].gateways: a federated datacenter needs a mesh gateway"
    for name in mesh.vault.nodes:
        if name not in hosts:
            yield f"vault.nodes: {name} is no host"
    for s in mesh.services:
        if s.datacenter not in datacenters:
            yield f"services[{s.name}].datacenter: {s.datacenter} is none of the datacenters"
        elif s.host not in {h.name for h in mesh.datacenter(s.datacenter).hosts}:
            yield f"services[{s.name}].host: {s.host} is no host of {s.datacenter}"
        for u in s.upstreams:
            if u.service not in services:
                yield f"services[{s.name}].upstreams: {u.service} is no service"
    for i in mesh.intentions:
        for name in (i.source, i.destination):
            if name not in services and name != "*":
                yield f"intentions: {name} is no service"
    for where, name in [
        *(("certificates", c.host) for c in mesh.certificates),
        *((f"components[{c.name}].host", c.host) for c in mesh.components),
    ]:
        if name not in hosts:
            yield f"{where}: {name} is no host"


def _quorums(mesh: Mesh) -> Iterator[str]:
    counts = [("vault.nodes", len(mesh.vault.nodes))]
    counts += [
        (f"datacenters[{d.name}].consul.servers", len(d.consul.servers)) for d in mesh.datacenters
    ]
    for where, count in counts:
        if count % 2 == 0:
            yield f"{where}: {count} voters tolerate no more failures than {count - 1}; use an odd number"


def _pki_paths(mesh: Mesh) -> Iterator[str]:
    seen: dict[str, str] = {}
    for dc in mesh.datacenters:
        where = f"datacenters[{dc.name}].consul.intermediate_pki_path"
        path = dc.consul.intermediate_pki_path.strip("/")
        if path == mesh.vault.root_pki_path.strip("/"):
            yield f"{where}: {path} is vault.root_pki_path too"
        elif path in seen:
            yield f"{where}: {path} is that of {seen[path]} too; each datacenter needs its own"
        seen.setdefault(path, dc.name)


def _holders(vault: Vault) -> Iterator[str]:
    if vault.seal != "shamir" and not vault.holders:
        return
    if vault.key_threshold > vault.key_shares:
        yield f"vault.key_threshold: {vault.key_threshold} of {vault.key_shares} shares can never be met"
    total = sum(h.shares for h in vault.holders)
    if total != vault.key_shares:
        yield f"vault.holders: they hold {total} shares, vault.key_shares is {vault.key_shares}"
    for h in vault.holders:
        where = f"vault.holders[{h.name}]"
        if h.shares >= vault.key_threshold and vault.key_threshold > 1:
            yield f"{where}.shares: {h.shares} reach the threshold of {vault.key_threshold}; no holder may"
        yield from _store(where, h)
    for name, store in (("credential", vault.credential), ("issuing_ca", vault.issuing_ca)):
        if store:
            yield from _store(f"vault.{name}", store)


def _store(where: str, holder: Holder) -> Iterator[str]:
    needs = {"file": "path", "aws-secrets-manager": "secret", "block": "block"}.get(holder.store)
    if needs and not getattr(holder, needs):
        yield f"{where}.{needs}: a holder of kind {holder.store} needs it"


_DURATION = re.compile(r"^(\d+)(h|m|s)$")


def seconds(duration: str) -> int:
    """Seconds in a duration as Vault and Consul write it, such as `72h`."""
    match = _DURATION.match(duration)
    if not match:
        raise BadInput(f"{duration}: not a duration such as 72h, 30m or 90s")
    return int(match[1]) * {"h": 3600, "m": 60, "s": 1}[match[2]]
