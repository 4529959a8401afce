"""
The lock of Vault and Consul, on three real servers of each, and the ways out.

Consul's CA is Vault. With Vault sealed no leader can be established: servers
elect without end. Each test brings that about first and sees it on the
servers, then lets a runbook out of it.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from blocks.errors import MeshError
from tasks import connect_ca, consul, hosts, vault
from tasks.break_glass import FILE
from tasks.step import fan_out
from tests.harness.lab import Lab
from tests.integration.outside import Outside, assert_up

pytestmark = [pytest.mark.integration, pytest.mark.matrix, pytest.mark.timeout(600)]

US, EU = "us-east-1", "eu-west-1"


@pytest.fixture
def locked(full_lab: Lab) -> Iterator[Lab]:
    """A full lab in the lock: everything on, Vault sealed, Consul's servers started."""
    full_lab.power_cut()
    full_lab.power_on()
    with full_lab.connections() as connections:
        mesh = connections.topology
        servers = mesh.datacenter(US).consul.servers
        fan_out(lambda h: hosts.start(connections, mesh.host(h), ["consul"]), servers)
        nodes = fan_out(lambda h: vault.await_listening(connections, h), mesh.vault.nodes)
        assert {n.state for n in nodes} == {"sealed"}
        _await_storm(full_lab, servers)
    yield full_lab
    full_lab.boot()


def _await_storm(lab: Lab, servers: list[str]) -> None:
    """See the lock on the servers themselves: leadership is won and cannot be established."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        logs = "".join(lab.log(host, "consul", 400) for host in servers)
        if logs.count("failed to establish leadership") > 20:
            break
        time.sleep(0.5)
    else:
        raise AssertionError("no election storm arose")
    assert not any(Outside(lab).consistent(host) for host in servers)


def _elections(lab: Lab, host: str) -> int:
    text = lab.log(host, "consul", 10**6)
    return len(re.findall("failed to establish leadership", text))


def test_the_lock_is_seen_in_the_plan(locked: Lab) -> None:
    """The plan names the storm and its reason, holds the servers first, and changes nothing."""
    before = {h: locked.pid(h, "consul") for h in ("us-consul-1", "us-consul-2", "us-consul-3")}

    ran = locked.run("cold-boot", plan=True)

    assert ran.status == 0, ran
    steps = {row["action"]: row for row in ran.report["plan"]}
    assert steps["hold"]["targets"] == "us-consul-1..3"
    assert "election storm: CA provider = vault" in steps["hold"]["reason"]
    assert any("boot lock" in notice for notice in ran.report["notices"])
    assert ran.mutating_calls == 0
    assert {h: locked.pid(h, "consul") for h in before} == before


def test_wait_calms_the_servers_until_vault_serves(locked: Lab) -> None:
    """fallback=wait: stopped, Vault unsealed, started; afterwards no election fails any more."""
    ran = locked.run("cold-boot")

    assert ran.status == 0, f"{ran}\n{locked.logs()}"
    did = [c["did"] for c in ran.report["changes"]]
    assert did.index("stopped consul") < did.index("started consul")
    servers = ["us-consul-1", "us-consul-2", "us-consul-3"]
    before = {host: _elections(locked, host) for host in servers}
    time.sleep(2)
    assert {host: _elections(locked, host) for host in servers} == before
    assert_up(locked)


def test_break_glass_serves_without_vault_and_is_taken_back(locked: Lab) -> None:
    """fallback=break-glass: a leader and KV within seconds, dated; a later run ends it."""
    ran = locked.run("cold-boot", {"fallback": "break-glass", "break_glass_hours": 2})

    assert ran.status == 0, f"{ran}\n{locked.logs()}"
    assert all(Outside(locked).consistent(h) for h in ("us-consul-1", "us-consul-2", "us-consul-3"))
    with locked.connections() as connections:
        # Vault was left alone.
        assert {n.state for n in vault.look_at_all(connections)} == {"sealed"}
    marks = [
        json.loads(locked.disk(h, f"/etc/consul.d/{FILE}").read_text())
        for h in ("us-consul-1", "us-consul-2", "us-consul-3")
    ]
    assert all(m["connect"]["enabled"] is False for m in marks)
    assert len({m["node_meta"]["break-glass-expires"] for m in marks}) == 1
    assert any("BREAK-GLASS" in notice for notice in ran.report["notices"])

    again = locked.run("cold-boot", {"fallback": "break-glass"})
    assert (again.status, again.mutating_calls) == (0, 0), again

    back = locked.run("cold-boot")

    assert back.status == 0, f"{back}\n{locked.logs()}"
    assert any("break-glass since" in notice for notice in back.report["notices"])
    left = [
        h.name for h in locked.layout.hosts if locked.disk(h.name, f"/etc/consul.d/{FILE}").exists()
    ]
    assert left == []
    assert_up(locked)


def test_kv_written_under_break_glass_survives_it(locked: Lab) -> None:
    """What was written while Connect was off is there when it is on again."""
    locked.run("cold-boot")  # to learn the token; then dark again, and locked
    token = SecretStr(Outside(locked).management())
    locked.power_cut()
    locked.power_on()
    assert locked.run("cold-boot", {"fallback": "break-glass"}).status == 0
    with locked.connections() as connections:
        dc = connections.topology.datacenter(US)
        with connections.consul(US).client(
            consul.url(connections, "us-consul-1"), token=token
        ) as api:
            api.put("/v1/kv/written-under-break-glass", content=b"kept")

    assert locked.run("cold-boot").status == 0

    with locked.connections() as connections:
        found = consul.operator_get(connections, dc, token, "/v1/kv/written-under-break-glass")
    assert found[0]["Value"] == "a2VwdA=="


def test_restore_vault_brings_back_its_data_and_the_same_root(full_lab: Lab) -> None:
    """fallback=restore-vault: data gone on all nodes, the newest snapshot and the original keys."""
    assert full_lab.run("snapshot").status == 0
    with full_lab.connections() as connections:
        token = SecretStr(Outside(full_lab).management())
        root = connect_ca.active_root(connections, connections.topology.datacenter(US), token)
    full_lab.power_cut()
    for host in ("vault-1", "vault-2", "vault-3"):
        data = full_lab.disk(host, "/opt/vault")
        shutil.rmtree(data)
        data.mkdir()

    refused = full_lab.run("cold-boot")
    assert refused.status in {1, 3}, refused
    assert "restore-vault" in refused.problem["do"]

    ran = full_lab.run("cold-boot", {"fallback": "restore-vault"})

    assert ran.status == 0, f"{ran}\n{full_lab.logs()}"
    with full_lab.connections() as connections:
        assert Outside(full_lab).management() == token.get_secret_value()
        dc = connections.topology.datacenter(US)
        assert connect_ca.active_root(connections, dc, token) == root
        with connections.vault().node("vault-1", token=connections.vault().login()) as api:
            raft = api.get("/v1/sys/storage/raft/configuration").json(dict)
    servers = raft["data"]["config"]["servers"]
    assert sorted(s["node_id"] for s in servers if s["voter"]) == ["vault-1", "vault-2", "vault-3"]
    assert_up(full_lab)


def test_vault_maintenance_keeps_leaves_valid_throughout(full_lab: Lab) -> None:
    """The CA goes to Consul's own provider and back; callers never see a failure."""
    full_lab.boot()
    seen: list[int] = []
    layout = full_lab.layout
    portal = layout.host("us-app-1").address

    def ask() -> None:
        try:
            seen.append(httpx.get(f"http://{portal}:9191/", timeout=5.0).status_code)
        except httpx.HTTPError:
            seen.append(0)

    for direction, provider in (("begin", "consul"), ("end", "vault")):
        process = full_lab.start(*full_lab.arguments("vault-maintenance", {"direction": direction}))
        while process.poll() is None:
            ask()
            time.sleep(0.05)
        ran = full_lab.ended(process)
        assert ran.status == 0, f"{ran}\n{full_lab.logs()}"
        with full_lab.connections() as connections:
            token = SecretStr(Outside(full_lab).management())
            for name in (US, EU):
                dc = connections.topology.datacenter(name)
                assert connect_ca.provider(connections, dc, token)[0] == provider
                connect_ca.sign_leaf(connections, dc, token)
        again = full_lab.run("vault-maintenance", {"direction": direction})
        assert (again.outcome, again.mutating_calls) == ("nothing", 0), again
    assert len(seen) > 20
    assert set(seen) == {200}


