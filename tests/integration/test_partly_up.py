"""Whatever part of a mesh is up is left as it is, and the rest comes back to it."""

from __future__ import annotations

import pytest

from deployments.lab.layout import SECONDARY
from tests.harness.lab import Lab, Ran
from tests.integration import changes
from tests.integration.outside import Outside, assert_up

pytestmark = pytest.mark.integration


def stop(lab: Lab, host: str, *units: str) -> None:
    """Stop units of a host, as somebody on it would."""
    status, said = Outside(lab).clouds.run(host, f"systemctl stop {' '.join(units)}")
    assert status == 0, said


def assert_only(lab: Lab, before: dict[tuple[str, str], int | None], restarted: set[str]) -> None:
    """These units (`host unit`) have new processes, all others have the ones they had."""
    after = Outside(lab).pids()
    assert all(after.values()), [k for k, pid in after.items() if pid is None]
    assert {f"{h} {u}" for (h, u), pid in after.items() if pid != before[h, u]} == restarted


def brought_back(lab: Lab) -> Ran:
    ran = changes.booted(lab)
    assert_up(lab)
    return ran


def test_consul_comes_back_to_a_vault_that_serves(healthy: Lab):
    """Both datacenters' servers are down: only they are started."""
    before = Outside(healthy).pids()
    stop(healthy, "us-consul-1", "consul")
    stop(healthy, "eu-consul-1", "consul")

    ran = brought_back(healthy)

    assert_only(healthy, before, {"us-consul-1 consul", "eu-consul-1 consul"})
    assert not {"power on", "unseal"} & {row["action"] for row in ran.report["plan"]}


def test_one_datacenter_comes_back_to_the_other(healthy: Lab):
    """The secondary is dark: nothing of the primary is touched."""
    before = Outside(healthy).pids()
    healthy.power_cut(SECONDARY)

    brought_back(healthy)

    gone = {f"{h.name} {u}" for h in healthy.layout.in_datacenter(SECONDARY) for u in h.units}
    assert_only(
        healthy, before, gone | {f"{h.name} sshd" for h in healthy.layout.in_datacenter(SECONDARY)}
    )


def test_services_come_back_to_a_mesh_that_serves(healthy: Lab):
    """Programs and sidecars are down, their agents are not: only those are started."""
    before = Outside(healthy).pids()
    stopped = {
        "us-app-1": ("web-portal", "web-portal-sidecar", "reporting-agent-sidecar"),
        "eu-app-1": ("payment-processor",),
    }
    for host, units in stopped.items():
        stop(healthy, host, *units)

    brought_back(healthy)

    assert_only(healthy, before, {f"{h} {u}" for h, units in stopped.items() for u in units})
