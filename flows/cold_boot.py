"""Bring a whole mesh back from the dark, or up for the first time, and prove it."""

from __future__ import annotations

from blocks.errors import NotConverged
from flows.boot import Boot
from flows.report import PlanRow
from flows.run import Run
from flows.runbook import runbook
from tasks.planning.cold_boot import Fallback, Options, Plan
from tasks.planning.overview import overview

# Power, Vault, Consul, the rest: four, and some for what comes up otherwise than expected.
MOST_LOOKS = 8


@runbook("cold-boot", title="fallback {fallback}")
def cold_boot(
    run: Run,
    *,
    fallback: Fallback = "wait",
    initialise: bool = False,
    unseal_incident: bool = False,
    allow_reset_unseal_progress: bool = False,
    discard_lost_init: bool = False,
    without: list[str] = [],  # noqa: B006 - never changed; the form shows it
    without_holders: list[str] = [],  # noqa: B006 - likewise
    break_glass_hours: float = 8.0,
    host_deadline: float = 300.0,
    vault_deadline: float = 900.0,
    consul_deadline: float = 120.0,
) -> None:
    """
    Bring a whole mesh back from the dark, and prove it.

    1. See what is up in both clouds, in Vault and in Consul; plan what is left.
    2. Power on what is off; look again whenever more can be seen.
    3. Vault: unseal node by node with shares of several holders (or initialise).
    4. Consul in the primary: quorum, ACLs, its CA on Vault, a leaf really signed.
    5. Mesh gateways, then the other datacenters, proven in both directions.
    6. Services answer through the mesh, and denied pairs are denied.

    What is up already is left alone; on a healthy mesh nothing is changed. Safe
    to kill at any moment and to run again: it looks, and carries on from there.

    Args:
        fallback: While Vault is not back: wait for it; start Consul with Connect off (break-glass);
            or restore Vault's newest raft snapshot when its data is gone (restore-vault).
        initialise: Allow a Vault and a Consul that never ran to be initialised.
        unseal_incident: Approve the undoing of a seal that is marked as an incident.
        allow_reset_unseal_progress: Approve the reset of an unseal attempt that somebody began by hand.
        discard_lost_init: Approve setting aside the empty data of an init whose keys nobody has.
        without: Hosts or whole datacenters that cannot come back now, to go on without them.
        without_holders: Holders whose shares are not to be used.
        break_glass_hours: Hours after which a break-glass start counts as forgotten.
        host_deadline: Seconds from power on until a machine answers SSH.
        vault_deadline: Seconds that Consul's start is held for Vault at most.
        consul_deadline: Seconds until a datacenter's servers have quorum.
    """
    options = Options(
        initialise=initialise,
        fallback=fallback,
        allow_reset_unseal_progress=allow_reset_unseal_progress,
        unseal_incident=unseal_incident,
        discard_lost_init=discard_lost_init,
        break_glass_hours=break_glass_hours,
        host_deadline=host_deadline,
        vault_deadline=vault_deadline,
        consul_deadline=consul_deadline,
    )
    run.give_up(without)
    boot = Boot(run, options, tuple(without_holders))
    plan = boot.look("survey")
    run.show_plan(rows(plan), notices=plan.notices, header=overview(run.mesh, boot.seen))
    boot.before_init(plan)
    for _ in range(MOST_LOOKS):
        # What was hidden (a host's disk, Vault's secrets, Consul's CA) is looked at as
        # soon as it shows, and the plan made anew from it.
        within = plan.horizon()
        boot.carry_out(Plan(within))
        if within == plan.steps:
            return
        plan = boot.look("look again")
    raise NotConverged(
        f"still {len(plan.mutating)} steps to do after {MOST_LOOKS} looks",
        where=run.mesh.name,
        remedy="something undoes what is done: look at the last plan",
    )


def rows(plan: Plan) -> list[PlanRow]:
    """The plan as the report shows it."""
    return [PlanRow(**row) for row in plan.as_rows()]