def test_maintenance_begun_means_no_lock(full_lab: Lab) -> None:
    """With the CA moved away, Consul's leader changes while Vault is sealed, and signs."""
    full_lab.boot()
    token = SecretStr(Outside(full_lab).management())
    assert full_lab.run("vault-maintenance").status == 0
    with full_lab.connections() as connections:
        mesh = connections.topology
        for host in mesh.vault.nodes:
            hosts.restart(connections, mesh.host(host), ["vault"])
        leader = consul.await_quorum(connections, mesh.datacenter(US))
        hosts.restart(connections, mesh.host(leader), ["consul"])
        consul.await_quorum(connections, mesh.datacenter(US))
        connect_ca.await_leaf(connections, mesh.datacenter(US), token, deadline=30)
        assert {n.state for n in vault.look_at_all(connections)} == {"sealed"}
    full_lab.boot()
    assert full_lab.run("vault-maintenance", {"direction": "end"}).status == 0
    assert_up(full_lab)


def test_the_secondary_locks_too_and_is_calmed(full_lab: Lab) -> None:
    """A storm in the secondary alone is named and ended like the primary's."""
    full_lab.boot()
    with full_lab.connections() as connections:
        mesh = connections.topology
        for host in mesh.vault.nodes:
            hosts.restart(connections, mesh.host(host), ["vault"])
        eu = mesh.datacenter(EU)
        leader = consul.await_quorum(connections, eu)
        hosts.restart(connections, mesh.host(leader), ["consul"])
        end = time.monotonic() + 30
        state = ""
        while time.monotonic() < end and state != "storm":
            try:
                state = consul.look(connections, eu).state
            except MeshError:
                continue
        assert state == "storm"

    ran = full_lab.run("cold-boot")

    assert ran.status == 0, f"{ran}\n{full_lab.logs()}"
    assert_up(full_lab)
