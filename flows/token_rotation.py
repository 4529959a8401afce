"""Replace the ACL tokens that are due, without a consumer noticing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from blocks.errors import BadInput
from blocks.nearest import unknown
from flows.report import PlanRow
from flows.rotation import AclTokens
from flows.rotation_way import Outcome, Pace, Way, row
from flows.run import Run
from flows.runbook import runbook
from tasks import token_survey
from tasks.planning.plan import Refusal
from tasks.planning.rotation_plan import Options, RotationPlan, table

# In the order in which they are carried out.
WAYS: tuple[type[Way], ...] = (AclTokens,)
NEVER_DUE = 1e9  # hours
MOST_TOLD = 20  # failures that are told one by one; the table of items has all


@runbook("token-rotation")
def token_rotation(
    run: Run,
    *,
    roles: list[str] = [],  # noqa: B006 - never changed; the form shows it
    older_than: float | None = None,
    soak: float | None = None,
    retire: list[str] = [],  # noqa: B006
    batch_size: int = 1000,
    max_in_flight: int = 32,
    error_threshold: int = 1,
) -> None:
    """
    Replace the ACL tokens that are due, without a consumer noticing.

    1. See that Vault serves, every datacenter has a leader and replication is current.
    2. See what Vault and Consul hold of each declared role; plan what is left to do.
    3. New tokens: stored in Vault, created, proven everywhere, promoted.
    4. Consumers adopt them; the old ones are disarmed, watched, and revoked.
    5. Tokens that Vault does not hold go; one live token a role is proven.

    A role that fails keeps its old token. Safe to kill at any moment and to run
    again: it looks, and carries on from there.

    Args:
        roles: Roles to look after; all that are declared if none is named.
        older_than: Tokens older than so many hours are due; each role's own age if not given.
        soak: Seconds that old tokens stand disarmed before they go; each role's own if not given.
        retire: Roles that the topology declares no more, whose tokens are to be revoked.
        batch_size: Roles that go through each step together.
        max_in_flight: Roles that are worked on at the same moment.
        error_threshold: Failures after which no further batch is begun.
    """
    _check(run, roles, retire, batch_size, max_in_flight, error_threshold)
    options = Options(tuple(roles), older_than, tuple(retire))
    with run.stage("survey"):
        if reasons := token_survey.unfit(run.connections):
            run.refuse(reasons)
        management = token_survey.management(run.connections)
        pace = Pace(batch_size, max_in_flight, error_threshold, soak)
        ways = [way for kind in WAYS if _concerns(way := kind(run, management, pace), options)]
        plans = [way.survey(options) for way in ways]
    if refusals := [reason for plan in plans for reason in plan.refusals]:
        run.refuse(refusals)
    blocked = [reason for plan in plans for reason in plan.blocked]
    if blocked and not any(plan.todo for plan in plans):
        run.refuse(blocked)
    notices = [notice for plan in plans for notice in plan.notices]
    run.show_plan(
        [PlanRow(**row) for row in table(plans)],
        notices=[*notices, *(f"left as it is: {reason}" for reason in blocked)],
    )
    run.stands = lambda: _stands(ways)
    run.recorder.items = lambda: [row(o) for way in ways for o in way.outcomes()]
    outcomes: list[Outcome] = []
    after = plans
    if any(plan.todo for plan in plans):
        for way in ways:
            if len([o for o in outcomes if o.failed_at]) < error_threshold:
                way.carry_out()
            outcomes += way.outcomes()
    # To verify, the ways look again, and know no more what they did.
    run.recorder.items = lambda: [row(o) for o in outcomes]
    with run.stage("verify"):
        if outcomes:
            again = replace(options, older_than_hours=NEVER_DUE)
            after = [way.survey(again) for way in ways]
        _verify(run, outcomes, blocked, after)


def _concerns(way: Way, options: Options) -> bool:
    """Whether there is anything for a way; that of ACL tokens looks for orphans too."""
    return isinstance(way, AclTokens) or bool(way.declared(options))


def _check(
    run: Run,
    roles: list[str],
    retire: list[str],
    batch_size: int,
    max_in_flight: int,
    error_threshold: int,
) -> None:
    known = [token.role for token in run.mesh.roles()]
    problems = [f"roles: {unknown('role', name, known)}" for name in roles if name not in known]
    problems += [
        f"retire: {name} is declared: take it out of the topology first"
        for name in retire
        if name in known
    ]
    for name, value, most in (
        ("batch_size", batch_size, 10000),
        ("max_in_flight", max_in_flight, 64),
        ("error_threshold", error_threshold, 1000),
    ):
        if not 1 <= value <= most:
            problems.append(f"{name}: {value} is not between 1 and {most}")
    if problems:
        raise BadInput(problems)


def _verify(
    run: Run,
    outcomes: Sequence[Outcome],
    blocked: Sequence[Refusal],
    after: Sequence[RotationPlan],
) -> None:
    """What failed, role by role, and that every other role has one live token and no more."""
    for reason in blocked:
        run.recorder.check(f"{reason.where} can be rotated", False, f"{reason.error}; {reason.do}")
    failed = [o for o in outcomes if o.failed_at]
    left_out = [o for o in outcomes if not o.begun]
    for one in failed[:MOST_TOLD]:
        run.recorder.check(f"{one.name} through {one.failed_at}", False, one.error)
    if len(failed) > MOST_TOLD:
        run.recorder.check(
            f"{len(failed) - MOST_TOLD} more", False, "the table of items has each with its error"
        )
    apart = {one.role for one in (*failed, *left_out)}
    left = [token for plan in after for token in plan.todo if token.role not in apart]
    kept = [token for plan in after for token in plan.tokens if not token.steps]
    run.recorder.check(
        "one live token a role, none orphaned",
        not left,
        "; ".join(f"{token.role}: {token.reason}" for token in left) or f"{len(kept)} roles",
    )
    done = [o for o in outcomes if o.begun and not o.failed_at]
    run.measures |= {
        "promoted": sum("promote" in o.steps for o in done),
        "revoked": sum("revoke" in o.steps for o in done),
        "failed": len(failed),
        "left_out": len(left_out),
    }


def _stands(ways: Sequence[Way]) -> str:
    outcomes = [outcome for way in ways for outcome in way.outcomes()]
    failed = sum(bool(outcome.failed_at) for outcome in outcomes)
    return (
        "every token that consumers read from Vault is as good as before; "
        f"{failed} of {len(outcomes)} roles failed, and their old tokens work"
    )
