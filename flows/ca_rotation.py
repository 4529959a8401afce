"""Consul's own Vault token under rotation: made by a token role, adopted everywhere, the old revoked."""

from __future__ import annotations

import time

from pydantic import SecretStr

from flows.rotation_way import Outcome, Pace, Way
from flows.run import Run, Stage
from tasks import ca_rotation, ca_survey, stopping
from tasks.ca_rotation import WATCH_SECONDS, CaItem
from tasks.planning.ca_rotation import ACTIONS, ORDER, Do, plan_ca_rotation
from tasks.planning.rotation_plan import Options, RotationPlan


class CaProvider(Way):
    """The one token that Consul signs leaves with, in every datacenter's CA configuration."""

    kinds = ("ca-provider",)

    def __init__(self, run: Run, management: SecretStr, pace: Pace) -> None:
        super().__init__(run, management, pace)
        self.item: CaItem | None = None
        self._begun = False

    def survey(self, options: Options) -> RotationPlan:
        """What Vault keeps of it, and what each datacenter and each server's file has."""
        self.item, self._begun = None, False
        declared = self.declared(options)
        if not declared:
            return RotationPlan(actions=ACTIONS)
        (token,) = declared
        seen = ca_survey.look(self.run.connections, self.management)
        plan = plan_ca_rotation(token, seen.tokens, options)
        for todo in plan.todo:
            self.item = CaItem(todo, token, seen.document)
        return plan

    def outcomes(self) -> list[Outcome]:
        """What became of it, if there was anything to do."""
        if (item := self.item) is None:
            return []
        role, steps = item.plan.role, item.plan.steps
        return [Outcome(role, role, steps, self._begun, item.failed_at, item.error)]

    def carry_out(self) -> None:
        """Step by step; a new token that fails its proof is withdrawn, and nobody ever had it."""
        if (item := self.item) is None:
            return
        self._begun = True
        for what in ORDER:
            if what in item.plan.steps and not item.failed_at:
                self._do(what, item)
        if item.failed_at in {"create", "prove"}:
            self._do("withdraw", item)

    def _do(self, what: Do, item: CaItem) -> None:
        with self.run.stage(f"{what} CA token", of=1) as stage:
            if what == "soak":
                self._soak(item, stage)
            else:
                ca_rotation.carry_out(self.run.connections, what, item, self.management)
            stage.done(count=int(not item.failed_at))

    def _soak(self, item: CaItem, stage: Stage) -> None:
        """Both tokens work, and every datacenter stays with the new one."""
        seconds = self.pace.soak_seconds
        ends = time.monotonic() + (item.token.soak_seconds if seconds is None else seconds)
        while (left := ends - time.monotonic()) > 0:
            ca_rotation.watch(self.run.connections, item, self.management)
            if item.failed_at:
                return
            stage.say(f"both tokens work, {left:.0f} s left")
            stopping.pause(min(WATCH_SECONDS, left))
