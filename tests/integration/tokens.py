"""ACL tokens of a lab as an outsider sees them, roles to rotate, and consumers that use theirs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest

from deployments.lab.layout import DATACENTERS, PRIMARY, SECONDARY
from tests.harness.lab import Lab, Ran
from tests.integration import changes
from tests.integration.outside import Outside
from tests.lab.machine import until

POLICY = "rotation-test"
RULES = 'key_prefix "app/" { policy = "read" }'
OURS = "rotated by mesh-runbooks"
ENGINE = "token of consul-engine"  # whose tests are their own
# One consumer a datacenter, each through the agent of its own host as in the field.
AGENTS = {PRIMARY: "us-app-1", SECONDARY: "eu-app-1"}


def role(name: str = "payments", **more: Any) -> dict[str, Any]:
    """A role of the test's own, quick to rotate."""
    return {
        "role": name,
        "kind": "service",
        "policies": [POLICY],
        "path": f"services/{name}",
        "consumers": ["payment-processor"],
        "may": ["kv read app/x"],
        "may_not": ["kv write app/x", "kv read secret/y"],
        "overlap_seconds": 1.5,
        "soak_seconds": 1.5,
    } | more


class Tokens:
    """The tokens of one lab, and a topology of the test's own roles."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.seen = lab, Outside(lab)
        self.management = self.seen.management()

    def declare(self, *roles: dict[str, Any], keep: bool = False) -> Path:
        """The lab's topology with these roles, beside its own or in their place."""

        def change(document: dict[str, Any]) -> None:
            document["tokens"] = [*(document["tokens"] if keep else []), *roles]

        return changes.variant(self.lab, change, "rotation")

    def rotate(self, mesh: Path | None = None, **options: object) -> Ran:
        """Run token-rotation."""
        words = self.lab.arguments("token-rotation", options)
        if mesh:
            words += ["--mesh", str(mesh)]
        return self.lab.mesh(*words)

    def server(self, dc: str) -> str:
        return self.seen.servers(dc)[0]

    def listed(self, dc: str = PRIMARY) -> dict[str, dict[str, Any]]:
        """The tokens of this runbook that a datacenter has, by accessor; not the engine's."""
        found = self.seen.consul(self.server(dc), "acl/tokens", self.management).json()
        return {
            t["AccessorID"]: t
            for t in found
            if OURS in t["Description"] and not t["Description"].startswith(ENGINE)
        }

    def document(self, name: str = "payments") -> dict[str, Any]:
        """What Vault keeps of a role."""
        return self.seen.secret(f"services/{name}")

    def self_status(self, dc: str, secret: str) -> int:
        """What a datacenter answers to a token that asks who it is."""
        return self.seen.consul(self.server(dc), "acl/token/self", secret).status_code

    def reads(self, dc: str, secret: str) -> bool:
        """Whether a token is let through to the key that its policy names."""
        return self.seen.consul(self.server(dc), "kv/app/x", secret).status_code == 200

    def put(self, path: str, dc: str = PRIMARY, **body: Any) -> httpx.Response:
        """A PUT to Consul as management; `body` is JSON."""
        host = self.seen.layout.host(self.server(dc))
        answer = self.seen.http.put(
            f"https://{host.address}:8501/v1/{path}",
            json=body,
            headers={"X-Consul-Token": self.management},
        )
        assert answer.status_code == 200, f"{path}: {answer.text}"
        return answer

    def delete(self, path: str) -> None:
        host = self.seen.layout.host(self.server(PRIMARY))
        self.seen.http.delete(
            f"https://{host.address}:8501/v1/{path}", headers={"X-Consul-Token": self.management}
        )

    def one_live(self, *names: str) -> None:
        """One token a role in every datacenter it is for, which Vault has; none beside."""
        kept = {name: self.document(name) for name in names}
        there = {dc: self.listed(dc) for dc in DATACENTERS}
        for name, document in kept.items():
            assert set(document) == {"accessor", "secret", "state"}, name
            homes = [dc for dc in DATACENTERS if document["accessor"] in there[dc]]
            local = [there[dc][document["accessor"]]["Local"] for dc in homes]
            assert local in ([True], [False, False]), f"{name} is in {homes}"
            for dc in homes:
                assert self.self_status(dc, document["secret"]) == 200, f"{name} in {dc}"
        every = {accessor for dc in DATACENTERS for accessor in there[dc]}
        assert every == {document["accessor"] for document in kept.values()}

    def set_up(self) -> None:
        """The policy of the test's roles, and the key it lets them read."""
        self.put("acl/policy", Name=POLICY, Rules=RULES)
        for dc in DATACENTERS:
            self.put("kv/app/x", dc, value=1)
        time.sleep(1)  # replicated

    def tidy(self) -> None:
        """Nothing of a rotation is left, so that other tests find the lab as it was."""
        vault = self.seen.token()
        listed = self.seen.vault("mesh/metadata/services", vault, verb="LIST")
        names = listed.json()["data"]["keys"] if listed.status_code == 200 else []
        # A test may have given one another description.
        kept = {self.document(name).get("accessor") for name in names}
        for dc in DATACENTERS:
            host = self.seen.layout.host(self.server(dc))
            found = self.seen.consul(self.server(dc), "acl/tokens", self.management).json()
            for token in found:
                ours = OURS in token["Description"] or token["AccessorID"] in kept
                if ours and (token["Local"] or dc == PRIMARY):
                    self.seen.http.delete(
                        f"https://{host.address}:8501/v1/acl/token/{token['AccessorID']}",
                        headers={"X-Consul-Token": self.management},
                    )
        for name in names:
            self.seen.vault(f"mesh/metadata/services/{name}", vault, verb="DELETE")
        policies = self.seen.consul(self.server(PRIMARY), "acl/policies", self.management).json()
        for policy in policies:
            if policy["Name"].startswith(POLICY):
                self.delete(f"acl/policy/{policy['ID']}")


