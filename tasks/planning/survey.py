"""
What a survey of a mesh found, as plain data: the input of every decision.

Each field has a value for "not known": a host that is off hides what is on
it, and a plan made from the dark says what it expects instead. Nothing here
ever holds a secret.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from blocks.topology import Mesh

Power = Literal["on", "off", "changing", "unknown", "missing"]
Ssh = Literal["ok", "refused", "unknown"]
NodeState = Literal["unknown", "down", "hanging", "uninitialised", "sealed", "standby", "active"]
HolderState = Literal["none", "intended", "held", "unknown"]
Setup = Literal["unknown", "absent", "partial", "done"]
ConsulState = Literal["unknown", "down", "no_leader", "storm", "serving"]
Connect = Literal["unknown", "on", "off"]
Ca = Literal["unknown", "ok", "failing", "builtin", "off"]
Issuer = Literal["unknown", "follows", "fixed", "pinned"]
Acl = Literal["unknown", "absent", "bootstrapped"]
# unswept: it is stored, and one of an earlier bootstrap whose answer was lost may still live
Token = Literal["unknown", "absent", "intended", "stored", "unswept", "denied"]
Replication = Literal["unknown", "current", "behind", "off"]
Answers = Literal["unknown", "down", "answering"]


@dataclass(frozen=True)
class HostSeen:
    """One machine: what its cloud says, whether it lets us in, what runs on it."""

    power: Power = "unknown"
    ssh: Ssh = "unknown"  # refused: it answered, and a person must fix the key or the access
    error: str = ""  # of the cloud if power is unknown, else of SSH
    units: frozenset[str] | None = None  # active ones; None: not seen

    @property
    def dark(self) -> bool:
        """Whether nothing on it can be seen before it is powered on."""
        return self.power != "on" or self.ssh == "unknown"


@dataclass(frozen=True)
class NodeSeen:
    """One Vault node as it shows itself to anybody."""

    state: NodeState = "unknown"
    progress: int = 0  # shares given in the attempt that stands now
    nonce: str = ""
    threshold: int = 0  # of its own seal status; 0: not seen, the topology's counts
    error: str = ""

    @property
    def unsealed(self) -> bool:
        """Whether it serves or could take over at once."""
        return self.state in {"active", "standby"}


@dataclass(frozen=True)
class HolderSeen:
    """One holder's store; a prompt counts as reachable with its declared shares."""

    state: HolderState = "unknown"
    reachable: bool = True
    shares: int = 0
    error: str = ""


@dataclass(frozen=True)
class SnapshotSeen:
    """A raft snapshot kept outside the cluster."""

    taken: datetime
    where: str
    restorable: bool = True  # complete, and its checksum is right
    error: str = ""


@dataclass(frozen=True)
class VaultSeen:
    """The Vault cluster, its key holders, and what was declared on it."""

    nodes: Mapping[str, NodeSeen] = field(default_factory=dict)
    holders: Mapping[str, HolderSeen] = field(default_factory=dict)
    voters: tuple[str, ...] | None = None  # healthy raft voters; None: not seen
    incident: str | None = None  # text of the mark of a deliberate seal; "" none, None not seen
    sealer: Answers = "unknown"  # transit, awskms: whether the sealing service answers
    setup: Setup = "unknown"  # mounts, policies, AppRole, CA token as declared
    credential: HolderState = "unknown"  # the runbooks' own AppRole credential
    # begun: an interrupted restore left a throwaway cluster behind; done: the data is a snapshot's
    restore: Literal["none", "begun", "done"] = "none"
    snapshot: SnapshotSeen | None = None  # the newest

    @property
    def active(self) -> str | None:
        """The active node, if there is one."""
        return next((name for name, node in self.nodes.items() if node.state == "active"), None)


@dataclass(frozen=True)
class BreakGlass:
    """The mark of a fallback that stands: Connect was switched off on purpose."""

    since: datetime
    expires: datetime


@dataclass(frozen=True)
class ConsulSeen:
    """One Consul datacenter."""

    state: ConsulState = "unknown"
    up: frozenset[str] = frozenset()  # servers whose own API answers and that are voters
    connect: Connect = "unknown"
    break_glass: BreakGlass | None = None
    ca: Ca = "unknown"  # ok: the provider is Vault and a leaf was really signed
    # fixed: a renewed intermediate would not sign, as a cut-short run left it; pinned: by choice
    issuer: Issuer = "unknown"
    acl: Acl = "unknown"
    token: Token = "unknown"
    untokened: frozenset[str] = frozenset()  # hosts whose agent lacks its tokens
    gateways: Mapping[str, bool | None] = field(default_factory=dict)  # by host: reachable
    reaches: Mapping[str, bool | None] = field(default_factory=dict)  # by datacenter: `?dc=`
    replication: Replication = "unknown"  # of ACLs; secondaries only
    error: str = ""


