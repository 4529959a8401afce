"""Carrying out the steps of a cold boot's plan, each when all it waits for are done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import SecretStr

from blocks.errors import MeshError, Refused
from blocks.topology import Datacenter
from flows.run import Run
from tasks import (
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
    power,
    prove,
    services,
    snapshots,
    stopping,
    survey,
    vault,
    vault_init,
    vault_keys,
    vault_setup,
)
from tasks.planning.cold_boot import Options, Plan, PlannedStep, plan_cold_boot
from tasks.planning.survey import Survey
from tasks.step import fan_out, in_order
from tasks.vault import Share
from tasks.vault_restore import restore


class Boot:
    """
    One cold boot under way: what was seen, and the secrets it holds in memory.

    Each method carries out one kind of step. All look before they act, so a
    step planned for what could not be seen does nothing where nothing is to do.
    """

    def __init__(self, run: Run, options: Options, without_holders: tuple[str, ...]) -> None:
        self.run, self.options, self.without = run, options, without_holders
        self.mesh, self.connections = run.mesh, run.connections
        self.primary = self.mesh.datacenter(self.mesh.primary)
        self.seen: Survey
        self._lock = threading.RLock()
        self._management: SecretStr | None = None
        self._shares: list[Share] | None = None
        self._initial_root: SecretStr | None = None
        self._numbers: dict[str, int] = {}

    def look(self, title: str) -> Plan:
        """
        What is left to do, from what is seen now.

        Raises:
            RefusedByGate: with every reason why nothing more may be done.
        """
        with self.run.stage(title):
            self.seen, access = survey.look(self.connections, without=self.without)
        self._management = access.consul
        plan = plan_cold_boot(self.mesh, self.seen, self.options)
        if plan.refusals:
            self.run.refuse(plan.refusals)
        self._numbers = self._numbers or plan.numbers
        if self.run.planned:  # the first plan's are shown with it
            for notice in plan.notices:
                if notice not in self.run.notices:
                    self.run.notice(notice)
        return plan

    def before_init(self, plan: Plan) -> None:
        """
        If Vault is to be initialised, prove first that each holder can keep its shares.

        Raises:
            RefusedByGate: with a line for each store that cannot; nothing was changed.
        """
        if not plan.stage("init"):
            return
        with self.run.stage("pre-flight of the key stores"):
            problems = vault_keys.preflight(self.connections)
        if problems:
            self.run.refuse(
                "Vault's keys could not be kept",
                details=problems,
                do="make these stores readable and writable: init gives the keys once and never again",
            )

    def carry_out(self, plan: Plan) -> None:
        """
        All steps of a plan, in its order, datacenters in parallel where it allows.

        A root token that init gave is revoked at the end, also of a failure.
        """
        try:
            in_order(plan.needs(), lambda identity: self._step(plan.step(identity)))
        finally:
            self._revoke_initial()

    def _step(self, step: PlannedStep) -> None:
        kind = step.id.partition(":")[0]
        act: Callable[[PlannedStep], None] = getattr(self, f"_{kind.replace('-', '_')}")
        title = f"{step.action} {step.datacenter}".strip()
        number = self._numbers.get(step.id, 0)
        with self.run.stage(title, step=number, of=len(step.targets)):
            act(step)

    # Secrets of this run, each got when it is first needed.

    def shares(self) -> list[Share]:
        """Key shares that belong together, as many as fit."""
        with self._lock:
            if self._shares is None:
                found = vault_keys.gather(self.connections, self.without)
                chosen, wrong = vault.choose_shares(found, self.mesh.vault.key_threshold)
                for holder in wrong:
                    self.run.notice(
                        f'holder "{holder}" has a share that does not belong with the others: '
                        "it was not used; correct it, or rekey Vault"
                    )
                self._shares = chosen
            return self._shares

    def vault_token(self) -> SecretStr:
        """The runbooks' own token, from their AppRole."""
        return self.connections.vault().login()

    def management(self) -> SecretStr:
        """Consul's management token, from Vault."""
        with self._lock:
            if self._management is None:
                self._management = consul_acl.stored_management(
                    self.connections, self.vault_token()
                )
            return self._management

    # Power.

    def _power(self, step: PlannedStep) -> None:
        dc = self.mesh.datacenter(step.datacenter)
        machines = [self.mesh.host(name) for name in step.targets]
        power.power_on(self.connections, dc, machines, deadline=self.options.host_deadline)
        self._reach(step)

    def _reach(self, step: PlannedStep) -> None:
        fan_out(
            lambda name: hosts.await_ssh(
                self.connections, self.mesh.host(name), deadline=self.options.host_deadline
            ),
            step.targets,
            workers=32,
        )

    def _hold(self, step: PlannedStep) -> None:
        unit = self.mesh.datacenter(step.datacenter).consul.unit
        fan_out(lambda h: hosts.stop(self.connections, self.mesh.host(h), [unit]), step.targets)

    # Vault.

    def _start(self, step: PlannedStep) -> None:
        unit = self.mesh.vault.unit
        fan_out(lambda h: hosts.start(self.connections, self.mesh.host(h), [unit]), step.targets)
        fan_out(self._listening, step.targets)  # the next look is to see its seal

    def _restart(self, step: PlannedStep) -> None:
        unit = self.mesh.vault.unit
        fan_out(lambda h: hosts.restart(self.connections, self.mesh.host(h), [unit]), step.targets)
        fan_out(self._listening, step.targets)

    def _set_aside(self, step: PlannedStep) -> None:
        fan_out(lambda h: vault_init.set_aside(self.connections, h), step.targets)

    def _init(self, _: PlannedStep) -> None:
        fan_out(self._listening, self.mesh.vault.nodes)
        self._initial_root = vault_init.initialise(
            self.connections, discard=self.options.discard_lost_init
        )
        # It is initialised now, whatever a later look of this run finds.
        self.options = replace(self.options, initialise=False, discard_lost_init=False)

    def _restore(self, _: PlannedStep) -> None:
        snapshot = snapshots.newest(self.mesh, "vault")
        if snapshot is None:
            raise Refused("the snapshot is gone", where="vault", remedy="run it again")
        restore(self.connections, snapshot)
        # Its data is back: a later look of this run finds a Vault to be unsealed.
        self.options = replace(self.options, fallback="wait")

    def _listening(self, host: str) -> vault.Node:
        return vault.await_listening(self.connections, host, deadline=self.options.vault_deadline)

    def _unseal(self, step: PlannedStep) -> None:
        nodes = fan_out(self._listening, step.targets)
        if self.mesh.vault.seal != "shamir":
            vault.await_active(self.connections, deadline=self.options.vault_deadline)
            return
        todo = [n.host for n in nodes if not n.unsealed]
        if not todo:
            return
        if all(n.state == "uninitialised" for n in vault.look_at_all(self.connections)):
            raise Refused(
                "every node says uninitialised",
                where="vault",
                remedy="if this mesh never ran: --set initialise=true; "
                "if its data is gone: --set fallback=restore-vault",
            )
        shares = self.shares()
        # The node that holds data opens first; one that says uninitialised joins it.
        order = sorted(nodes, key=lambda n: n.state == "uninitialised")
        leader = next(n.host for n in order if n.host in todo)
        followers = [n for n in todo if n != leader]
        joined = [n.host for n in nodes if n.state == "sealed" and n.host in followers]
        at_once = [leader, *joined]

        def unseal(host: str) -> None:
            foreign = self.seen.node(host).foreign
            vault.unseal(
                self.connections,
                host,
                shares,
                reset_progress=foreign and self.options.allow_reset_unseal_progress,
                deadline=self.options.vault_deadline,
            )

        # One node shows whether the shares open it, so that a wrong one costs one failure.
        unseal(at_once[0])
        fan_out(unseal, at_once[1:])
        vault.await_active(self.connections, deadline=self.options.vault_deadline)
        fan_out(unseal, [h for h in followers if h not in joined])

    def _setup(self, _: PlannedStep) -> None:
        vault.await_active(self.connections, deadline=self.options.vault_deadline)
        initial = self._initial_root
        if initial is None:
            vault_init.cancel_attempt(self.connections)
        with vault_init.root_token(self.connections, self.shares(), initial) as root:
            self._initial_root = None  # from here on its end is the `with`'s
            vault_setup.set_up(self.connections, root)
            vault_setup.ensure_ca_token(self.connections, root)
            vault_init.revoke_forgotten(self.connections, root)
        vault_setup.finish(self.connections, self.vault_token())

    def _revoke_initial(self) -> None:
        if self._initial_root is None:
            return
        try:
            with stopping.shielded():  # a run told to stop still takes its key with it
                vault_init.revoke(self.connections, self._initial_root, deadline=15.0)
        except MeshError as error:
            self.run.notice(
                f"the initial root token could not be revoked ({error.message}): "
                "the next run with initialise=true finds and revokes it"
            )

    # Certificates.

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

    # Consul.

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
            consul.await_acl_mode(self.connections, self.primary, self.management())
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
        dc, token = self.mesh.datacenter(step.datacenter), self.management()
        if dc is not self.primary:
            # The primary signs its intermediate for whoever has the replication token.
            federation.await_reach(self.connections, dc, self.primary, token)
            federation.await_replication(self.connections, self.primary, dc, token)
        self._put_on_vault(dc)

    def _put_on_vault(self, dc: Datacenter) -> None:
        ca_token = vault_setup.ca_token(self.connections, self.vault_token())
        connect_ca.ensure_on_vault(self.connections, dc, self.management(), ca_token)
        connect_ca.follow_latest_issuer(self.connections, dc, self.vault_token())
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
        federation.await_reach(self.connections, dc, self.primary, token)
        federation.await_replication(self.connections, self.primary, dc, token)
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
