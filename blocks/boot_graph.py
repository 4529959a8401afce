"""
What must be up before what, and where that goes round in a circle.

Nodes are `power:DC`, `vault`, `consul:DC`, `dns:DC` (the names Consul serves
there), `gateways:DC`, `service:NAME@HOST` and `component:NAME`. An edge says
that one cannot boot before the other serves, and why. That Consul needs Vault
for its CA is such an edge; only a way back from Vault to Consul makes it the
boot lock. Pure: the topology in, lines out.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter

from blocks.boot_edges import Edge, edges, service_node
from blocks.errors import BadInput
from blocks.topology import Mesh


class BootGraph:
    """Every node of a mesh's boot and every edge with its reason."""

    def __init__(self, nodes: list[str], edges: list[Edge]) -> None:
        self.nodes = nodes
        known = set(nodes)
        self.edges = [edge for edge in edges if edge.needed in known]
        self.unknown = [edge for edge in edges if edge.needed not in known]

    def needs(self) -> dict[str, dict[str, str]]:
        """Each node with what it needs directly, and why."""
        found: dict[str, dict[str, str]] = {node: {} for node in self.nodes}
        for edge in self.edges:
            reasons = found[edge.needer]
            before = reasons.get(edge.needed)
            reasons[edge.needed] = f"{before}; {edge.reason}" if before else edge.reason
        return found

    def order(self) -> list[list[str]]:
        """
        Layers: every node stands after all it needs, as early as it can.

        Raises:
            BadInput: the graph has cycles; one line for each.
        """
        if found := self.cycles():
            raise BadInput(f"boot graph: {line}" for line in found)
        sorter = TopologicalSorter({node: list(needed) for node, needed in self.needs().items()})
        sorter.prepare()
        rank = {node: number for number, node in enumerate(self.nodes)}
        layers: list[list[str]] = []
        while sorter.is_active():
            ready = sorted(sorter.get_ready(), key=rank.__getitem__)
            layers.append(ready)
            sorter.done(*ready)
        return layers

    def cycles(self) -> list[str]:
        """
        One line for each thing to change until no cycle is left.

        A line names a cycle edge by edge, each with its reason, and the
        cheapest edge to cut.
        """
        lines: list[str] = []
        cut: set[str] = set()
        bonds = _core(_bonds(self.edges))
        # From the cheapest on: whatever circle a bond still closes when its turn
        # comes has no cheaper one left, so it is the one to cut.
        for bond in sorted(bonds, key=lambda b: b.cost):
            if bond.gone(cut):
                continue
            back = _path([b for b in bonds if not b.gone(cut)], bond.needed, bond.needer)
            if back is None:
                continue
            steps = " -> ".join(f"{b.needed} ({'; '.join(b.reasons)})" for b in [bond, *back])
            fresh = [text for text in bond.cuts if text not in cut]
            lines.append(f"{bond.needer} -> {steps}; cut: {'; and '.join(fresh)}")
            cut.update(bond.cuts)
        return lines


@dataclass(frozen=True)
class _Bond:
    """All edges between two nodes: it is gone when every one of them is cut."""

    needer: str
    needed: str
    reasons: tuple[str, ...]
    cuts: tuple[str, ...]
    cost: int

    def gone(self, cut: set[str]) -> bool:
        return all(text in cut for text in self.cuts)


def _bonds(edges: Iterable[Edge]) -> list[_Bond]:
    between: dict[tuple[str, str], list[Edge]] = defaultdict(list)
    for edge in edges:
        between[edge.needer, edge.needed].append(edge)
    return [
        _Bond(
            needer,
            needed,
            tuple(dict.fromkeys(e.reason for e in alike)),
            tuple(dict.fromkeys(e.cut for e in alike)),
            max(e.cost for e in alike),
        )
        for (needer, needed), alike in between.items()
    ]


def _core(bonds: list[_Bond]) -> list[_Bond]:
    """Only what a circle can go through; empty if there is none."""
    while True:
        needers, needed = {b.needer for b in bonds}, {b.needed for b in bonds}
        inner = [b for b in bonds if b.needer in needed and b.needed in needers]
        if len(inner) == len(bonds):
            return bonds
        bonds = inner


def _path(bonds: Iterable[_Bond], start: str, end: str) -> list[_Bond] | None:
    """The shortest way from one node to another; [] if they are one."""
    leaving: dict[str, list[_Bond]] = defaultdict(list)
    for bond in bonds:
        leaving[bond.needer].append(bond)
    came: dict[str, _Bond | None] = {start: None}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        if node == end:
            path: list[_Bond] = []
            while (last := came[node]) is not None:
                path.append(last)
                node = last.needer
            return path[::-1]
        for bond in leaving[node]:
            if bond.needed not in came:
                came[bond.needed] = bond
                queue.append(bond.needed)
    return None


def graph(mesh: Mesh) -> BootGraph:
    """The boot graph of a mesh whose names are all known."""
    nodes = [f"power:{d.name}" for d in mesh.datacenters]
    nodes.append("vault")
    for kind in ("consul", "dns", "gateways"):
        nodes += [f"{kind}:{d.name}" for d in mesh.datacenters]
    nodes += [service_node(s) for s in mesh.services]
    nodes += [f"component:{c.name}" for c in mesh.components]
    return BootGraph(nodes, list(edges(mesh)))


def needs(mesh: Mesh) -> dict[str, dict[str, str]]:
    """Each node of the boot with what it needs directly, and why."""
    return graph(mesh).needs()


def order(mesh: Mesh) -> list[list[str]]:
    """
    Layers of nodes in which the mesh boots.

    Raises:
        BadInput: it has cycles.
    """
    return graph(mesh).order()


def cycles(mesh: Mesh) -> list[str]:
    """The boot locks that the topology holds; see `BootGraph.cycles`."""
    return graph(mesh).cycles()


def problems(mesh: Mesh) -> Iterator[str]:
    """What of the boot graph makes a topology unusable, one line each."""
    found = graph(mesh)
    for edge in found.unknown:
        name = edge.needer.removeprefix("component:")
        yield f"components[{name}].needs: {edge.needed} is no node of the boot graph"
    for line in found.cycles():
        yield f"boot graph: {line}"
