"""
kill -9 of a runbook after each of its mutating calls, and then again: every one, no sample.

Afterwards the servers are asked: one init, no root token, one token a role,
nothing left over (B1, B2, B6, B8, B9, B11).
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from signal import SIGKILL

import pytest

from tests.harness import chain, inject, world
from tests.harness.chain import Chain, Options
from tests.harness.inject import Identity
from tests.harness.lab import Lab, Ran
from tests.matrix.conftest import Booted, Tell

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(1800)]

INIT = Identity("vault vault-1", "PUT /v1/sys/init")
BOOTSTRAP = Identity("consul us-east-1", "PUT /v1/acl/bootstrap")
FIRST_SHARES = Identity(inject.FILES, "write ops-a.key")


def left_alone(lab: Lab) -> None:
    """One more run finds nothing to do."""
    ran = lab.run("cold-boot")
    assert (ran.outcome, ran.status) == ("nothing", 0), ran
    assert ran.mutating_calls == 0, ran


def test_day_0(fresh_lab: Lab, booted: Booted, folder: Path, tell: Tell) -> None:
    """A mesh that never ran; the answers of init and of ACL bootstrap are lost on the way."""
    refused: list[Ran] = []

    def discard(ran: Ran) -> Options:
        assert "discard_lost_init=true" in ran.problem["do"], ran
        assert "nothing was built on these keys" in ran.problem["do"], ran
        # A killed attempt to set the data aside leaves Vault stopped: to see, it is started.
        done = {change["did"] for change in ran.report["changes"]}
        assert ran.mutating_calls == 0 if ran.status == 3 else done == {"started vault"}, ran
        refused.append(ran)
        return {"initialise": True, "discard_lost_init": True}

    crashes = Chain(fresh_lab, "crash", folder)
    crashes.crash_everywhere({"initialise": True}, reference=booted.day_0, after_refusal=discard)
    _refused_after_lost_init(crashes)

    found = world.converged(fresh_lab)
    inits = inject.answered(crashes.trace)[INIT]
    assert found.set_aside == inits - 1, "an init whose data was not set aside"
    left_alone(fresh_lab)
    tell(f"day 0, {crashes.summary()}; {inits} inits, {len(refused)} refusals with the remedy")


def _refused_after_lost_init(crashes: Chain) -> None:
    """While keys are lost every run is refused or only starts Vault to see; no other run is."""
    done = iter(inject.read(crashes.folder / inject.DONE))
    lost: bool | None = False  # None: an approved discard was killed, before or after its effect
    for ran in crashes.ran:
        at = next(done) if ran.status == -SIGKILL else None
        if at is None and ran.status:
            assert lost is not False, f"refused without a reason: {ran}"
            lost = True
            continue
        if at and (at.identity == INIT or (at.identity == FIRST_SHARES and at.place == 2)):
            # The first shares alone are fewer than the threshold; written the first
            # time they are an intent only.
            lost = True
        elif "discard_lost_init=true" in ran.arguments:
            lost = None
        elif not at or not at.identity.server.startswith("ssh "):
            # Processes are started before Vault's data shows whether its keys are lost.
            assert not lost, f"went on although the keys are lost: {ran}"
            lost = False


def test_second_boot(healthy: Lab, folder: Path, tell: Tell) -> None:
    """Power back everywhere, and Consul starts by itself before Vault is unsealed."""
    for dc in healthy.topology.datacenters:
        for host in dc.consul.servers:
            healthy.enable(host, dc.consul.unit)
    healthy.power_cut()
    calls = _reference(healthy, folder)
    healthy.power_cut()
    crashes = Chain(healthy, "crash", folder / "crash")
    crashes.crash_everywhere(reference=calls, again=healthy.power_cut)
    assert world.converged(healthy).set_aside == 0
    left_alone(healthy)
    for dc in healthy.topology.datacenters:
        for host in dc.consul.servers:
            healthy.disable(host, dc.consul.unit)
    tell(f"second boot, {crashes.summary()}")


def _reference(lab: Lab, folder: Path, options: Options | None = None) -> Counter[Identity]:
    done = chain.reference(lab, folder / "reference", "cold-boot", options)
    return inject.answered(done.trace, mutating=True)


def test_break_glass(healthy: Lab, folder: Path, tell: Tell) -> None:
    """Consul without Connect while Vault stays away, and Connect put back afterwards."""
    glass: Options = {"fallback": "break-glass"}
    healthy.power_cut()
    breaking = _reference(healthy, folder / "break", glass)
    mending = _reference(healthy, folder / "mend")
    healthy.power_cut()

    crashes = Chain(healthy, "crash", folder / "breaking")
    crashes.crash_everywhere(glass, reference=breaking, again=healthy.power_cut)
    again = healthy.run("cold-boot", glass)
    assert (again.outcome, again.mutating_calls) == ("nothing", 0), again
    tell(f"break-glass, {crashes.summary()}")

    def break_again() -> None:
        healthy.power_cut()
        assert healthy.run("cold-boot", glass).status == 0

    crashes = Chain(healthy, "crash", folder / "mending")
    crashes.crash_everywhere(reference=mending, again=break_again)
    world.converged(healthy)
    left_alone(healthy)
    tell(f"Connect put back, {crashes.summary()}")


def test_restore_vault(healthy: Lab, folder: Path, tell: Tell) -> None:
    """Vault's data is gone, and a snapshot goes into a fresh cluster."""
    before = world.converged(healthy)
    saved = healthy.run("snapshot")
    assert saved.status == 0, saved
    restore: Options = {"fallback": "restore-vault"}

    def is_back(ran: Ran) -> Options:
        # The data is there again and open: no snapshot may go over it.
        assert "fallback=wait" in ran.problem["do"], ran
        assert ran.mutating_calls == 0, ran
        return {}

    _lose_vault(healthy)
    calls = _reference(healthy, folder, restore)
    _lose_vault(healthy)
    crashes = Chain(healthy, "crash", folder / "crash")
    crashes.crash_everywhere(
        restore, reference=calls, after_refusal=is_back, again=lambda: _lose_vault(healthy)
    )
    after = world.converged(healthy)
    assert (after.cluster, after.tokens) == (before.cluster, before.tokens)
    left_alone(healthy)
    tell(f"restore, {crashes.summary()}")


def _lose_vault(lab: Lab) -> None:
    lab.power_cut()
    data = lab.disk(lab.topology.vault.nodes[0], lab.topology.vault.data_dir)
    shutil.rmtree(data)
    data.mkdir()


def test_vault_maintenance(healthy: Lab, folder: Path, tell: Tell) -> None:
    """The CA goes to Consul's own provider before Vault work, and back afterwards."""
    calls = {}
    for direction in ("begin", "end"):
        done = chain.reference(
            healthy, folder / direction, "vault-maintenance", {"direction": direction}
        )
        calls[direction] = inject.answered(done.trace, mutating=True)
    for direction in ("begin", "end"):
        crashes = Chain(healthy, "crash", folder / f"{direction}-crash", "vault-maintenance")
        other = "end" if direction == "begin" else "begin"
        crashes.crash_everywhere(
            {"direction": direction},
            reference=calls[direction],
            again=lambda other=other: healthy.run("vault-maintenance", {"direction": other}),  # type: ignore[misc]
        )
        again = healthy.run("vault-maintenance", {"direction": direction})
        assert (again.outcome, again.mutating_calls) == ("nothing", 0), again
        tell(f"maintenance {direction}, {crashes.summary()}")
    world.converged(healthy)
    left_alone(healthy)
