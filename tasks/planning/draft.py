"""A plan while it is written: steps that wait only for steps already in it."""

from __future__ import annotations

from collections.abc import Iterable

from blocks import boot_graph
from blocks.topology import Datacenter, Mesh
from tasks.planning.options import Options
from tasks.planning.plan import PlannedStep, Stage
from tasks.planning.survey import Survey
from tasks.planning.vault_route import Route


class Draft:
    """
    Collects steps in an order that holds.

    A step may name what it waits for whether or not that was planned: what is
    not in the plan is true already. Waits that follow from others are left out.
    """

    def __init__(self) -> None:
        self.steps: dict[str, PlannedStep] = {}
        self.hosts: set[str] = set()  # those that a step changes something on
        self._before: dict[str, frozenset[str]] = {}

    def __contains__(self, identity: str) -> bool:
        return identity in self.steps

    def add(
        self,
        identity: str,
        stage: Stage,
        action: str,
        targets: Iterable[str],
        reason: str,
        waits_for: Iterable[str] = (),
        *,
        datacenter: str = "",
        expected: bool = False,
        hosts: Iterable[str] = (),
    ) -> None:
        """Add a step; one without targets is none."""
        names = tuple(dict.fromkeys(targets))
        if not names:
            return
        waits = [w for w in dict.fromkeys(waits_for) if w in self.steps]
        implied = frozenset().union(*(self._before[w] for w in waits))
        direct = tuple(w for w in waits if w not in implied)
        self._before[identity] = implied | set(waits)
        self.hosts.update(hosts)
        self.steps[identity] = PlannedStep(
            identity, stage, action, names, reason, direct, datacenter, expected
        )

    def last(self) -> list[str]:
        """The steps that no other waits for."""
        waited = {w for step in self.steps.values() for w in step.waits_for}
        return [identity for identity in self.steps if identity not in waited]


class Boot:
    """What the steps of a cold boot are written from, and the draft they go into."""

    # What everything that needs Vault waits for.
    vault_up = ("unseal", "restart:vault", "start:vault")

    def __init__(self, mesh: Mesh, survey: Survey, options: Options, vault: Route) -> None:
        self.mesh = mesh
        self.survey = survey
        self.options = options
        self.vault = vault
        self.draft = Draft()
        self.broken = vault.way == "broken"
        self.home = {host.name: dc.name for dc, host in mesh.hosts()}
        self.needs = boot_graph.needs(mesh)
        self.primary = mesh.datacenter(mesh.primary)

    def on(self, hosts: Iterable[str]) -> list[str]:
        """The steps after which these hosts are on and let us in."""
        homes = dict.fromkeys(self.home[name] for name in hosts)
        return [f"{kind}:{home}" for home in homes for kind in ("power", "reach")]

    def may_run(self, host: str, unit: str) -> bool:
        seen = self.survey.host(host)
        return seen.dark or seen.units is None or unit in seen.units

    def runs(self, host: str, unit: str) -> bool:
        """Whether a unit was seen to run."""
        return unit in (self.survey.host(host).units or ())

    def client_units(self, dc: Datacenter, host: str) -> list[str]:
        """The units of a host that carries a client agent."""
        units = [dc.consul.unit]
        units += [unit for g in dc.gateways if g.host == host for unit in g.units]
        units += [unit for s in self.mesh.services if s.host == host for unit in s.units]
        return list(dict.fromkeys(units))

    def consul_up(self, name: str) -> list[str]:
        return [f"unbreak:{name}", f"break-glass:{name}", f"consul:{name}"]

    def after(self, node: str) -> list[str]:
        """The steps after which all that a boot graph node needs is there."""
        steps: list[str] = []
        for needed in self.needs[node]:
            kind, _, name = needed.partition(":")
            match kind:
                case "power":
                    steps += [f"power:{name}", f"reach:{name}"]
                case "vault":
                    steps += [*self.vault_up, "setup"]
                case "consul" | "dns":
                    steps += [*self.consul_up(name), f"tokens:{name}", f"secondary:{name}"]
                case "service":
                    steps.append(f"services:{self.home[name.rpartition('@')[2]]}")
                case _:
                    steps.append(needed)
        return steps
