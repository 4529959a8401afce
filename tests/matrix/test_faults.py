"""
Everything that can befall a call, once at every call of a boot, mutating or reading (B10).

A run in which much goes wrong may fail, as long as it says so and what to do;
the runs after it come to the same end, in a bounded number and time. On a
healthy mesh nothing of it is a reason to change anything (B9).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness import chain, inject, world
from tests.harness.chain import Chain, Options
from tests.harness.inject import Identity, Kind
from tests.harness.lab import Lab, Ran
from tests.matrix.conftest import Booted, Tell

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1200)]

KINDS: tuple[Kind, ...] = ("lost", "hang", "reset", "truncated", "500", "503", "429")
INIT = Identity("vault vault-1", "PUT /v1/sys/init")
BOOTSTRAP = Identity("consul us-east-1", "PUT /v1/acl/bootstrap")
# Carried out although no answer, or none that can be used, came back.
DONE_UNHEARD = ("lost", "truncated")


@pytest.mark.parametrize("kind", KINDS)
def test_every_call(kind: Kind, booted: Booted, fresh_lab: Lab, folder: Path, tell: Tell) -> None:
    """Day 0, a healthy mesh, and the boot after a power cut."""
    lab, refused = fresh_lab, []

    def discard(ran: Ran) -> Options | None:
        if "discard_lost_init=true" not in ran.problem["do"]:
            return None
        assert ran.mutating_calls == 0, ran
        refused.append(ran)
        return {"initialise": True, "discard_lost_init": True}

    day_0 = Chain(lab, kind, folder / "day-0")
    # A 500 is retried by nobody, so that each ends a run.
    day_0.until_quiet(
        {"initialise": True}, after_refusal=discard, most=400 if kind == "500" else 60
    )
    left = chain.atoms(_mutating(booted, kind)) - chain.atoms(day_0.hits)
    assert not left, f"nothing went wrong at {left}"
    found = world.converged(lab)
    inits = inject.carried_out(day_0.trace, kind)[INIT]
    assert found.set_aside == inits - 1, "an init whose data was not set aside"
    if kind in DONE_UNHEARD:
        _lost_init(day_0, refused)
        _lost_bootstrap(day_0)
    tell(f"day 0, {day_0.summary()}; {inits} inits")

    healthy = Chain(lab, kind, folder / "healthy")
    healthy.until_quiet(most=200)
    changing = inject.answered(healthy.trace, mutating=True)
    assert not changing, f"a healthy mesh was changed:\n{inject.table(changing)}"
    tell(f"healthy mesh, {healthy.summary()}")

    lab.power_cut()
    second = Chain(lab, kind, folder / "second")
    second.until_quiet(most=200)
    after = world.converged(lab)
    assert (after.cluster, after.tokens) == (found.cluster, found.tokens)
    tell(f"second boot, {second.summary()}")


def _mutating(booted: Booted, kind: Kind) -> set[Identity]:
    """The calls of day 0 that this kind is for."""
    return {
        this
        for this in booted.day_0
        if this.server != inject.FILES
        and not (kind in inject.STATUSES and this.server.startswith("ssh "))
    }


def _lost_init(day_0: Chain, refused: list[Ran]) -> None:
    """The run that lost the answer halts and names the remedy; so does the next, untouched."""
    halted = [ran for ran in day_0.ran if "discard_lost_init=true" in ran.problem.get("do", "")]
    assert [ran.status for ran in halted if ran not in refused] == [1], day_0.told()
    assert refused, "the run after a lost init was not refused"
    lost = next(ran for ran in halted if ran.status == 1)
    assert "init" in lost.problem["error"]
    assert "unsealed" not in {change["did"] for change in lost.report["changes"]}


def _lost_bootstrap(day_0: Chain) -> None:
    """It was bootstrapped twice, with a reset on the leader's disk, and by itself."""
    carried_out = inject.carried_out(day_0.trace, day_0.kind)
    assert carried_out[BOOTSTRAP] >= 2
    assert any("acl-bootstrap-reset" in this.what for this in carried_out)
    # That the token of the first one is gone, `world.converged` has seen.
