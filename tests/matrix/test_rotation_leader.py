"""
Consul's leader dies in the middle of a rotation, with three servers a datacenter (R1, R4, R6).

Consumers use their tokens 20 times a second through the agents of their own
hosts: those that any server may answer see nothing; of those that ask the
leader, none is ever refused, and what fails is the election's.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deployments.lab.layout import DATACENTERS, PRIMARY, SECONDARY
from tests.harness.lab import Lab, NewLab
from tests.integration import changes
from tests.integration.tokens import Consumer, Tokens, consuming, role
from tests.lab.machine import until
from tests.matrix.conftest import Tell
from tests.matrix.test_rotation_outages import CREATED, rotating

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(600)]

DISARMED = {"after": "PUT /v1/acl/token/"}
REVOKING = {"before": "DELETE /v1/acl/token/"}
# What agents and servers say while there is no leader; a refused token is 403.
ELECTION = ("500 No cluster leader", "500 rpc error", "500 leadership lost", "500 ACL resolution")


@pytest.fixture
def full(session_lab: NewLab) -> Iterator[Tokens]:
    """A lab with three servers a role, up, with the policy of the test's roles."""
    lab: Lab = session_lab("full")
    lab.boot()
    tokens = Tokens(lab)
    tokens.set_up()
    yield tokens
    lab.down()


def leader(full: Tokens) -> str:
    """The host of the primary's leader, once all its servers say the same."""
    servers = full.seen.servers(PRIMARY)

    def found() -> str:
        # Of all: one that was killed answers again within a second or two.
        try:
            said = {str(full.seen.consul(h, "status/leader").json()) for h in servers}
        except httpx.TransportError:
            return ""
        names = [h for h in servers if any(full.seen.layout.host(h).address in s for s in said)]
        return names[0] if len(said) == 1 and names else ""

    return until(found, "a leader", 60)


def test_the_leader_dies_at_each_stage(full: Tokens, folder: Path, tell: Tell) -> None:
    """The run ends well, or says what stands; one more run finishes."""
    mesh = full.declare(role(soak_seconds=1))
    changes.ends(full.rotate(mesh), 0, "verified")
    strict = [Consumer(full.lab, dc) for dc in DATACENTERS]
    any_server = [Consumer(full.lab, dc, stale=True) for dc in DATACENTERS]
    ends = []
    with consuming(*strict, *any_server):
        for stage, halt in (("create", CREATED), ("soak", DISARMED), ("revoke", REVOKING)):
            before = full.document()
            run = rotating(full, folder / stage, mesh, halt)
            run.wait()
            dead = leader(full)
            pid = full.lab.pid(dead, "consul")
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            run.go_on()
            ran = run.ended()

            ends.append(f"{stage} {ran.outcome}")
            assert ran.status in {0, 1}, ran
            if ran.status:
                assert ran.problem["error"], ran
                assert ran.problem["stands"], ran
            assert full.lab.run("cold-boot").status == 0  # nothing else starts it again
            leader(full)
            if ran.status == 0:
                full.one_live("payments")
            else:
                changes.ends(full.rotate(mesh), 0, "verified")
            assert full.document()["accessor"] != before["accessor"], stage
            assert full.self_status(SECONDARY, before["secret"]) == 403
    assert [c.failures for c in any_server] == [[], []]
    failed = [failure for consumer in strict for failure in consumer.failures]
    assert [f for f in failed if not f.startswith(ELECTION)] == []
    uses = sum(c.uses for c in any_server)
    tell(
        f"leader killed in a rotation: {', '.join(ends)}; {uses} uses by any server, none failed; "
        f"{len(failed)} of {sum(c.uses for c in strict)} by the leader, all while it was elected"
    )
