"""Which intermediate signs: ours is put right after a cut, somebody else's choice is left alone."""

from __future__ import annotations

import pytest

from deployments.lab.layout import PRIMARY
from tasks.connect_ca import FOLLOWS, ISSUER_PATH, TO_FOLLOW
from tests.harness.lab import Lab
from tests.integration import changes
from tests.integration.outside import Outside

pytestmark = pytest.mark.integration
MOUNT = f"connect-intermediate-{PRIMARY}"
MARK = ISSUER_PATH.format(datacenter=PRIMARY)


def issuers(lab: Lab) -> dict[str, object]:
    """What Vault says of the mount's issuers."""
    seen = Outside(lab)
    answer = seen.vault(f"{MOUNT}/config/issuers", seen.token())
    assert answer.status_code == 200, answer.status_code
    return dict(answer.json()["data"])


def pin(lab: Lab) -> None:
    """Make the issuer that signs now sign for good."""
    seen, now = Outside(lab), issuers(lab)
    body = {"default": now["default"], "default_follows_latest_issuer": False}
    answer = seen.vault(f"{MOUNT}/config/issuers", seen.token(), verb="POST", json=body)
    assert answer.status_code == 200, answer.status_code


def test_an_issuer_that_somebody_pinned_stays_pinned(healthy: Lab):
    """Zero changes on a healthy mesh, and the daily readiness says what it means."""
    assert issuers(healthy)["default_follows_latest_issuer"] is True
    assert Outside(healthy).secret(MARK) == FOLLOWS
    pin(healthy)

    ran = changes.ends(changes.boot(healthy), 0, "nothing")
    ready = healthy.run("boot-readiness")

    assert ran.mutating_calls == 0
    assert issuers(healthy)["default_follows_latest_issuer"] is False
    said = [line for line in ready.report["notices"] if "would not be the one" in line]
    assert len(said) == 1, ready.report["notices"]
    assert MOUNT in said[0]


def test_a_step_of_ours_that_was_cut_short_is_finished(healthy: Lab):
    """Killed after Consul filled the mount: the next run has the newest issuer sign."""
    seen = Outside(healthy)
    pin(healthy)
    noted = seen.vault(f"mesh/data/{MARK}", seen.token(), verb="POST", json={"data": TO_FOLLOW})
    assert noted.status_code == 200

    ran = changes.booted(healthy)

    assert "let newest issuer sign" in {row["action"] for row in ran.report["plan"]}
    assert issuers(healthy)["default_follows_latest_issuer"] is True
    assert seen.secret(MARK) == FOLLOWS
    assert changes.ends(changes.boot(healthy), 0, "nothing").mutating_calls == 0
