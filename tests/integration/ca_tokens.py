"""Consul's CA token of a lab as an outsider sees it, and leaves that are fetched all along."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deployments.lab.consul_files import CA_CONFIG, CONFIG_DIR
from deployments.lab.layout import DATACENTERS
from tasks.ca_role import NAME, ROLE
from tests.harness.lab import Lab, Ran
from tests.integration.outside import Outside
from tests.lab.machine import until

ROLE_NAME = "consul-ca"  # of the lab's topology
KEPT = "consul/ca-token"


class CaTokens:
    """What Vault, Consul and servers' files hold of the one token."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.seen = lab, Outside(lab)
        self.management, self.vault_token = self.seen.management(), self.seen.token()

    def rotate(self, mesh: Path | None = None, **options: object) -> Ran:
        """Run token-rotation for this role alone."""
        words = self.lab.arguments("token-rotation", {"roles": ROLE_NAME, "soak": 0.5} | options)
        return self.lab.mesh(*words, *(["--mesh", str(mesh)] if mesh else []))

    def document(self) -> dict[str, Any]:
        """What Vault keeps of it."""
        return self.seen.secret(KEPT)

    def keep(self, document: dict[str, Any]) -> None:
        """Write that, as somebody else."""
        self._vault(f"mesh/data/{KEPT}", self.vault_token, data=document)

    def made(self, meta: dict[str, str] | None = None) -> dict[str, Any]:
        """A token by the token role."""
        body = {"meta": meta or {}, "policies": [NAME]}
        return dict(self._vault(f"auth/token/create/{NAME}", self.vault_token, **body)["auth"])

    def revoke(self, accessor: str) -> None:
        """End a token."""
        self._vault("auth/token/revoke-accessor", self.vault_token, accessor=accessor)

    def _vault(self, path: str, token: str, **body: Any) -> dict[str, Any]:
        answer = self.seen.vault(path, token, verb="POST", json=body)
        assert answer.status_code in {200, 204}, f"{path}: {answer.text}"
        return dict(answer.json()) if answer.content else {}

    def write(self, path: str, root: str, **body: Any) -> None:
        """Something in Vault that only root may."""
        self._vault(path, root, **body)

    def period(self, root: str, seconds: int) -> None:
        """The token role gives this period from now on."""
        self.write(ROLE, root, token_period=seconds)

    def token(self, accessor: str) -> dict[str, Any] | None:
        """What Vault knows of a token; None if it lives no more."""
        answer = self.seen.vault(
            "auth/token/lookup-accessor", self.vault_token, verb="POST", json={"accessor": accessor}
        )
        return answer.json()["data"] if answer.status_code == 200 else None

    def live(self) -> list[str]:
        """Accessors of every live token that may do what Consul's CA may."""
        listed = self.seen.vault("auth/token/accessors", self.vault_token, verb="LIST")
        found = {a: self.token(a) for a in listed.json()["data"]["keys"]}
        return [a for a, t in found.items() if t and NAME in t["policies"]]

    def self_status(self, secret: str) -> int:
        """What Vault answers to a token that asks who it is."""
        return self.seen.vault("auth/token/lookup-self", secret).status_code

    def configuration(self, dc: str) -> dict[str, Any]:
        """A datacenter's stored CA configuration, the token in clear."""
        server = self.seen.servers(dc)[0]
        answer = self.seen.consul(server, "connect/ca/configuration", self.management)
        return dict(answer.json())

    def configure(self, dc: str, token: str) -> None:
        """Have a datacenter sign with another token."""
        found = self.configuration(dc)
        host = self.seen.layout.host(self.seen.servers(dc)[0])
        body = {"Provider": found["Provider"], "Config": found["Config"] | {"Token": token}}

        def put() -> bool:  # refused while it follows the primary
            answer = self.seen.http.put(
                f"https://{host.address}:8501/v1/connect/ca/configuration",
                json=body,
                headers={"X-Consul-Token": self.management},
            )
            return answer.status_code == 200

        until(put, "the CA to be configured")

    def signs_with(self, dc: str) -> str:
        """The token that a datacenter signs with."""
        return str(self.configuration(dc)["Config"]["Token"])

    def file(self, dc: str) -> Path:
        """The CA configuration on the disk of a datacenter's server."""
        return self.lab.disk(self.seen.servers(dc)[0], f"{CONFIG_DIR}/{CA_CONFIG}")

    def in_file(self, dc: str) -> str:
        """The token in it."""
        return str(json.loads(self.file(dc).read_text())["connect"]["ca_config"]["token"])

    def put_file(self, dc: str, text: str) -> None:
        """Another content for it, its mode as before."""
        file = self.file(dc)
        file.chmod(0o600)
        file.write_text(text)
        file.chmod(0o400)

    def issuers(self) -> dict[str, Any]:
        """What signs: each datacenter's roots and the issuers of its intermediate mount."""
        found: dict[str, Any] = {}
        for dc in DATACENTERS:
            server = self.seen.servers(dc)[0]
            roots = self.seen.consul(server, "connect/ca/roots", self.management).json()["Roots"]
            mount = f"connect-intermediate-{dc}"
            keys = self.seen.vault(f"{mount}/issuers", self.vault_token, verb="LIST").json()
            found[dc] = (
                [(r["ID"], r["Active"], r["SigningKeyID"]) for r in roots],
                keys["data"]["keys"],
            )
        return found

    def leaf(self, dc: str) -> str:
        """Have a leaf signed for a name nobody used; why it was not, empty if it was."""
        name = f"test-{time.time_ns()}"
        path = f"agent/connect/ca/leaf/{name}"
        answer = self.seen.consul(self.seen.servers(dc)[0], path, self.management)
        return "" if answer.status_code == 200 else f"{answer.status_code} {answer.text}"

    def one_live(self, *, in_files: bool = True) -> None:
        """One token lives, Vault keeps it and no word of another, and all sign with it."""
        kept = self.document()
        assert set(kept) - {"nonce"} == {"token", "accessor", "state"}, sorted(kept)
        assert kept["state"] == "live"
        assert self.live() == [kept["accessor"]]
        for dc in DATACENTERS:
            assert self.signs_with(dc) == kept["token"], dc
            assert self.leaf(dc) == ""
            if in_files:
                assert self.in_file(dc) == kept["token"], dc
        found = self.token(kept["accessor"])
        assert found is not None
        assert (found["orphan"], found["policies"]) == (True, [NAME])


class Leaves(threading.Thread):
    """Fetches a new leaf certificate five times a second in one datacenter."""

    def __init__(self, lab: Lab, dc: str) -> None:
        super().__init__(daemon=True)
        self.tokens, self.dc = CaTokens(lab), dc
        self.over = threading.Event()
        self.signed = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.over.is_set():
            began = time.monotonic()
            try:
                error = self.tokens.leaf(self.dc)
            except Exception as caught:  # noqa: BLE001 - whatever a sidecar would stumble over
                error = repr(caught)
            if error:
                self.failures.append(error)
            else:
                self.signed += 1
            self.over.wait(max(0.0, 0.2 - (time.monotonic() - began)))


@contextmanager
def fetching(lab: Lab) -> Iterator[list[Leaves]]:
    """Leaves are fetched in both datacenters inside the `with`."""
    at_work = [Leaves(lab, dc) for dc in DATACENTERS]
    for leaves in at_work:
        leaves.start()
    try:
        until(lambda: all(leaves.signed > 2 for leaves in at_work), "leaves to be signed")
        yield at_work
    finally:
        for leaves in at_work:
            leaves.over.set()
            leaves.join()