@dataclass(frozen=True)
class CertificateSeen:
    """A server certificate on a host's disk."""

    not_after: datetime | None = None  # None: not seen
    subject: str = ""
    error: str = ""


@dataclass(frozen=True)
class Survey:
    """
    Everything a plan is made from. What is absent from a mapping is unknown.

    Keys: hosts, Vault nodes and holders by name, Consul by datacenter,
    services as `NAME@HOST`, certificates as (host, path), components by name.
    """

    at: datetime  # aware; what ages and expiries are counted from
    seconds: float = 0.0
    hosts: Mapping[str, HostSeen] = field(default_factory=dict)
    vault: VaultSeen = field(default_factory=VaultSeen)
    consul: Mapping[str, ConsulSeen] = field(default_factory=dict)
    services: Mapping[str, Answers] = field(default_factory=dict)
    pairs_wrong: tuple[tuple[str, str], ...] = ()  # (source, destination) not as declared
    certificates: Mapping[tuple[str, str], CertificateSeen] = field(default_factory=dict)
    components: Mapping[str, Answers] = field(default_factory=dict)
    consul_snapshot: SnapshotSeen | None = None
    maintenance: str = ""  # mark of planned Vault work: the CA is Consul's own on purpose
    maintenance_ends: datetime | None = None  # when that was to end

    def host(self, name: str) -> HostSeen:
        """One host; unknown if it was not looked at."""
        return self.hosts.get(name, HostSeen())

    def node(self, name: str) -> NodeSeen:
        """One Vault node; unknown if it was not looked at."""
        return self.vault.nodes.get(name, NodeSeen())

    def datacenter(self, name: str) -> ConsulSeen:
        """One Consul datacenter; unknown if it was not looked at."""
        return self.consul.get(name, ConsulSeen())

    def service(self, name: str, host: str) -> Answers:
        """Whether an instance of a service answers through its sidecar."""
        return self.services.get(f"{name}@{host}", "unknown")


def dark(mesh: Mesh, at: datetime) -> Survey:
    """The survey of a mesh of which every host is off and every store reachable."""
    return Survey(
        at=at,
        hosts={host.name: HostSeen(power="off") for _, host in mesh.hosts()},
        vault=VaultSeen(
            nodes={name: NodeSeen() for name in mesh.vault.nodes},
            holders={h.name: HolderSeen("held", shares=h.shares) for h in mesh.vault.holders},
            credential="held",
        ),
        consul={dc.name: ConsulSeen() for dc in mesh.datacenters},
    )


def healthy(mesh: Mesh, at: datetime) -> Survey:
    """The survey of a mesh in which everything is as declared."""
    nodes = {name: NodeSeen("standby") for name in mesh.vault.nodes}
    nodes[mesh.vault.nodes[0]] = NodeSeen("active")
    units: dict[str, set[str]] = {host.name: set() for _, host in mesh.hosts()}
    for name in mesh.vault.nodes:
        units[name].add(mesh.vault.unit)
    for dc in mesh.datacenters:
        for name in dc.consul.servers:
            units[name].add(dc.consul.unit)
        for gateway in dc.gateways:
            units[gateway.host].update(gateway.units)
        for name in mesh.client_hosts(dc.name):
            units[name].add(dc.consul.unit)
    for service in mesh.services:
        units[service.host].update(service.units)
    for component in mesh.components:
        units[component.host].update(component.units)
    return Survey(
        at=at,
        hosts={
            host.name: HostSeen("on", "ok", units=frozenset(units[host.name]))
            for _, host in mesh.hosts()
        },
        vault=VaultSeen(
            nodes=nodes,
            holders={h.name: HolderSeen("held", shares=h.shares) for h in mesh.vault.holders},
            voters=tuple(mesh.vault.nodes),
            sealer="answering",
            incident="",
            setup="done",
            credential="held",
        ),
        consul={
            dc.name: ConsulSeen(
                state="serving",
                up=frozenset(dc.consul.servers),
                connect="on",
                ca="ok",
                acl="bootstrapped",
                token="stored",
                gateways={g.host: True for g in dc.gateways},
                reaches={other.name: True for other in mesh.datacenters if other is not dc},
                replication="current",
            )
            for dc in mesh.datacenters
        },
        services={f"{s.name}@{s.host}": "answering" for s in mesh.services},
        components={c.name: "answering" for c in mesh.components},
    )
