"""A machine that never comes back is named in time, and the rest comes up without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.harness.lab import Lab
from tests.integration import changes
from tests.integration.outside import ALLOWED, DENIED, Outside

pytestmark = pytest.mark.integration


@contextmanager
def broken(lab: Lab, host: str) -> Iterator[None]:
    """A host whose sshd cannot start: its host key is damaged."""
    key = lab.disk(host, "/etc/ssh/ssh_host_ed25519_key")
    kept = key.read_bytes()
    key.write_bytes(b"damaged\n")
    try:
        yield
    finally:
        key.write_bytes(kept)


def test_the_mesh_comes_up_without_an_instance_that_never_comes_back(dark: Lab):
    """EC2 starts it and it is stopped again: named after host_deadline; then left out."""
    with broken(dark, "us-app-2"):
        ran = changes.boot(dark, host_deadline=5)

        changes.ends(ran, 1, "failed")
        assert "us-app-2" in ran.problem["error"]
        assert "without=us-app-2" in ran.problem["do"]
        assert 5 <= ran.report["measures"]["seconds"] < 30
        assert Outside(dark).pids()["us-consul-1", "consul"] is None

        second = changes.ends(changes.boot(dark, without="us-app-2"), 0, "verified")

        assert any("us-app-2" in notice for notice in second.report["notices"])
        address = dark.layout.host("us-app-1").address
        for port, _ in ALLOWED:  # the other datacenter's instance answers
            answer = httpx.get(f"http://{address}:{port}/", timeout=10)
            assert (answer.status_code, answer.json()["datacenter"]) == (200, "eu-west-1")
        assert httpx.get(f"http://{address}:{DENIED}/", timeout=10).status_code == 403
        assert dark.processes_of("us-app-2") == []
    changes.booted(dark)
    assert Outside(dark).pids()["us-app-2", "payment-processor"]


def test_a_virtual_machine_that_does_not_start_is_named(dark: Lab):
    """Proxmox says at once that its start failed."""
    with broken(dark, "eu-app-1"):
        ran = changes.boot(dark, host_deadline=60)

    changes.ends(ran, 1, "failed")
    assert "eu-app-1 does not come up: task qmstart failed" in ran.problem["error"]
    assert "without=eu-app-1" in ran.problem["do"]
    assert ran.report["measures"]["seconds"] < 60
