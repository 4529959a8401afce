"""A mesh as far as its gossip goes: every agent's keyrings, every disk, Vault, and the mark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from blocks.topology import Mesh, parse
from tasks.planning.gossip import Do, plan_gossip
from tasks.planning.gossip_seen import DiskSeen, GossipSeen, Pool, Roll
from tasks.planning.rotation_plan import Options, RotationPlan
from tasks.planning.tokens_seen import Slots
from tests.planning.meshes import NOW, document

ROLE: dict[str, Any] = {"role": "gossip-key", "kind": "gossip", "path": "consul/gossip"}


def declared() -> dict[str, Any]:
    """The document of a mesh with a gossip key that rotates."""
    made = document(servers=1)
    for dc in made["datacenters"]:
        dc["consul"]["gossip_file"] = "/etc/consul.d/gossip.json"
    return made | {"tokens": [ROLE]}


def mesh() -> Mesh:
    return parse(declared())


@dataclass
class World:
    """The truth, and what each step does to it, one agent or one disk after the other."""

    mesh: Mesh
    key: str = "a"  # what the image of every host brought
    vault: Slots[str] = field(default_factory=Slots)
    age: timedelta = timedelta(days=31)
    frozen: bool = False
    rings: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # by pool and agent
    files: dict[str, str] = field(default_factory=dict)
    stored: int = 0

    def __post_init__(self) -> None:
        for dc in self.mesh.datacenters:
            for host in self.mesh.consul_hosts(dc.name):
                self.rings[dc.name, host] = [self.key]
                self.files[host] = self.key
            for host in dc.consul.servers:
                self.rings["WAN", host] = [self.key]

    def copy(self) -> World:
        """Another world just like it; the topology is shared."""
        return deepcopy(self, {id(self.mesh): self.mesh})

    # What a survey shows.

    def seen(self, **more: Any) -> GossipSeen:
        pools = []
        for name in dict.fromkeys(pool for pool, _ in self.rings):
            rings = [ring for (pool, _), ring in self.rings.items() if pool == name]
            keys = Counter(key for ring in rings for key in ring)
            pools.append(Pool(name, len(rings), keys, Counter(ring[0] for ring in rings)))
        since: datetime | None = NOW - self.age if self.vault.current else None
        found = GossipSeen(
            NOW, self.vault, since, "", Roll(), tuple(pools), self.disks(), self.frozen
        )
        return replace(found, **more)

    def disks(self) -> dict[str, DiskSeen]:
        return {
            host: DiskSeen(
                tuple(tuple(ring) for (_, agent), ring in self.rings.items() if agent == host),
                self.files[host],
            )
            for host in self.files
        }

    def plan(self, seen: GossipSeen | None = None, **options: Any) -> RotationPlan:
        token = self.mesh.token("gossip-key")
        return plan_gossip(token, seen or self.seen(), Options(**options))

    # What the steps do.

    def moves(self, step: Do) -> Iterator[Callable[[], None]]:
        """What a step changes, each change one that a kill can come after."""
        new = self.vault.pending or self.vault.current
        old = self.vault.current if self.vault.pending else self.vault.previous
        match step:
            case "take over":
                ((key,),) = {tuple(ring) for ring in self.rings.values()}
                yield lambda: self._keep(Slots(key))
                self.age = timedelta(0)
            case "store":
                self.stored += 1
                yield lambda: self._keep(self.vault.storing(f"new-{self.stored}"))
            case "freeze" | "thaw":
                yield lambda: setattr(self, "frozen", step == "freeze")
            case "install" | "use" | "remove":
                assert self.frozen
                for ring in self.rings.values():
                    yield lambda ring=ring: _change(ring, step, new, old)  # type: ignore[misc]
            case "switch":
                yield lambda: self._keep(self.vault.promoted(replaces=True))
                self.age = timedelta(0)
            case "write":
                for host in self.files:
                    yield lambda host=host: self.files.update({host: new})  # type: ignore[misc]
            case "forget":
                yield lambda: self._keep(self.vault.forgotten())

    def _keep(self, slots: Slots[str]) -> None:
        self.vault = slots

    def understood(self) -> bool:
        """Whether every agent can read what every other one of its pool sends."""
        return all(
            ring[0] in other
            for (pool, _), ring in self.rings.items()
            for (there, _), other in self.rings.items()
            if pool == there
        )


def _change(ring: list[str], step: str, new: str | None, old: str | None) -> None:
    if step == "install" and new and new not in ring:
        ring.append(new)
    elif step == "use" and new:
        ring.remove(new)  # an agent refuses a key that it does not have
        ring.insert(0, new)
    elif step == "remove" and old in ring:
        assert ring[0] != old  # likewise
        ring.remove(old)
