"""With three servers a role: nodes in different states, and one of three that is gone."""

from __future__ import annotations

import shutil

import pytest

from deployments.lab.layout import DATACENTERS
from tests.harness.lab import Lab
from tests.integration import changes
from tests.integration.outside import Outside, assert_up

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]


@pytest.fixture
def up(full_lab: Lab) -> Lab:
    """The full lab, up and verified."""
    if full_lab.directory not in changes.HEALTHY:
        full_lab.boot()
    changes.HEALTHY.discard(full_lab.directory)
    return full_lab


def systemctl(lab: Lab, host: str, words: str) -> None:
    status, said = Outside(lab).clouds.run(host, f"systemctl {words}")
    assert status == 0, said


def test_three_nodes_come_back_from_the_dark(up: Lab):
    """B2, B3: each node is given as many shares as it needs, and none after it is open."""
    changes.talkative(up)
    up.power_cut()

    changes.booted(up, initialise=True)

    assert_up(up)
    for host in Outside(up).vaults:
        log = Outside(up).unsealing(host)
        assert (log.submitted, log.failures, log.opened, log.after) == (3, 0, 1, 0), host


def test_only_the_sealed_node_of_three_is_given_shares(up: Lab):
    """B6: an active node and a standby count as unsealed; their processes are left alone."""
    seen = Outside(up)
    sealed = next(h for h in seen.vaults if seen.health(h) == 429)
    changes.talkative(up)
    systemctl(up, sealed, "restart vault")
    before = seen.pids()
    given = {h: seen.unsealing(h).submitted for h in seen.vaults if h != sealed}

    ran = changes.booted(up)

    assert_up(up)
    assert (seen.unsealing(sealed).submitted, seen.unsealing(sealed).after) == (3, 0)
    assert {h: seen.unsealing(h).submitted for h in given} == given
    assert seen.pids() == before
    assert [c["target"] for c in ran.report["changes"] if "unseal" in c["did"]] == [sealed]


def test_a_node_without_data_joins_the_others_and_nothing_is_initialised(up: Lab):
    """B1: one node that says initialised is enough, whatever is allowed."""
    cluster = Outside(up).seal_status("vault-1")["cluster_id"]
    up.power_cut()
    data = up.disk("vault-1", "/opt/vault")
    shutil.rmtree(data)
    data.mkdir()

    ran = changes.booted(up, initialise=True)

    assert_up(up)
    assert {Outside(up).seal_status(h)["cluster_id"] for h in Outside(up).vaults} == {cluster}
    assert "initialise" not in {row["action"] for row in ran.report["plan"]}


def test_nodes_without_data_alone_are_not_initialised_over_one_that_is_gone(up: Lab):
    """B1: the only node with data is given up; the holders' shares say that there was one."""
    up.power_cut()
    data = [up.disk(host, "/opt/vault") for host in ("vault-2", "vault-3")]
    for folder in data:
        folder.rename(folder.with_name("vault.kept"))
        folder.mkdir()

    ran = up.run("cold-boot", {"initialise": True, "without": ["vault-1"]})

    assert ran.status != 0, ran
    assert ran.problem["do"], ran
    for host in ("vault-2", "vault-3"):
        assert Outside(up).health(host) == 501
    up.power_cut()
    for folder in data:
        shutil.rmtree(folder)
        folder.with_name("vault.kept").rename(folder)


def test_one_consul_server_that_is_down_is_started_alone(up: Lab):
    before = Outside(up).pids()
    systemctl(up, "us-consul-2", "stop consul")

    ran = changes.booted(up)

    assert_up(up)
    after = Outside(up).pids()
    assert [k for k, pid in after.items() if pid != before[k]] == [("us-consul-2", "consul")]
    assert {c["target"] for c in ran.report["changes"]} == {"us-consul-2"}


def test_a_healthy_mesh_of_three_is_left_alone(up: Lab):
    """B9."""
    seen = Outside(up)
    before = seen.pids()
    kept = {
        dc: seen.consul(seen.servers(dc)[0], "acl/tokens", seen.management()).json()
        for dc in DATACENTERS
    }

    ran = changes.ends(up.run("cold-boot"), 0, "nothing")

    assert ran.mutating_calls == 0
    assert seen.pids() == before
    assert kept == {
        dc: seen.consul(seen.servers(dc)[0], "acl/tokens", seen.management()).json()
        for dc in DATACENTERS
    }
