"""The audit of a mesh with thousands of tokens: as quick as the lists are, and a report one can read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from deployments.lab.layout import CONSUL_HTTPS_PORT, PRIMARY, SECONDARY
from tasks.planning.token_audit import MANY
from tests.harness.lab import Lab
from tests.integration.tokens import Tokens
from tests.lab.machine import until
from tests.matrix.conftest import Tell

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(300)]

STRANGERS, POLICIES = 2000, 100
WORKERS = 8
LONGEST = 15.0  # seconds of the whole command; a few on an idle machine
NAME = "audit-size"


class Crowd:
    """Tokens that nobody declared, each with one of many policies."""

    def __init__(self, lab: Lab) -> None:
        self.tokens = Tokens(lab)
        host = self.tokens.seen.layout.host(self.tokens.server(PRIMARY))
        self.url = f"https://{host.address}:{CONSUL_HTTPS_PORT}/v1/acl"
        self.ca = str(self.tokens.seen.layout.ca_file)

    def spread(self, do: Callable[[httpx.Client, Any], None], items: list[Any]) -> None:
        def some(part: list[Any]) -> None:
            headers = {"X-Consul-Token": self.tokens.management}
            with httpx.Client(verify=self.ca, headers=headers, trust_env=False) as client:
                for item in part:
                    do(client, item)

        with ThreadPoolExecutor(WORKERS) as pool:
            list(pool.map(some, [items[n::WORKERS] for n in range(WORKERS)]))

    def policy(self, client: httpx.Client, number: int) -> None:
        rules = f'key_prefix "{number}/" {{ policy = "read" }}'
        body = {"Name": f"{NAME}-{number}", "Rules": rules}
        assert client.put(f"{self.url}/policy", json=body).status_code == 200

    def token(self, client: httpx.Client, number: int) -> None:
        policy = {"Name": f"{NAME}-{number % POLICIES}"}
        body = {"Description": f"{NAME} {number}", "Policies": [policy]}
        assert client.put(f"{self.url}/token", json=body).status_code == 200

    def listed(self, what: str) -> list[dict[str, Any]]:
        path, server = f"acl/{what}", self.tokens.server(PRIMARY)
        return list(self.tokens.seen.consul(server, path, self.tokens.management).json())

    def gone(self) -> None:
        def delete(client: httpx.Client, path: str) -> None:
            assert client.delete(f"{self.url}/{path}").status_code == 200

        tokens = [t["AccessorID"] for t in self.listed("tokens") if NAME in t["Description"]]
        self.spread(delete, [f"token/{accessor}" for accessor in tokens])
        policies = [p["ID"] for p in self.listed("policies") if NAME in p["Name"]]
        self.spread(delete, [f"policy/{id_}" for id_ in policies])
        self.until_current()

    def until_current(self) -> None:
        def count(dc: str) -> int:
            server = self.tokens.server(dc)
            found = self.tokens.seen.consul(server, "acl/tokens", self.tokens.management)
            return len([t for t in found.json() if not t["Local"]])

        until(lambda: count(PRIMARY) == count(SECONDARY), "replication", 90)


@pytest.fixture
def crowd(healthy: Lab) -> Iterator[Crowd]:
    crowd = Crowd(healthy)
    try:
        crowd.spread(crowd.policy, list(range(POLICIES)))
        crowd.spread(crowd.token, list(range(STRANGERS)))
        crowd.until_current()
        yield crowd
    finally:
        crowd.gone()


def test_thousands_of_tokens(crowd: Crowd, tell: Tell) -> None:
    """Twice looked at, since what is found is bad; calls grow with policies and not with tokens."""
    ran = crowd.tokens.lab.run("token-audit")

    assert (ran.status, ran.outcome) == (1, "failed"), ran
    strangers = [c for c in ran.report["checks"] if c["name"].startswith("stranger")]
    assert len(strangers) == MANY + 1
    assert strangers[-1]["detail"].startswith(f"{STRANGERS - MANY} more")
    assert ran.seconds < LONGEST
    calls, memory = (ran.report["measures"][name] for name in ("calls", "peak_rss_mb"))
    assert calls < 4 * POLICIES + 100
    assert memory < 250
    assert len(ran.out + ran.err) < 40_000
    tell(f"audit of {STRANGERS} strangers: {ran.seconds:.1f} s, {calls} calls, {memory:.0f} MB")
