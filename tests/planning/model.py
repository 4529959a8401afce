"""
A mesh as a small machine: what a survey shows of it, and what each step does.

The steps hold the plan to its order: a Consul that is started while its CA is
away does not get a leader here either, and a step whose ground is not laid
fails the test.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from blocks.topology import Mesh
from tasks.planning.cold_boot import Options
from tasks.planning.plan import PlannedStep
from tasks.planning.survey import (
    BreakGlass,
    CertificateSeen,
    ConsulSeen,
    HolderSeen,
    HostSeen,
    NodeSeen,
    SnapshotSeen,
    Survey,
    VaultSeen,
)
from tests.planning.meshes import NOW


@dataclass
class World:
    """The truth; everything is up, as declared and proven in a fresh one."""

    mesh: Mesh
    now: datetime = NOW
    on: set[str] = field(default_factory=set)
    data: set[str] = field(default_factory=set)  # Vault nodes with the cluster's data
    throwaway: bool = False  # the data is an empty cluster of a restore
    keys: str = "held"  # none, intended, held: at every holder
    stopped: set[str] = field(default_factory=set)  # Vault nodes whose process is down
    open: set[str] = field(default_factory=set)  # unsealed ones
    setup: bool = True
    snapshot: bool = True
    running: set[str] = field(default_factory=set)  # Consul servers
    leader: set[str] = field(default_factory=set)  # datacenters
    glass: dict[str, datetime] = field(default_factory=dict)  # Connect is off until
    acl: bool = True
    token: str = "stored"
    bare: set[str] = field(default_factory=set)  # agents without their tokens
    ca_on_vault: set[str] = field(default_factory=set)  # datacenters
    clients: set[str] = field(default_factory=set)  # hosts whose agents and all on them run
    gateways: set[str] = field(default_factory=set)
    joined: set[str] = field(default_factory=set)
    services: set[str] = field(default_factory=set)
    intentions: bool = True
    components: set[str] = field(default_factory=set)
    expired: set[tuple[str, str]] = field(default_factory=set)
    inits: int = 0

    @classmethod
    def up(cls, mesh: Mesh) -> World:
        """Healthy."""
        world = cls(mesh)
        world.on = {h.name for _, h in mesh.hosts()}
        world.data = world.open = set(mesh.vault.nodes)
        world.open = set(world.data)
        world.running = {n for d in mesh.datacenters for n in d.consul.servers}
        world.leader = {d.name for d in mesh.datacenters}
        world.ca_on_vault = set(world.leader)
        world.clients = {n for d in mesh.datacenters for n in mesh.client_hosts(d.name)}
        world.gateways = {g.host for d in mesh.datacenters for g in d.gateways}
        world.joined = {d.name for d in mesh.secondaries}
        world.services = {f"{s.name}@{s.host}" for s in mesh.services}
        world.components = {c.name for c in mesh.components}
        return world

    @classmethod
    def unborn(cls, mesh: Mesh) -> World:
        """Every host off, nothing ever ran."""
        world = cls(mesh, keys="none", setup=False, acl=False, token="absent")
        world.bare = {
            n for d in mesh.datacenters for n in [*d.consul.servers, *mesh.client_hosts(d.name)]
        }
        world.intentions = world.snapshot = False
        return world

    def copy(self) -> World:
        """Another world just like it; the topology is shared."""
        return deepcopy(self, {id(self.mesh): self.mesh})

    def cut(self, hosts: set[str]) -> None:
        """The power of these hosts goes."""
        self.on -= hosts
        self.open -= hosts
        self.stopped -= hosts
        self.running -= hosts
        self.clients -= hosts
        self.gateways -= hosts
        self.services = {s for s in self.services if s.rpartition("@")[2] not in hosts}
        self.components -= {c.name for c in self.mesh.components if c.host in hosts}
        self._settle()

    def active(self) -> str | None:
        """Vault's active node, if enough are unsealed."""
        ready = [n for n in self.mesh.vault.nodes if n in self.open]
        return ready[0] if len(ready) * 2 > len(self.mesh.vault.nodes) else None

    def _settle(self) -> None:
        """Who leads, after something changed."""
        for dc in self.mesh.datacenters:
            quorum = len(self.running & set(dc.consul.servers)) * 2 > len(dc.consul.servers)
            if not quorum:
                self.leader.discard(dc.name)
            elif dc.name not in self.leader:
                locked = (
                    dc.name in self.ca_on_vault
                    and dc.name not in self.glass
                    and self.active() is None
                )
                expired = any(h in dc.consul.servers for h, _ in self.expired)
                if not locked and not expired:
                    self.leader.add(dc.name)

    def healthy(self) -> bool:
        """Whether it is all as in a fresh one."""
        good = World.up(self.mesh)
        return replace(good, now=self.now, inits=self.inits, snapshot=self.snapshot) == self

    def survey(self) -> Survey:
        """What can be seen of it from outside."""
        mesh = self.mesh
        nodes = {}
        for name in mesh.vault.nodes:
            if name not in self.on:
                state = "unknown"
            elif name in self.stopped:
                state = "down"
            elif name in self.open:
                state = "active" if name == self.active() else "standby"
            else:
                state = "sealed" if name in self.data else "uninitialised"
            nodes[name] = NodeSeen(state)  # type: ignore[arg-type]
        serves = self.active() is not None
        setup = "unknown" if not serves else "done" if self.setup else "absent"
        return Survey(
            at=self.now,
            hosts={
                h.name: HostSeen("on", "ok", units=self._units(h.name))
                if h.name in self.on
                else HostSeen("off")
                for _, h in mesh.hosts()
            },
            vault=VaultSeen(
                nodes=nodes,
                holders={
                    h.name: HolderSeen(self.keys, shares=h.shares if self.keys == "held" else 0)  # type: ignore[arg-type]
                    for h in mesh.vault.holders
                },
                incident="",
                setup=setup,  # type: ignore[arg-type]
                credential="held" if self.setup else "none",
                restore="begun" if self.throwaway else "none",
                snapshot=SnapshotSeen(NOW - timedelta(hours=1), "vault.snap")
                if self.snapshot
                else None,
            ),
            consul={d.name: self._consul(d.name) for d in mesh.datacenters},
            services={
                f"{s.name}@{s.host}": "answering"
                if f"{s.name}@{s.host}" in self.services
                else "down"
                if s.host in self.on
                else "unknown"
                for s in mesh.services
            },
            pairs_wrong=()
            if self.intentions or not self.services
            else (("web-portal", "payment-processor"),),
            certificates={
                (c.host, c.path): CertificateSeen(
                    self.now + timedelta(hours=-1 if (c.host, c.path) in self.expired else 999)
                )
                for c in mesh.certificates
                if c.host in self.on
            },
            components={
                c.name: "answering" if c.name in self.components else "down"
                for c in mesh.components
                if c.host in self.on
            },
        )

    def _units(self, host: str) -> frozenset[str]:
        units = set()
        if host in self.running:
            units.add("consul")
        if host in self.clients:
            units.add("consul")
            for dc in self.mesh.datacenters:
                units.update(u for g in dc.gateways if g.host == host for u in g.units)
            units.update(u for s in self.mesh.services if s.host == host for u in s.units)
        if host in self.mesh.vault.nodes and host not in self.stopped:
            units.add("vault")
        return frozenset(units)

    def _consul(self, name: str) -> ConsulSeen:
        dc = self.mesh.datacenter(name)
        servers = set(dc.consul.servers)
        glass = self.glass.get(name) if servers & self.on else None
        mark = BreakGlass(glass - timedelta(hours=8), glass) if glass else None
        token = self.token if self.active() else "unknown"
        connect = "off" if mark else "on" if servers & self.on else "unknown"
        if name not in self.leader:
            running = bool(servers & self.running)
            state = (
                "unknown"
                if not servers & self.on
                else "storm"
                if running and name in self.ca_on_vault
                else "no_leader"
                if running
                else "down"
            )
            return ConsulSeen(state, connect=connect, break_glass=mark, token=token)  # type: ignore[arg-type]
        federated = name == self.mesh.primary or name in self.joined
        both = federated and name not in self.glass
        others = [d.name for d in self.mesh.datacenters if d.name != name]
        hosts = {*dc.consul.servers, *self.mesh.client_hosts(name)}
        primary = name == self.mesh.primary
        return ConsulSeen(
            "serving",
            up=frozenset(servers & self.running),
            connect=connect,  # type: ignore[arg-type]
            break_glass=mark,
            ca="off" if mark else self._ca(name),  # type: ignore[arg-type]
            acl="bootstrapped" if self.acl else "absent",
            token=token,  # type: ignore[arg-type]
            untokened=frozenset(hosts & self.bare) if self.active() else frozenset(),
            gateways={g.host: g.host in self.gateways for g in dc.gateways},
            reaches={
                other: both and self._ways(name, other) and (not primary or other in self.joined)
                for other in others
            },
            replication="current" if both and self._ways(name, self.mesh.primary) else "behind",
        )

    def _ca(self, name: str) -> str:
        if name not in self.ca_on_vault:
            return "builtin"
        return "ok" if self.active() else "failing"

    def _ways(self, *names: str) -> bool:
        return all(
            {g.host for g in self.mesh.datacenter(n).gateways} <= self.gateways and n in self.leader
            for n in names
        )

    def do(self, step: PlannedStep, options: Options, targets: int | None = None) -> None:
        """Carry a step out, on only the first `targets` of its targets if told."""
        names = step.targets[:targets]
        kind = step.id.partition(":")[0].replace("-", "_")
        for waited in (f"do_{kind}_{step.id.partition(':')[2]}", f"do_{kind}"):
            if method := getattr(self, waited, None):
                method(step, names, options)
                break
        else:
            raise AssertionError(f"no such step: {step.id}")
        self._settle()

    def do_power(self, step, names, options):
        for name in set(names) - self.on:
            self.on.add(name)  # enabled units start by themselves
            if any(name in d.consul.servers for d in self.mesh.datacenters):
                self.running.add(name)

    def do_hold(self, step, names, options):
        assert set(names) <= self.on
        self.running -= set(names)

    def do_start_vault(self, step, names, options):
        self.stopped -= set(names)

    def do_set_aside(self, step, names, options):
        assert options.discard_lost_init
        self.data -= set(names)
        self.open -= set(names)

    def do_init(self, step, names, options):
        assert set(self.mesh.vault.nodes) <= self.on
        assert not self.data
        assert options.initialise
        assert self.keys != "held"
        self.inits += 1
        self.data = {names[0]}
        self.keys = "held"
        self.setup = False

    def do_restore(self, step, names, options):
        assert self.snapshot
        assert set(names) <= self.on
        assert self.throwaway or not self.data
        self.throwaway = False
        self.data, self.open, self.setup = set(names[:1]), set(), True

    def do_unseal(self, step, names, options):
        assert self.keys == "held"
        assert set(names) <= self.on - self.stopped
        assert self.data
        self.data |= set(names)  # who has none joins whoever has
        self.open |= set(names)

    def do_setup(self, step, names, options):
        assert self.active()
        self.setup = True

    def do_renew(self, step, names, options):
        assert self.active()
        assert self.setup
        self.expired = {e for e in self.expired if e[0] not in names}

    def do_clients(self, step, names, options):
        assert set(names) <= self.on
        self.clients |= set(names)

    def do_consul(self, step, names, options):
        assert set(names) <= self.on
        if step.datacenter != self.mesh.primary:
            # A gateway that comes after the servers is dropped by their leader.
            assert self.mesh.primary in self.leader
            assert {g.host for d in self.mesh.datacenters for g in d.gateways} <= self.clients
        self.running |= set(names)
        self._settle()
        servers = self.mesh.datacenter(step.datacenter).consul.servers
        if len(self.running & set(servers)) == len(servers):
            assert step.datacenter in self.leader, (
                f"no leader in {step.datacenter}: started too soon"
            )

    def do_break_glass(self, step, names, options):
        self.glass[step.datacenter] = self.now + timedelta(hours=options.break_glass_hours)
        self.running |= set(names)
        self._settle()

    def do_unbreak(self, step, names, options):
        assert self.active()
        self.leader.discard(step.datacenter)
        del self.glass[step.datacenter]
        self.running |= set(names)
        self.gateways -= {g.host for g in self.mesh.datacenter(step.datacenter).gateways}
        self._settle()
        assert step.datacenter in self.leader

    def do_bootstrap(self, step, names, options):
        assert self.active()
        assert self.setup
        assert self.mesh.primary in self.leader
        assert not self.acl or self.token == "intended"
        self.acl, self.token = True, "stored"

    def do_tokens(self, step: PlannedStep, names: tuple[str, ...], options: Options) -> None:
        assert self.token == "stored"
        assert step.datacenter in self.leader
        if step.datacenter != self.mesh.primary:
            assert self._ways(self.mesh.primary)
        self.bare -= set(names)

    def do_agents(self, step, names, options):
        assert step.datacenter in self.ca_on_vault, "an agent would keep a leaf of the built-in CA"
        assert set(names) <= self.on & self.clients
        self.do_tokens(step, names, options)

    def do_ca(self, step, names, options):
        assert self.active()
        assert self.setup
        assert self.acl
        assert self.mesh.primary in self.leader
        servers = self.mesh.datacenter(step.datacenter).consul.servers
        assert not self.bare & set(servers)
        self.ca_on_vault.add(step.datacenter)

    def do_gateways(self, step, names, options):
        assert set(names) <= self.on & self.clients
        assert not set(names) & self.bare
        assert step.datacenter in self.leader
        self.gateways |= set(names)

    def do_secondary(self, step, names, options):
        assert self._ways(self.mesh.primary, step.datacenter)
        assert {step.datacenter, self.mesh.primary} <= self.ca_on_vault
        assert self.active()
        self.joined.add(step.datacenter)

    def do_intentions(self, step, names, options):
        assert self.mesh.primary in self.leader
        assert self.acl
        self.intentions = True

    def do_services(self, step, names, options):
        for name in names:
            host = name.rpartition("@")[2]
            assert host in self.on & self.clients - self.bare
            assert step.datacenter in self.leader
        self.services |= set(names)

    def do_component(self, step, names, options):
        assert self.mesh.primary in self.leader or not names[0].endswith("server")
        self.components |= set(names)

    def do_reach(self, step, names, options):
        pass

    def do_prove(self, step, names, options):
        pass
