"""Replace the ACL tokens that are due, without a consumer noticing."""

from __future__ import annotations

from dataclasses import replace

from blocks.errors import BadInput
from blocks.nearest import unknown
from flows.report import PlanRow
from flows.rotation import Pace, Rotation
from flows.run import Run
from flows.runbook import runbook
from tasks import token_survey
from tasks.planning.rotation import Options, RotationPlan, plan_rotation
from tasks.rotation_steps import Item

NEVER_DUE = 1e9  # hours


@runbook("token-rotation")
def token_rotation(
    run: Run,
    *,
    roles: list[str] = [],  # noqa: B006 - never changed; the form shows it
    older_than: float | None = None,
    soak: float | None = None,
    retire: list[str] = [],  # noqa: B006
    batch_size: int = 100,
    max_in_flight: int = 8,
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
    mesh, connections = run.mesh, run.connections
    _check(run, roles, retire, batch_size, max_in_flight, error_threshold)
    chosen = roles or [token.role for token in mesh.tokens]
    options = Options(tuple(roles), older_than, tuple(retire))
    with run.stage("survey"):
        if reasons := token_survey.unfit(connections):
            run.refuse(reasons)
        management = token_survey.management(connections)
        seen = token_survey.look(connections, chosen, management)
    plan = plan_rotation(mesh, seen.tokens, options)
    if plan.refusals:
        run.refuse(plan.refusals)
    if plan.blocked and not plan.todo:
        run.refuse(plan.blocked)
    run.show_plan(
        [PlanRow(**row) for row in plan.as_rows()],
        notices=[*plan.notices, *(f"left as it is: {reason}" for reason in plan.blocked)],
    )
    items = [
        Item(
            token,
            None if token.orphan else mesh.token(token.role),
            token_survey.NOTHING if token.orphan else seen.documents[token.role],
        )
        for token in plan.todo
    ]
    rotation = Rotation(
        run, items, management, Pace(batch_size, max_in_flight, error_threshold, soak)
    )
    run.stands = lambda: _stands(rotation)
    rotation.carry_out()
    with run.stage("verify"):
        after = plan
        if items:
            after = plan_rotation(
                mesh,
                token_survey.look(connections, chosen, management).tokens,
                replace(options, older_than_hours=NEVER_DUE),
            )
        _verify(run, rotation, plan, after)


def _check(
    run: Run,
    roles: list[str],
    retire: list[str],
    batch_size: int,
    max_in_flight: int,
    error_threshold: int,
) -> None:
    known = [token.role for token in run.mesh.tokens]
    problems = [f"roles: {unknown('role', name, known)}" for name in roles if name not in known]
    problems += [
        f"retire: {name} is declared: take it out of the topology first"
        for name in retire
        if name in known
    ]
    for name, value, most in (
        ("batch_size", batch_size, 1000),
        ("max_in_flight", max_in_flight, 64),
        ("error_threshold", error_threshold, 1000),
    ):
        if not 1 <= value <= most:
            problems.append(f"{name}: {value} is not between 1 and {most}")
    if problems:
        raise BadInput(problems)


def _verify(run: Run, rotation: Rotation, plan: RotationPlan, after: RotationPlan) -> None:
    """What failed, role by role, and that every other role has one live token and no more."""
    for reason in plan.blocked:
        run.recorder.check(f"{reason.where} can be rotated", False, f"{reason.error}; {reason.do}")
    for item in rotation.failed:
        run.recorder.check(f"{item.name} through {item.failed_at}", False, item.error)
    apart = {item.plan.role for item in (*rotation.failed, *rotation.left_out)}
    left = [token for token in after.todo if token.role not in apart]
    kept = [token for token in after.tokens if not token.steps]
    run.recorder.check(
        "one live token a role, none orphaned",
        not left,
        "; ".join(f"{token.role}: {token.reason}" for token in left) or f"{len(kept)} roles",
    )
    done = [item for item in rotation.begun if not item.failed_at]
    run.measures |= {
        "promoted": sum("promote" in item.plan.steps for item in done),
        "revoked": sum("revoke" in item.plan.steps for item in done),
        "failed": len(rotation.failed),
        "left_out": len(rotation.left_out),
    }


def _stands(rotation: Rotation) -> str:
    failed = len(rotation.failed)
    return (
        "every token that consumers read from Vault is as good as before; "
        f"{failed} of {len(rotation.items)} roles failed, and their old tokens work"
    )
