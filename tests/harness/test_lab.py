"""The harness itself: a lab of one's own, a boot, and nothing left of it."""

from __future__ import annotations

import pytest

from tests.harness.lab import Lab

pytestmark = pytest.mark.integration


def test_a_booted_lab_is_left_alone(small_lab: Lab) -> None:
    """A second run changes nothing, and a plan of one changes nothing either."""
    again = small_lab.run("cold-boot")
    planned = small_lab.run("cold-boot", plan=True)

    assert (again.status, again.outcome, again.mutating_calls) == (0, "nothing", 0), again
    assert (planned.status, planned.outcome) == (0, "planned"), planned


def test_a_frozen_server_comes_back(small_lab: Lab) -> None:
    """While it is frozen it answers nobody; afterwards the mesh is as it was."""
    with small_lab.frozen("us-consul-1", "consul") as pid:
        assert pid in small_lab.processes_of("us-consul-1")
    assert small_lab.run("cold-boot").status == 0
