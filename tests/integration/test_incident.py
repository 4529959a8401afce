"""A seal that somebody set on purpose is not undone without approval (B12)."""

from __future__ import annotations

import pytest

from tests.harness.lab import Lab
from tests.integration import changes
from tests.integration.outside import Outside

pytestmark = pytest.mark.integration

MARK = "/etc/vault.d/incident"


def test_an_incident_mark_keeps_vault_sealed_until_it_is_approved(dark: Lab):
    """Refused with the mark's own words, in the dark and with power; approved, it boots."""
    changes.talkative(dark)
    mark = dark.disk("vault-1", MARK)
    mark.write_text("key leak, ticket 4711, ask Rahel\n")
    try:
        first = changes.boot(dark)  # the disk can be read once the power is on
        second = changes.boot(dark)

        changes.ends(first, 1, "failed")
        changes.ends(second, 3, "refused")
        assert second.mutating_calls == 0
        for ran in (first, second):
            assert "ask Rahel" in ran.problem["error"]
            assert "unseal_incident=true" in ran.problem["do"]
        seen = Outside(dark)
        assert seen.health("vault-1") == 503
        assert seen.unsealing("vault-1").submitted == 0
        assert seen.pids()["us-consul-1", "consul"] is None
        changes.booted(dark, unseal_incident=True)
        assert mark.read_text().startswith("key leak")  # whoever set it takes it away
    finally:
        mark.unlink()
