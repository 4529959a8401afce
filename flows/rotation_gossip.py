"""The gossip key under rotation: one key for all, so one role, step after step."""

from __future__ import annotations

from pydantic import SecretStr

from blocks.errors import MeshError
from flows.rotation_way import Outcome, Pace, Way
from flows.run import Run
from tasks import gossip_steps, gossip_survey
from tasks.gossip_steps import Item
from tasks.planning.gossip import ACTIONS, KINDS, ORDER, Do, plan_gossip
from tasks.planning.rotation_plan import Options, RotationPlan
from tasks.stopping import Stopped


class GossipKey(Way):
    """The key that all agents encrypt their gossip with: LAN of every datacenter, and the WAN."""

    kinds = KINDS

    def __init__(self, run: Run, management: SecretStr, pace: Pace) -> None:
        super().__init__(run, management, pace)
        self.items: list[Item] = []

    def survey(self, options: Options) -> RotationPlan:
        """What Vault, every agent and every disk have."""
        self.items = []
        if not (declared := self.declared(options)):
            return RotationPlan(actions=ACTIONS)
        (token,) = declared  # the topology has one at most
        seen = gossip_survey.look(self.run.connections, token, self.management)
        plan = plan_gossip(token, seen.gossip, options)
        self.items = [Item(p, token, seen.document) for p in plan.todo]
        for item in self.items:
            if self.pace.soak_seconds is not None:
                item.soak_seconds = self.pace.soak_seconds
        return plan

    def carry_out(self) -> None:
        """Step after step; where one fails all ends, with every key that was installed."""
        for item in self.items:
            item.begun = True
            for what in (step for step in ORDER if step in item.plan.steps):
                try:
                    self._do(what, item)
                except Stopped:
                    raise
                except MeshError as error:
                    item.failed_at, item.error = what, str(error)
                    return

    def _do(self, what: Do, item: Item) -> None:
        with self.run.stage(f"gossip: {what}") as stage:
            if what == "soak":
                gossip_steps.watch(
                    self.run.connections, self.management, item.soak_seconds, tell=stage.say
                )
            else:
                gossip_steps.carry_out(self.run.connections, what, item, self.management)

    def outcomes(self) -> list[Outcome]:
        """What became of it."""
        return [
            Outcome(
                item.plan.role,
                item.plan.role,
                item.plan.steps,
                item.begun,
                item.failed_at,
                item.error,
            )
            for item in self.items
        ]
