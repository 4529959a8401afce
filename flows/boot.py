"""One cold boot: looking, planning, and its steps carried out each when all it waits for are done."""

from __future__ import annotations

from collections.abc import Callable

from flows.boot_consul import ConsulSteps
from flows.boot_vault import VaultSteps
from tasks import survey, vault_keys
from tasks.planning.cold_boot import Plan, PlannedStep, plan_cold_boot
from tasks.step import in_order


class Boot(VaultSteps, ConsulSteps):
    """One cold boot under way."""

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
