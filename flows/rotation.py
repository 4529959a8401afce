"""ACL tokens under rotation: batches of roles, step by step, the old armed again if anything fails."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from pydantic import SecretStr

from flows.rotation_way import Outcome, Pace, Way
from flows.run import Run, Stage
from tasks import federation, handing, rotation_steps, token_survey
from tasks.planning.rotation import KINDS, Do, plan_rotation
from tasks.planning.rotation_plan import Options, RotationPlan
from tasks.rotation_steps import Item


class AclTokens(Way):
    """Tokens of a role's own in Consul, each with its secret in Vault."""

    kinds = KINDS

    def __init__(self, run: Run, management: SecretStr, pace: Pace) -> None:
        super().__init__(run, management, pace)
        self.items: list[Item] = []
        self._begun: list[Item] = []
        self._index = 0
        self._suffix = ""
        self._whole: Stage | None = None  # of all batches, where there are several
        self._work = self._worked = 0  # steps of all roles

    def survey(self, options: Options) -> RotationPlan:
        """What Vault and Consul hold of these roles, and of tokens that no role has."""
        declared = self.declared(options)
        seen = token_survey.look(self.run.connections, declared, self.management)
        unable = handing.unable(self.run.connections, declared, self.management)
        plan = plan_rotation(self.run.mesh, replace(seen.tokens, not_to_hand=unable), options)
        known = {token.role: token for token in declared}
        self.items = [
            Item(token, None, token_survey.NOTHING)
            if token.orphan
            else Item(token, known[token.role], seen.documents[token.role])
            for token in plan.todo
        ]
        self._begun = []
        return plan

    @property
    def failed(self) -> list[Item]:
        """Those that ended before their end, by their own fault."""
        return [item for item in self.items if item.failed_at]

    def outcomes(self) -> list[Outcome]:
        """What became of each role and each orphan; those of a batch not begun too."""
        begun = set(map(id, self._begun))
        return [
            Outcome(
                item.plan.role,
                item.name,
                item.plan.steps,
                id(item) in begun,
                item.failed_at,
                item.error,
                item.is_done,
                item.plan.reason,
                item.plan.age,
                item.plan.old,
                item.new,
                round(max(0.0, item.ended - item.began), 3),
            )
            for item in self.items
        ]

    def carry_out(self) -> None:
        """All items in batches, until too many have failed; orphans when the roles are done."""
        size = self.pace.batch_size
        roles = [item for item in self.items if not item.plan.orphan]
        orphans = [item for item in self.items if item.plan.orphan]
        batches = [b[n : n + size] for b in (roles, orphans) for n in range(0, len(b), size)]
        if len(batches) <= 1:
            for batch in batches:
                self._begun += batch
                self._batch(batch)
            return
        self._work = sum(len(item.plan.steps) for item in self.items)
        with self.run.stage("tokens", of=len(self.items)) as self._whole:
            self._all(batches)

    def _all(self, batches: Sequence[Sequence[Item]]) -> None:
        assert self._whole
        for number, batch in enumerate(batches, 1):
            if len(self.failed) >= self.pace.error_threshold:
                more = len(self.items) - len(self._begun)
                self.run.notice(
                    f"stopped after {len(self.failed)} failures: {more} more were to do"
                )
                return
            self._begun += batch
            self._suffix = f" {number} of {len(batches)}"
            self._batch(batch)
            self._whole.done(f"batch{self._suffix}", count=sum(not i.failed_at for i in batch))
        self._whole.text = f"in {len(batches)} batches"

    def _batch(self, batch: Sequence[Item]) -> None:
        self._do("put back", batch)
        self._do("withdraw", batch)
        self._do("store", batch)
        self._do("create", batch)
        self._replicated()
        self._do("prove", batch)
        self._withdraw_unproven(batch)
        self._do("hand", batch)
        self._do("promote", batch)
        self._overlap(batch)
        self._do("adopt", batch)
        with self._armed_again_on_failure(batch):
            self._do("disarm", batch)
            self._replicated()
            self._do("use", batch)
            self._armed_again(item for item in batch if item.failed_at)
            self._soak(batch)
        self._do("revoke", batch)
        self._do("forget", batch)

    def _do(self, what: Do, batch: Sequence[Item]) -> None:
        if todo := _with(what, batch):
            with self._stage(what, todo) as stage:
                index = rotation_steps.carry_out(
                    self.run.connections,
                    what,
                    todo,
                    self.management,
                    workers=self.pace.max_in_flight,
                    done=self._counted(stage),
                )
                self._index = max(self._index, index)

    @contextmanager
    def _stage(self, name: str, items: Sequence[Item]) -> Iterator[Stage]:
        """A stage of its own; one of many batches shows in the stage of them all."""
        several, began = self._whole is not None, time.monotonic()
        if self._whole:
            self._whole.say(f"batch{self._suffix}: {name}")
        with self.run.stage(f"{name}{self._suffix}", of=len(items), part=several) as stage:
            yield stage
        took: dict[str, float] = self.run.measures.setdefault("seconds_by_step", {})
        took[name] = round(took.get(name, 0.0) + time.monotonic() - began, 2)

    def _counted(self, stage: Stage) -> Callable[[], None]:
        def count() -> None:
            stage.done()
            self._worked += 1  # a lost count would be a dot on a line of progress
            if self._whole:
                self._whole.advance(min(1.0, self._worked / self._work))

        return count

    def _replicated(self) -> None:
        """Every datacenter has what was changed in the primary."""
        index, self._index = self._index, 0
        for dc in self.run.mesh.secondaries if index else []:
            federation.await_index(
                self.run.connections,
                dc,
                self.management,
                index,
                deadline=rotation_steps.REPLICATED_DEADLINE,
            )

    def _withdraw_unproven(self, batch: Sequence[Item]) -> None:
        # What an earlier run may have handed out as the only one stays: it may be in use.
        unproven = [
            item
            for item in batch
            if item.failed_at in {"create", "prove"} and "hand" not in item.plan.steps
        ]
        self._withdraw(unproven)

    def _withdraw(self, failed: Sequence[Item]) -> None:
        """What is pending of these goes, although they have failed."""
        if failed:
            with self._stage("withdraw", failed):
                rotation_steps.carry_out(
                    self.run.connections,
                    "withdraw",
                    failed,
                    self.management,
                    workers=self.pace.max_in_flight,
                )

    def _overlap(self, batch: Sequence[Item]) -> None:
        if todo := [item for item in _with("adopt", batch) if item.role.overlap_seconds]:
            seconds = max(item.role.overlap_seconds for item in todo)
            with self._stage("overlap", todo) as stage:
                rotation_steps.overlap(self.run.connections, seconds, tell=stage.say)

    def _soak(self, batch: Sequence[Item]) -> None:
        if todo := _with("soak", batch):
            seconds = self.pace.soak_seconds
            if seconds is None:
                seconds = max(item.soak_seconds for item in todo)
            with self._stage("soak", todo) as stage:
                rotation_steps.watch(
                    self.run.connections, todo, self.management, seconds, tell=stage.say
                )

    @contextmanager
    def _armed_again_on_failure(self, batch: Sequence[Item]) -> Iterator[None]:
        try:
            yield
        except BaseException:
            # A stop too: nobody would watch the consumers from then on.
            self._armed_again(batch)
            raise
        self._armed_again(item for item in batch if item.failed_at)

    def _armed_again(self, items: Iterable[Item]) -> None:
        rotation_steps.rearm(self.run.connections, list(items), self.management)


def _with(what: Do, batch: Sequence[Item]) -> list[Item]:
    """Those whose way has this step, and that have not failed."""
    return [item for item in batch if what in item.plan.steps and not item.failed_at]
