"""A mesh from nothing, back from the dark, and left alone when it is well (B13, B9, R12 of tokens)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deployments.lab.layout import DATACENTERS, PRIMARY
from tests.harness.lab import Lab
from tests.integration import changes, watched
from tests.integration.outside import Outside, assert_up

pytestmark = pytest.mark.integration


def test_a_mesh_that_never_ran_comes_up(blank: Lab):
    """Day 0: everything proven from outside, and Vault holds every token there is."""
    ran = changes.booted(blank, initialise=True)

    assert_up(blank)
    seen = Outside(blank)
    assert [len(seen.held(h)["shares"]) for h in ("ops-a", "ops-b", "ops-c")] == [2, 2, 1]
    assert_tokens_in_vault(seen)
    assert all(check["ok"] for check in ran.report["checks"])

    # Vault's own log: one root token ever, and its last act was to revoke itself.
    requests = [e for e in seen.audited() if "root" in e["auth"].get("policies", [])]
    assert len({e["auth"]["accessor"] for e in requests}) == 1
    assert requests[-1]["request"]["path"] == "auth/token/revoke-self"
    assert not any("generate-root" in e["request"]["path"] for e in seen.audited())
    assert seen.root_tokens() == 0


def assert_tokens_in_vault(seen: Outside) -> None:
    """Each agent's tokens are in Vault under their own names, and those are Consul's."""
    listed = seen.vault("mesh/metadata/consul/tokens", seen.token(), verb="LIST").json()
    clients = [h.name for h in seen.layout.hosts if {"gateway", "app"} & set(h.roles)]
    servers = [h for dc in DATACENTERS for h in seen.servers(dc)]
    wanted = {f"agent-{h}" for h in [*servers, *clients]} | {f"default-{h}" for h in clients}
    wanted.add("replication-eu-west-1")
    assert set(listed["data"]["keys"]) == wanted

    management = seen.management()
    there = seen.consul(seen.servers(PRIMARY)[0], "acl/tokens", management).json()
    accessors = {t["AccessorID"] for t in there if t["Description"] != "Anonymous Token"}
    kept = {name: seen.secret(f"consul/tokens/{name}") for name in wanted}
    bootstrap = seen.secret("consul/bootstrap")["accessor"]
    assert accessors == {bootstrap, *(k["accessor"] for k in kept.values())}
    for name, secret in kept.items():
        own = seen.consul(seen.servers(PRIMARY)[0], "acl/token/self", secret["secret"]).json()
        assert own["AccessorID"] == secret["accessor"], name


def test_a_mesh_comes_back_from_the_dark(dark: Lab, tmp_path: Path):
    """
    The second boot unseals, starts and proves; it makes no token, mount or root.

    B3: shares go to each node itself, as many as it needs and none after it is open.
    """
    changes.talkative(dark)
    before = len(Outside(dark).audited("vault-1"))

    ran = changes.boot(dark, watch=(calls := tmp_path / "calls"))

    changes.ends(ran, 0, "verified")
    assert_up(dark)
    changes.HEALTHY.add(dark.directory)
    seen = Outside(dark)
    log = seen.unsealing("vault-1")
    assert (log.submitted, log.failures, log.opened, log.after) == (3, 0, 1, 0)
    unseals = [c for c in watched.read(calls) if c.what.endswith("/v1/sys/unseal")]
    assert [c.server for c in unseals] == ["vault vault-1"] * 3

    done = seen.audited("vault-1")[before:]
    assert not any("root" in e["auth"].get("policies", []) for e in done)
    made = [e["request"]["path"] for e in done if is_ours(e) and changes_something(e)]
    assert made == []


def is_ours(entry: dict[str, Any]) -> bool:
    """Whether a request is not one that Consul's CA provider makes all the time by itself."""
    return bool(entry["auth"].get("display_name") != "token-consul-connect-ca")


def changes_something(entry: dict[str, Any]) -> bool:
    request = entry["request"]
    login = request["path"] == "auth/approle/login"
    return request["operation"] in {"create", "update", "delete"} and not login


def test_a_healthy_mesh_is_left_alone(healthy: Lab):
    """B9: no server, host or cloud sees a change, and no process is another afterwards."""
    seen = Outside(healthy)
    token = seen.management()
    audit = seen.audit_size()
    before = (everything_in_consul(seen, token), seen.pids(), clouds(seen))
    indexes = [seen.raft_index(dc, token) for dc in DATACENTERS]

    ran = changes.ends(healthy.run("cold-boot"), 0, "nothing")

    assert ran.mutating_calls == 0
    assert ran.report["changes"] == []
    moved = [seen.raft_index(dc, token) - i for dc, i in zip(DATACENTERS, indexes, strict=True)]
    assert before == (everything_in_consul(seen, token), seen.pids(), clouds(seen))
    done = [e for e in seen.audited(since=audit) if is_ours(e) and changes_something(e)]
    assert [e["request"]["path"] for e in done] == []
    # Consul itself writes coordinates, and an index for each leaf that it signs.
    for dc, entries in zip(DATACENTERS, moved, strict=True):
        path = f"connect-intermediate-{dc}/sign/leaf-cert"
        leaves = sum(e["request"]["path"] == path for e in seen.audited(since=audit))
        assert entries - 2 * leaves <= 4 + ran.seconds / 2, (dc, entries, leaves)
    changes.HEALTHY.add(healthy.directory)


def everything_in_consul(seen: Outside, token: str) -> dict[str, object]:
    """All that an operator or a runbook could have written, with the indexes of the writes."""
    paths = {
        "acl/tokens": {},
        "acl/policies": {},
        "acl/roles": {},
        "connect/intentions": {},
        "kv/": {"recurse": ""},
        "query": {},
        "session/list": {},
        "config/proxy-defaults": {},
        "config/service-defaults": {},
    }
    found: dict[str, object] = {}
    for dc in DATACENTERS:
        host = seen.servers(dc)[0]
        for path, params in paths.items():
            answer = seen.consul(host, path, token, **params)
            found[f"{dc} {path}"] = json.dumps(answer.json()) if answer.content else ""
        authority = seen.consul(host, "connect/ca/configuration", token).json()
        found[f"{dc} CA"] = authority["ModifyIndex"]
        for name in ("mesh-gateway", "payment-processor"):
            instances = seen.consul(host, f"catalog/service/{name}", token).json()
            found[f"{dc} {name}"] = [(i["ServiceID"], i["ModifyIndex"]) for i in instances]
    return found


def clouds(seen: Outside) -> dict[str, object]:
    """What the clouds tell of starts and stops: EC2's instances, Proxmox' tasks."""
    answer = seen.clouds.aws().describe_instances()
    instances = [i for r in answer["Reservations"] for i in r["Instances"]]
    found: dict[str, object] = {
        i["InstanceId"]: (i["State"]["Name"], i["LaunchTime"], i.get("StateTransitionReason"))
        for i in instances
    }
    api = seen.clouds.proxmox()
    for node in api.nodes.get():
        found[node["node"]] = [t["upid"] for t in api.nodes(node["node"]).tasks.get(limit=500)]
    return found
