"""Carrying out a cold boot's steps: Vault, from its processes to its set-up."""

from __future__ import annotations

from dataclasses import replace

from blocks.errors import MeshError, Refused
from flows.boot_steps import Steps
from tasks import hosts, snapshots, stopping, vault, vault_init, vault_setup
from tasks.planning.cold_boot import PlannedStep
from tasks.step import fan_out
from tasks.vault_restore import restore


class VaultSteps(Steps):
    """The steps until Vault serves and is set up as declared."""

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
            vault.unseal(
                self.connections,
                host,
                shares,
                reset_progress=self.options.allow_reset_unseal_progress,
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
