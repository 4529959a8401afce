"""Envoy's resources: intentions become its rules, and Envoy itself takes them all."""

from __future__ import annotations

import json
import re
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from deployments.lab import binaries
from deployments.lab.envoy_gateway import gateway
from deployments.lab.envoy_resources import Resource, bootstrap, spiffe_id
from deployments.lab.envoy_sidecar import (
    Intention,
    Target,
    Upstream,
    inbound,
    outbound,
    secrets,
)

TRUST = "11111111-2222-3333-4444-555555555555.consul"
HERE, THERE = "us-east-1", "eu-west-1"


def rules_of(intentions: list[Intention], *, allow_by_default: bool = False) -> Resource:
    made = inbound(
        ("127.0.0.1", 20000),
        ("127.0.0.1", 8080),
        intentions,
        TRUST,
        allow_by_default=allow_by_default,
    )
    manager = made["lds"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    rules: Resource = manager["http_filters"][0]["typed_config"]["rules"]
    return rules


def allows(rules: Resource, identity: str) -> bool:
    """What Envoy's RBAC filter says to a caller with this identity."""

    def matches(principal: dict[str, Any]) -> bool:
        if "not_id" in principal:
            return not matches(principal["not_id"])
        pattern = principal["authenticated"]["principal_name"]["safe_regex"]["regex"]
        return re.fullmatch(pattern, identity) is not None

    hit = any(
        all(matches(p) for p in policy["principals"][0]["and_ids"]["ids"])
        for policy in rules["policies"].values()
    )
    return hit if rules["action"] == "ALLOW" else not hit


def by_precedence(intentions: list[Intention], source: str, *, default: bool) -> bool:
    """What Consul says: the first intention that fits decides."""
    for intention in intentions:
        if intention.source in {source, "*"}:
            return intention.allow
    return default


@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("names", [(), ("web",), ("web", "api"), ("web", "*"), ("web", "api", "*")])
def test_the_strongest_intention_decides(names: tuple[str, ...], default: bool):
    for actions in product([True, False], repeat=len(names)):
        intentions = [Intention(name, allow) for name, allow in zip(names, actions, strict=True)]
        rules = rules_of(intentions, allow_by_default=default)

        for source, dc in product(("web", "api", "other"), (HERE, THERE)):
            expected = by_precedence(intentions, source, default=default)
            assert expected == allows(rules, spiffe_id(source, dc, TRUST)), (intentions, source)


def test_only_identities_of_this_mesh_and_of_that_very_name_are_let_in():
    rules = rules_of([Intention("web", allow=True)])

    assert allows(rules, spiffe_id("web", HERE, TRUST))
    assert not allows(rules, spiffe_id("web", HERE, TRUST.replace("1", "6")))
    assert not allows(rules, spiffe_id("web-portal", HERE, TRUST))
    assert not allows(rules, spiffe_id("my-web", HERE, TRUST))


def test_a_gateway_routes_servers_before_anything_is_known_and_services_once_it_is():
    def names(**known: Any) -> list[str]:
        made = gateway(
            {"lan": ("127.0.0.1", 8443)},
            {"s1": ("127.0.0.2", 8300)},
            HERE,
            {THERE: [("127.0.0.3", 8443)]},
            **known,
        )
        chains = made["lds"][0]["filter_chains"]
        return [n for chain in chains for n in chain["filter_chain_match"]["server_names"]]

    before = names(services={"web": [("127.0.0.4", 20000)]})
    after = names(services={"web": [("127.0.0.4", 20000)]}, trust_domain=TRUST)

    assert [
        f"server.{HERE}.consul",
        f"s1.server.{HERE}.consul",
        f"server.{THERE}.consul",
        f"*.server.{THERE}.consul",
    ] == before
    added = {f"*.{THERE}.internal.{TRUST}", f"web.default.{HERE}.internal.{TRUST}"}
    assert added == set(after) - set(before)


def test_upstreams_of_one_service_do_not_share_clusters():
    """Two listeners for one service, one of them pinned to a datacenter, must not collide."""

    def clusters(port: int) -> set[str]:
        targets = (Target("web", HERE, ()), Target("web", THERE, (("127.0.0.1", 8443),)))
        made = outbound(Upstream("web", ("127.0.0.1", port), targets), TRUST)
        return {c["name"] for c in made["cds"]}

    assert not clusters(9191) & clusters(9192)


def test_a_caller_that_is_denied_is_answered_and_not_failed_over():
    """A sidecar's 403 counts as living: elsewhere the same intention would deny as well."""
    target = Target("web", HERE, (("127.0.0.1", 20000),))
    cluster = outbound(Upstream("web", ("127.0.0.1", 9191), (target,)), TRUST)["cds"][0]
    statuses = cluster["health_checks"][0]["http_health_check"]["expected_statuses"]

    assert {"start": 403, "end": 404} in statuses
    assert not any(s["start"] <= 503 < s["end"] for s in statuses)


def test_roots_are_trusted_and_a_leaf_is_absent_until_there_is_one():
    made = secrets(None, ["AAA\n", "BBB"])

    assert made["leaf"] == []
    assert made["roots"][0]["validation_context"]["trusted_ca"]["inline_string"] == "AAA\nBBB\n"


def test_envoy_itself_accepts_every_resource(tmp_path: Path):
    """Envoy reads a gateway's and a sidecar's resources as its own static configuration."""
    directory = str(tmp_path)
    targets = (
        Target("pay", HERE, (("127.0.0.9", 20000),)),
        Target("pay", THERE, (("127.0.0.8", 8443),)),
    )
    parts = [
        gateway(
            {"lan": ("127.0.0.1", 8443), "wan": ("127.0.0.2", 8443)},
            {"s1": ("127.0.0.3", 8300)},
            HERE,
            {THERE: [("127.0.0.4", 8443)]},
            TRUST,
            {"pay": [("127.0.0.9", 20000)]},
            access_log=f"{directory}/access.log",
        ),
        inbound(
            ("127.0.0.5", 20000),
            ("127.0.0.5", 8080),
            [Intention("web", allow=True), Intention("*", allow=False)],
            TRUST,
            access_log=f"{directory}/access.log",
        ),
        outbound(Upstream("pay", ("127.0.0.5", 9191), targets), TRUST),
        outbound(Upstream("pay", ("127.0.0.5", 9192), targets[1:]), TRUST),
    ]
    config = bootstrap("node", "cluster", ("127.0.0.1", 19000), f"{directory}/xds.sock")
    del config["dynamic_resources"]
    config["static_resources"]["listeners"] = [r for part in parts for r in part["lds"]]
    config["static_resources"]["clusters"] += [r for part in parts for r in part["cds"]]
    (tmp_path / "envoy.json").write_text(json.dumps(config))

    done = subprocess.run(
        [binaries.envoy(), "--mode", "validate", "-c", tmp_path / "envoy.json", "-l", "error"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
