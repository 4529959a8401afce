"""Plans as a table, and names on one line."""

from __future__ import annotations

import pytest

from tasks.planning.plan import Plan, PlannedStep, Refusal, compress


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ([], ""),
        (["vault-1"], "vault-1"),
        (["vault-1", "vault-2"], "vault-1 vault-2"),
        (["us-consul-1", "us-consul-2", "us-consul-3"], "us-consul-1..3"),
        (["a-1", "a-2", "a-3", "b", "c-7"], "a-1..3 b c-7"),
        (["a-1", "a-3", "a-4", "a-5"], "a-1 a-3..5"),
        (["web-08", "web-09", "web-10"], "web-08..10"),
        (["web-8", "web-9", "web-10"], "web-8..10"),
        (["x-1", "x-02", "x-03"], "x-1 x-02 x-03"),
        (["pay@app-1", "pay@app-2", "pay@app-3"], "pay@app-1..3"),
        (["b-2", "b-1", "b-3"], "b-2 b-1 b-3"),
    ],
)
def test_runs_of_names_are_ranges(names: list[str], line: str):
    assert compress(names) == line


def step(identity: str, stage="consul", action="start", waits=(), reason="why") -> PlannedStep:
    return PlannedStep(identity, stage, action, (identity,), reason, waits)


def test_steps_alike_share_a_number_and_a_row():
    plan = Plan(
        (
            step("us-1", "power", "power on", reason="off in aws"),
            step("us-2", "power", "power on", reason="off in aws"),
            step("eu-1", "power", "power on", reason="off in proxmox"),
            step("hold", "hold", "hold", waits=("us-1",)),
            step("start", waits=("hold", "eu-1")),
        )
    )
    assert [(r["step"], r["targets"], r["waits_for"]) for r in plan.as_rows()] == [
        (1, "us-1 us-2", "-"),
        (1, "eu-1", "-"),
        (2, "hold", "1"),
        (3, "start", "1, 2"),
    ]


def test_the_horizon_ends_where_something_was_hidden():
    plan = Plan(
        (
            step("on", "power", "power on"),
            step("hold", "hold", "hold", waits=("on",)),
            step("unseal", "unseal", "unseal", waits=("on",)),
            step("elsewhere", "services", "start services"),
            step("consul", waits=("hold", "unseal")),
            step("prove", "prove", "prove", waits=("consul", "elsewhere")),
        )
    )
    assert [s.id for s in plan.horizon()] == ["on", "hold", "elsewhere"]


def test_consul_starts_as_soon_as_vault_serves_and_what_it_hides_is_looked_at():
    plan = Plan(
        (
            step("unseal", "unseal", "unseal"),
            step("setup", "setup", "set up", waits=("unseal",)),
            step("us", "consul", "start consul", waits=("unseal",)),
            step("eu", "consul", "start consul", waits=("us",)),
            step("late", "consul", "start consul", waits=("setup",)),
            step("federate", "secondary", "federate", waits=("eu",)),
        )
    )
    assert [s.id for s in plan.horizon()] == ["unseal", "setup", "us", "eu"]


def test_a_refusal_says_what_where_and_what_to_do():
    assert str(Refusal("it is shut", "open it", "vault")) == "vault: it is shut; do: open it"
