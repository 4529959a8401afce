"""What the steps of one cold boot share: its run, what was seen, its secrets; and power."""

from __future__ import annotations

import contextlib
import threading

from pydantic import SecretStr

from blocks.errors import NotConverged
from flows.run import Run
from tasks import consul_acl, hosts, power, vault, vault_keys
from tasks.planning.cold_boot import Options, PlannedStep
from tasks.planning.survey import Survey
from tasks.step import fan_out
from tasks.vault import Share


class Steps:
    """
    One cold boot under way: what was seen, and the secrets it holds in memory.

    Each method that takes a step carries out one kind. All look before they
    act, so a step planned for what could not be seen does nothing where nothing
    is to do.
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
        def reach(name: str) -> None:
            host = self.mesh.host(name)
            hosts.await_ssh(self.connections, host, deadline=self.options.host_deadline)
            if name in self.mesh.vault.nodes and self.mesh.vault.unit in hosts.active(
                self.connections, host, [self.mesh.vault.unit]
            ):
                # It starts with its host: the look that follows is to see what its data says.
                with contextlib.suppress(NotConverged):
                    vault.await_listening(self.connections, name, deadline=5.0)

        fan_out(reach, step.targets, workers=32)

    def _hold(self, step: PlannedStep) -> None:
        unit = self.mesh.datacenter(step.datacenter).consul.unit
        fan_out(lambda h: hosts.stop(self.connections, self.mesh.host(h), [unit]), step.targets)