class Consumer(threading.Thread):
    """
    Uses a role's token 20 times a second, and reads it from Vault again every half second.

    `patient`: while Vault does not serve it goes on with the token it has;
    `stale`: any server may answer it, its leader or not.
    """

    def __init__(
        self,
        lab: Lab,
        dc: str,
        role: str = "payments",
        path: str = "kv/app/x",
        *,
        patient: bool = False,
        stale: bool = False,
    ) -> None:
        super().__init__(daemon=True)
        self.seen, self.agent, self.role, self.path = Outside(lab), AGENTS[dc], role, path
        self.patient, self.how = patient, {"stale": ""} if stale else {}
        self.vault_token = self.seen.token()
        self.over = threading.Event()
        self.uses = 0
        self.failures: list[str] = []
        self.accessors: list[str] = []  # in the order of their first use

    def run(self) -> None:
        held: dict[str, Any] = {}
        read_at = 0.0
        while not self.over.is_set():
            began = time.monotonic()
            try:
                if began - read_at > 0.5:
                    held, read_at = self._read(held), began
                used = self.seen.consul(self.agent, self.path, held["secret"], **self.how)
                self.uses += 1
                if used.status_code != 200 or not used.json():  # a filtered list is empty
                    self.failures.append(f"{used.status_code} {used.text} ({held['accessor']})")
            except Exception as error:  # noqa: BLE001 - whatever a consumer would stumble over
                self.failures.append(repr(error))
            if held.get("accessor") not in self.accessors[-1:]:
                self.accessors.append(held["accessor"])
            self.over.wait(max(0.0, 0.05 - (time.monotonic() - began)))

    def _read(self, held: dict[str, Any]) -> dict[str, Any]:
        if self.patient and held and self.seen.health(self.seen.vaults[0]) != 200:
            return held
        answer = self.seen.vault(f"mesh/data/services/{self.role}", self.vault_token)
        if self.patient and held and answer.status_code == 503:
            return held
        return dict(answer.json()["data"]["data"])


@pytest.fixture
def tokens(healthy: Lab) -> Iterator[Tokens]:
    """A healthy lab with the policy of the test's roles; as it was afterwards."""
    tokens = Tokens(healthy)
    tokens.tidy()
    tokens.set_up()
    yield tokens
    tokens.tidy()


class AtWork(Protocol):
    """Whoever uses tokens in a thread of its own until it is told to end."""

    uses: int
    over: threading.Event

    def start(self) -> None:
        """Begin."""

    def join(self) -> None:
        """Wait for the end."""


@contextmanager
def consuming(*consumers: AtWork) -> Iterator[None]:
    """Consumers at work; ended, and looked at afterwards by the test."""
    for consumer in consumers:
        consumer.start()
    try:
        until(lambda: all(c.uses > 10 for c in consumers), "consumers to be at work")
        yield
        time.sleep(1.5)
    finally:
        for consumer in consumers:
            consumer.over.set()
            consumer.join()
