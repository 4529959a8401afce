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
from collections.abc import Iterator
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
        self._from: dict[str, list[Edge]] = defaultdict(list)
        for edge in self.edges:
            self._from[edge.needer].append(edge)

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
        layers: list[list[str]] = []
        while sorter.is_active():
            ready = sorted(sorter.get_ready(), key=self.nodes.index)
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
        # From the cheapest on: whatever circle an edge still closes when its turn
        # comes has no cheaper edge left, so it is the one to cut.
        for edge in sorted(self.edges, key=lambda e: e.cost):
            back = None if edge.cut in cut else self._path(edge.needed, edge.needer, cut)
            if back is None:
                continue
            steps = " -> ".join(f"{e.needed} ({e.reason})" for e in [edge, *back])
            lines.append(f"{edge.needer} -> {steps}; cut: {edge.cut}")
            cut.add(edge.cut)
        return lines

    def _path(self, start: str, end: str, cut: set[str]) -> list[Edge] | None:
        """The shortest way between two nodes without what is cut; [] if they are one."""
        came: dict[str, Edge | None] = {start: None}
        queue = deque([start])
        while queue:
            node = queue.popleft()
            if node == end:
                path: list[Edge] = []
                while (edge := came[node]) is not None:
                    path.append(edge)
                    node = edge.needer
                return path[::-1]
            for edge in self._from[node]:
                if edge.needed not in came and edge.cut not in cut:
                    came[edge.needed] = edge
                    queue.append(edge.needed)
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
