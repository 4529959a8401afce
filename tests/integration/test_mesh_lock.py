"""The lock of a mesh in its own Consul: rotations from two machines at once, on real servers."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deployments.lab.layout import CONSUL_HTTPS_PORT, DATACENTERS, PRIMARY, SECONDARY
from tests.harness import meanwhile
from tests.harness.lab import Lab, Ran
from tests.harness.meanwhile import Halted
from tests.integration import changes
from tests.integration.tokens import Tokens, role
from tests.lab.machine import until

pytestmark = pytest.mark.integration

LOCK = "kv/mesh-runbooks/lock"
CREATED = {"after": "PUT /v1/acl/token"}


class Machines:
    """Rotations of one role from several machines: each with a journal and a lock file of its own."""

    def __init__(self, tokens: Tokens, folder: Path) -> None:
        self.tokens, self.folder = tokens, folder

    def words(self, machine: str, **options: object) -> list[str]:
        def change(document: dict[str, Any]) -> None:
            document["tokens"] = [role(overlap_seconds=0.5, soak_seconds=0.5)]
            document["journal"] = str(self.folder / machine / "journal.jsonl")

        mesh = changes.variant(self.tokens.lab, change, f"rotation-{machine}")
        words = self.tokens.lab.arguments("token-rotation", {"older_than": 0, **options})
        return [*words, "--mesh", str(mesh)]

    def halted(
        self, machine: str, at: dict[str, Any], *, hasty: bool = False, **options: object
    ) -> Halted:
        """One that stands still at a call."""
        run = meanwhile.start(
            self.tokens.lab,
            self.folder / f"halts-{machine}",
            self.words(machine, **options),
            at,
            hasty=hasty,
        )
        run.wait()
        return run

    def run(self, machine: str, *more: str, **options: object) -> Ran:
        return self.tokens.lab.mesh(*self.words(machine, **options), *more)

    def lock(self) -> dict[str, Any]:
        """The lock's entry in Consul; empty if it was never taken."""
        tokens = self.tokens
        answer = tokens.seen.consul(tokens.server(PRIMARY), LOCK, tokens.management)
        return dict(answer.json()[0]) if answer.status_code == 200 else {}

    def sessions(self) -> list[dict[str, Any]]:
        tokens = self.tokens
        found = tokens.seen.consul(tokens.server(PRIMARY), "session/list", tokens.management)
        return [s for s in found.json() if s["Name"] == "mesh-runbooks"]

    def end_session(self) -> None:
        """As Consul itself does when nobody has renewed it."""
        host = self.tokens.seen.layout.host(self.tokens.server(PRIMARY))
        for session in self.sessions():
            self.tokens.seen.http.put(
                f"https://{host.address}:{CONSUL_HTTPS_PORT}/v1/session/destroy/{session['ID']}",
                headers={"X-Consul-Token": self.tokens.management},
            )


@pytest.fixture
def machines(healthy: Lab, tmp_path: Path) -> Iterator[Machines]:
    """A healthy lab on which the role has its token; as it was afterwards."""
    tokens = Tokens(healthy)
    tokens.tidy()
    tokens.set_up()
    machines = Machines(tokens, tmp_path)
    changes.ends(machines.run("first"), 0, "verified")
    yield machines
    machines.end_session()
    tokens.tidy()


def test_the_second_machine_is_refused_with_who_holds_the_mesh(machines: Machines):
    """One works, the other changes nothing and learns by whom; a plan says so only."""
    fence = machines.lock()["LockIndex"]
    first = machines.halted("a", CREATED)

    second = machines.run("b")
    plan = machines.run("b", "--plan")
    first.go_on()
    ran = first.ended()

    changes.ends(second, 3, "refused")
    assert second.mutating_calls == 0
    who = f"started by {getpass.getuser()} on {socket.gethostname()} (pid {first.process.pid})"
    assert (
        f"another runbook holds the mesh: token-rotation {ran.report['run_id'][:8]}, {who}"
        in (second.problem["error"])
    )
    assert "since 2" in second.problem["error"]
    assert "60 s at most" in second.problem["do"]
    changes.ends(plan, 0, "planned")
    assert any(who in notice for notice in plan.report["notices"])
    changes.ends(ran, 0, "verified")
    machines.tokens.one_live("payments")
    assert (machines.sessions(), "Session" in machines.lock()) == ([], False)
    assert machines.lock()["LockIndex"] == fence + 1
    assert machines.tokens.management not in second.out + second.err + str(machines.lock())


