"""Servers that accept connections and never answer: half-open, by SIGSTOP of the real ones."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from tests.harness import world
from tests.harness.lab import Lab
from tests.matrix.conftest import Tell

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(900)]

# Seconds that a run may take beyond the deadline it was given: the survey
# before, the last probe, and the start of Python on a busy machine.
SLACK = 75.0


@pytest.mark.parametrize(
    ("host", "unit", "deadline"),
    [
        ("vault-1", "vault", {"vault_deadline": 20}),
        ("us-consul-1", "consul", {"consul_deadline": 20}),
        ("eu-consul-1", "consul", {"consul_deadline": 20}),
    ],
)
def test_a_frozen_server(
    host: str, unit: str, deadline: Mapping[str, float], healthy: Lab, tell: Tell
) -> None:
    """The run ends within its deadline and names the server; thawed, the next one converges."""
    healthy.power_cut()
    began = time.monotonic()
    process = healthy.start(*healthy.arguments("cold-boot", deadline))
    with healthy.frozen(host, unit, within=120):
        ran = healthy.ended(process, timeout=300, began=began)
    assert ran.status == 1, ran
    where = healthy.topology.datacenter_of(host).name
    named = f"{ran.problem['where']} {ran.problem['error']}"
    assert host in named or where in named, ran
    assert ran.problem["do"], ran
    (seconds,) = deadline.values()
    assert ran.report["measures"]["seconds"] < seconds + SLACK, ran

    again = healthy.run("cold-boot")
    assert again.status == 0, again
    world.converged(healthy)
    tell(f"frozen {host}: ended after {ran.seconds:.0f} s: {ran.problem['error']}")
