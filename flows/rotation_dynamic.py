"""Vault's Consul secrets engine under rotation: its roles, its access tokens, its oldest leases."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from pydantic import SecretStr

from blocks.dynamic_tokens import access_tokens, engine_roles
from blocks.errors import MeshError
from flows.rotation import AclTokens
from flows.rotation_way import Outcome, Pace
from flows.run import Run
from tasks import engine_steps, engine_survey, stopping, token_survey
from tasks.engine_steps import AccessItem, EngineRole, What
from tasks.planning.dynamic import EnginesSeen, due_leases, plan_engines
from tasks.planning.rotation_plan import Options, RotationPlan
from tasks.rotation_steps import Item


class SecretsEngines(AclTokens):
    """
    Mounts of the engine.

    An access token goes the way of any ACL token, but that the engine is told of it
    before it is promoted, and must mint with it and, later, without the old one.
    """

    kinds = ("dynamic",)

    def __init__(self, run: Run, management: SecretStr, pace: Pace) -> None:
        super().__init__(run, management, pace)
        self.roles: list[EngineRole] = []

    def survey(self, options: Options) -> RotationPlan:
        """What Vault's engine has, and of Consul's tokens those that it works with and minted."""
        self.items, self.roles, self._begun = [], [], []
        declared = self.declared(options)
        if not declared:
            return RotationPlan()
        access = access_tokens(self.run.mesh)
        held = token_survey.look(self.run.connections, access, self.management)
        mounts = engine_survey.look(
            self.run.connections, list(dict.fromkeys(token.mount for token in declared))
        )
        seen = EnginesSeen(held.tokens, mounts)
        plan = plan_engines(self.run.mesh, seen, options)
        self._prepare(seen, held, plan, options)
        return plan

    def _prepare(
        self, seen: EnginesSeen, held: token_survey.Seen, plan: RotationPlan, options: Options
    ) -> None:
        mesh = self.run.mesh
        access = {token.role: token for token in access_tokens(mesh)}
        roles = {token.role: token for token in engine_roles(mesh)}
        for found in plan.todo:
            if found.orphan:
                self.items.append(Item(found, None, token_survey.NOTHING))
            elif token := access.get(found.role):
                before = seen.mounts[token.mount].consul
                self.items.append(AccessItem(found, token, held.documents[found.role], before))
            else:
                role = roles[found.role]
                limit = options.older_than_hours
                limit = role.max_age_hours if limit is None else limit
                self.roles.append(EngineRole(found, role, due_leases(seen, role, limit)))

    def outcomes(self) -> list[Outcome]:
        """What became of each access token, role and orphan."""
        begun = {id(role) for role in self.roles if role.through}
        done = [
            Outcome(r.plan.role, r.name, r.plan.steps, id(r) in begun, r.failed_at, r.error)
            for r in self.roles
        ]
        return [*done, *super().outcomes()]

    @property
    def failed(self) -> list[Item]:
        """Those that ended before their end, by their own fault."""
        return [*super().failed, *(role for role in self.roles if role.failed_at)]

    def carry_out(self) -> None:
        """Roles as declared, access tokens, a credential of each role, and then the oldest leases."""
        self._at_engine("define", [r for r in self.roles if "define" in r.plan.steps])
        super().carry_out()
        if len(super().failed) >= self.pace.error_threshold:
            return
        self._at_engine("mint", [r for r in self.roles if "mint" in r.plan.steps])
        self._end_leases([r for r in self.roles if "end" in r.plan.steps])

    def _batch(self, batch: Sequence[Item]) -> None:
        failed = {item.plan.role for item in self.items if item.failed_at and not item.plan.orphan}
        # What the engine works with is known only where its access token went all the way.
        batch = [item for item in batch if not (item.plan.orphan and item.plan.role in failed)]
        self._do("put back", batch)
        spare = [i for i in batch if "withdraw" in i.plan.steps and i.document.slots.current]
        self._at_engine("configure back", spare)
        self._do("withdraw", batch)
        self._do("store", batch)
        self._do("create", batch)
        self._replicated()
        self._do("prove", batch)
        with self._told_back_on_failure(batch):
            self._at_engine("configure", [i for i in batch if "configure" in i.plan.steps])
        self._taken_back(batch)
        self._do("promote", batch)
        self._do("adopt", batch)
        with self._armed_again_on_failure(batch):
            self._do("disarm", batch)
            self._replicated()
            self._at_engine(
                "mint without the old",
                [i for i in batch if isinstance(i, AccessItem) and "soak" in i.plan.steps],
            )
            self._soak(batch)
        self._do("revoke", batch)
        self._do("forget", batch)

    def _taken_back(self, batch: Sequence[Item]) -> None:
        """
        Of what failed, the engine has the current token again before the new one goes.

        Where no current one lives, the new one stays pending: it may be all that the
        engine has, and the next run goes on with it.
        """
        failed = [i for i in batch if i.failed_at in {"create", "prove", "configure"}]
        self._withdraw(self._tell_back(failed))

    def _tell_back(self, items: Sequence[Item]) -> list[Item]:
        """The engine works with the current tokens of these, where they live; those that it does."""
        todo = [i for i in items if i.plan.replaces and i.document.slots.pending]
        if not todo:
            return []
        with self._stage("configure back", todo):
            engine_steps.carry_out(
                self.run.connections,
                "configure back",
                todo,
                self.management,
                workers=self.pace.max_in_flight,
            )
        return [i for i in todo if isinstance(i, AccessItem) and i.has_current]

    @contextmanager
    def _told_back_on_failure(self, batch: Sequence[Item]) -> Iterator[None]:
        try:
            yield
        except MeshError:
            # It may be left with an address at which nothing answers: its consumers would notice.
            with suppress(MeshError):
                self._tell_back(batch)
            raise

    def _at_engine(self, what: What, items: Sequence[Item]) -> None:
        if todo := [item for item in items if not item.failed_at]:
            with self._stage(what, todo) as stage:
                engine_steps.carry_out(
                    self.run.connections,
                    what,
                    todo,
                    self.management,
                    workers=self.pace.max_in_flight,
                )
                stage.done(count=sum(not item.failed_at for item in todo))

    def _end_leases(self, roles: Sequence[EngineRole]) -> None:
        todo = [role for role in roles if not role.failed_at]
        if not todo:
            return
        seconds = max(role.role.overlap_seconds for role in todo)
        with self._stage("overlap", todo) as stage:
            ends = time.monotonic() + seconds
            while (left := ends - time.monotonic()) > 0:
                stage.say(f"consumers ask for new leases, {left:.0f} s left")
                stopping.pause(min(1.0, left))
        self._at_engine("end", todo)
