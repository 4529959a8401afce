"""Carrying out a cold boot's steps: Consul, the gateways, and all that runs on the mesh."""

from __future__ import annotations

from typing import Any

from blocks.errors import Absent, Forbidden, Invalid
from blocks.topology import Datacenter
from flows.boot_steps import Steps
from tasks import (
    acl_replication,
    agents,
    break_glass,
    certificates,
    components,
    connect_ca,
    consul,
    consul_acl,
    federation,
    hosts,
    intentions,
    prove,
    services,
    survey,
    vault_setup,
)
from tasks.planning.cold_boot import PlannedStep
from tasks.step import fan_out


class ConsulSteps(Steps):
    """The steps once Vault serves, or without it."""

    def _renew(self, step: PlannedStep) -> None:
        due = [
            c
            for c in self.mesh.certificates
            if c.host in step.targets and c.issued_by == "vault" and c.used_by == "consul"
        ]

        def renew(certificate: Any) -> None:
            seen = certificates.look(self.connections, certificate)
            if certificates.ends_within(seen, 0):
                certificates.renew(self.connections, certificate, self.vault_token())
                unit = self.mesh.datacenter_of(certificate.host).consul.unit
                agents.restart_if_running(self.connections, certificate.host, unit)

        fan_out(renew, due)

    def _clients(self, step: PlannedStep) -> None:
        units = survey.units_of(self.mesh)
        fan_out(
            lambda h: hosts.start(self.connections, self.mesh.host(h), units[h]),
            step.targets,
            workers=32,
        )

    def _consul(self, step: PlannedStep) -> None:
        dc = self.mesh.datacenter(step.datacenter)
        unit = dc.consul.unit
        if dc.name != self.mesh.primary:
            try:
                token = self.management()
            except (Absent, Forbidden, Invalid):
                return  # the primary's ACLs come first, which the next look sees
            consul.await_acl_mode(self.connections, self.primary, token)
        fan_out(
            lambda h: hosts.start(self.connections, self.mesh.host(h), [unit]),
            step.targets,
            workers=32,
        )
        if dc.name != self.mesh.primary:
            # Before a leader stands: one that begins to replicate as an anonymous
            # caller waits minutes before it looks again.
            agents.equip_bare_servers(
                self.connections,
                dc,
                management=self.management,
                vault_token=self.vault_token,
            )
        consul.await_quorum(self.connections, dc, deadline=self.options.consul_deadline)

    def _break_glass(self, step: PlannedStep) -> None:
        dc = self.mesh.datacenter(step.datacenter)
        expires = break_glass.start_without_connect(
            self.connections, dc, hours=self.options.break_glass_hours
        )
        leader = consul.await_quorum(self.connections, dc, deadline=self.options.consul_deadline)
        self.run.notice(
            f"BREAK-GLASS in {dc.name} until {expires:%Y-%m-%d %H:%M} UTC: Connect is off, leader {leader}; "
            "no new leaf certificates, no gateways. Run cold-boot again as soon as Vault can come back"
        )

    def _unbreak(self, step: PlannedStep) -> None:
        dc = self.mesh.datacenter(step.datacenter)
        break_glass.put_connect_back(self.connections, dc)
        consul.await_quorum(self.connections, dc, deadline=self.options.consul_deadline)

    def _bootstrap(self, _: PlannedStep) -> None:
        token = consul_acl.bootstrap(self.connections, self.primary, self.vault_token())
        with self._lock:
            self._management = token
        consul_acl.ensure_policies(self.connections, self.primary, token)

    _sweep = _bootstrap  # what is there already is kept

    def _tokens(self, step: PlannedStep) -> None:
        dc = self.mesh.datacenter(step.datacenter)
        agents.equip(
            self.connections,
            dc,
            list(step.targets),
            management=self.management(),
            vault_token=self.vault_token(),
        )

    _agents = _tokens

    def _ca(self, step: PlannedStep) -> None:
        dc = self.mesh.datacenter(step.datacenter)
        if dc is not self.primary:
            # The primary signs its intermediate for whoever has the replication token.
            self._await_replicated(dc)
        self._put_on_vault(dc)

    def _await_replicated(self, dc: Datacenter) -> None:
        token = self.management()
        acl_replication.ensure_as_made(self.connections, self.primary, dc, token, self.vault_token)
        federation.await_reach(self.connections, dc, self.primary, token)
        federation.await_replication(self.connections, self.primary, dc, token)

    def _put_on_vault(self, dc: Datacenter) -> None:
        ca_token = vault_setup.ca_token(self.connections, self.vault_token())
        connect_ca.ensure_on_vault(
            self.connections, dc, self.management(), ca_token, self.vault_token()
        )
        connect_ca.await_leaf(self.connections, dc, self.management())

    def _gateways(self, step: PlannedStep) -> None:
        dc = self.mesh.datacenter(step.datacenter)
        self._bring_up(dc, {g.host: g.units for g in dc.gateways if g.host in step.targets})
        federation.await_gateways(self.connections, dc, self.management())

    def _bring_up(self, dc: Datacenter, units: dict[str, list[str]]) -> None:
        """Start these units on each host, then see that the agents there carry their tokens."""
        names = list(units)
        fan_out(lambda h: hosts.start(self.connections, self.mesh.host(h), units[h]), names)
        agents.equip_clients(
            self.connections,
            dc,
            names,
            management=self.management(),
            vault_token=self.vault_token,
        )

    def _secondary(self, step: PlannedStep) -> None:
        (name,) = step.targets
        dc, token = self.mesh.datacenter(name), self.management()
        self._await_replicated(dc)
        if self.seen.datacenter(self.mesh.primary).ca == "builtin":
            connect_ca.await_leaf(self.connections, dc, token)
        else:
            self._put_on_vault(dc)
        federation.await_reach(self.connections, self.primary, dc, token)

    # Services.

    def _intentions(self, _: PlannedStep) -> None:
        token = self.management()
        intentions.ensure_declared(self.connections, self.primary, token)
        fan_out(
            lambda dc: intentions.await_replicated(self.connections, self.primary, dc, token),
            self.mesh.secondaries,
        )

    def _services(self, step: PlannedStep) -> None:
        dc = self.mesh.datacenter(step.datacenter)
        mine = [s for s in self.mesh.services if f"{s.name}@{s.host}" in step.targets]
        units: dict[str, list[str]] = {}
        for service in mine:
            units.setdefault(service.host, [dc.consul.unit]).extend(service.units)
        self._bring_up(dc, units)
        fan_out(
            lambda s: services.await_registered(self.connections, dc, s, self.management()), mine
        )

    def _component(self, step: PlannedStep) -> None:
        component = next(c for c in self.mesh.components if c.name in step.targets)
        host = self.mesh.host(component.host)
        hosts.start(self.connections, host, component.units)
        components.await_answering(self.connections, component)

    # Proof.

    def _prove(self, _: PlannedStep) -> None:
        if self.options.fallback == "break-glass":
            prove.without_connect(self.connections)
        else:
            prove.prove(self.connections, self.management(), self.vault_token())