def test_of_two_begun_at_the_same_moment_one_works(machines: Machines):
    before = machines.tokens.document()
    both = [machines.tokens.lab.start(*machines.words(name)) for name in "ab"]
    ran = [machines.tokens.lab.ended(process, timeout=60) for process in both]

    assert sorted(r.status for r in ran) in ([0, 3], [0, 0]), ran  # [0, 0]: one after the other
    for refused in (r for r in ran if r.status == 3):
        assert "the mesh" in refused.problem["error"]
        assert refused.mutating_calls == 0
    machines.tokens.one_live("payments")
    assert machines.tokens.self_status(SECONDARY, before["secret"]) == 403


def test_a_plan_that_another_run_made_stale_is_not_carried_out(machines: Machines):
    """It was planned before the other began, and begins when the other has ended."""
    late = machines.halted("late", {"before": "PUT /v1/session/create"})
    changes.ends(machines.run("early"), 0, "verified")
    held = machines.tokens.document()
    late.go_on()

    ran = late.ended()
    changes.ends(ran, 3, "refused")
    assert "another run held the mesh since this one looked at it" in ran.problem["error"]
    assert ran.mutating_calls == 0
    assert machines.tokens.document() == held


def test_one_that_was_killed_holds_up_its_own_machine_not_at_all(machines: Machines):
    """The file of this machine tells that it is dead; another machine waits for its session."""
    before = machines.tokens.document()
    killed = machines.halted("a", CREATED)
    killed.kill()

    other = machines.run("b")
    again = machines.run("a")

    changes.ends(other, 3, "refused")
    assert f"(pid {killed.process.pid})" in other.problem["error"]
    changes.ends(again, 0, "verified")
    machines.tokens.one_live("payments")
    assert machines.tokens.document()["accessor"] != before["accessor"]
    assert (machines.sessions(), "Session" in machines.lock()) == ([], False)


@pytest.mark.matrix
def test_one_that_was_killed_holds_up_other_machines_until_its_session_ends(machines: Machines):
    """Twice the TTL on 1.8.7; made shorter here, it is the least that Consul takes."""
    killed = machines.halted("a", CREATED, hasty=True)
    killed.kill()
    began = time.monotonic()

    while (ran := machines.run("b")).status == 3:
        assert time.monotonic() - began < 2 * meanwhile.HASTY_TTL + 10
        assert f"(pid {killed.process.pid})" in ran.problem["error"]

    changes.ends(ran, 0, "verified")
    assert time.monotonic() - began > meanwhile.HASTY_TTL
    machines.tokens.one_live("payments")


def test_a_run_that_loses_the_lock_stops_and_arms_the_old_token(machines: Machines):
    """What it would do from then on, another may be doing."""
    before = machines.tokens.document()
    process = machines.tokens.lab.start(*machines.words("a", soak=60))
    tokens = machines.tokens
    until(lambda: not tokens.reads(PRIMARY, before["secret"]), "the old one to be disarmed", 30)

    machines.end_session()
    ran = tokens.lab.ended(process, timeout=15)

    changes.ends(ran, 1, "failed")
    assert "stopped by the loss of the mesh's lock in Consul" in ran.problem["error"]
    for dc in DATACENTERS:
        until(lambda dc=dc: tokens.reads(dc, before["secret"]), f"it to work in {dc}")  # type: ignore[misc]
    changes.ends(machines.run("b", soak=0), 0, "verified")
    tokens.one_live("payments")


def test_a_rotation_with_nothing_to_do_takes_no_lock(machines: Machines):
    """And a boot of a healthy mesh never does: their calls change nothing at all."""
    index = machines.lock()["LockIndex"]

    ran = machines.run("a", older_than=1000)
    boot = machines.tokens.lab.run("cold-boot")

    changes.ends(ran, 0, "nothing")
    changes.ends(boot, 0, "nothing")
    assert (machines.lock()["LockIndex"], machines.sessions()) == (index, [])
