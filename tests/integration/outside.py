"""
A lab as an outsider sees it: nothing of the runbooks is used to look.

Servers are asked by plain HTTP, hosts by their process table and their disks.
Secrets come from where the lab's operator would find them: the holders' files,
the cloud's Secrets Manager and Vault.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from cryptography import x509

from deployments.lab import hosts
from deployments.lab.layout import CONSUL_HTTPS_PORT, DATACENTERS, PRIMARY, SECONDARY, VAULT_PORT
from tests.harness.lab import Lab
from tests.lab.machine import Lab as Clouds

SECRET = "mesh/lab/unseal/ops-b"
ALLOWED = ((9191, ""), (9192, SECONDARY))  # of web-portal on us-app-1
DENIED = 9193  # of reporting-agent, there too


class Outside:
    """Independent looks at one lab."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.layout = lab, lab.layout
        self.clouds = Clouds(self.layout)
        context = ssl.create_default_context(cafile=str(self.layout.ca_file))
        self.http = httpx.Client(verify=context, timeout=20, trust_env=False)

    # Vault.

    @property
    def vaults(self) -> list[str]:
        """The hosts of Vault's nodes."""
        return [h.name for h in self.layout.with_role("vault")]

    def vault(
        self, path: str, token: str = "", *, host: str = "", verb: str = "GET", **options: Any
    ) -> httpx.Response:
        """One request to one node of Vault; to the active one if none is named."""
        address = self.layout.host(host or self.active()).address
        headers = {"X-Vault-Token": token} if token else {}
        url = f"https://{address}:{VAULT_PORT}/v1/{path}"
        return self.http.request(verb, url, headers=headers, **options)

    def health(self, host: str) -> int:
        """The health code of a node: 200 active, 429 standby, 501 uninitialised, 503 sealed."""
        return self.vault("sys/health", host=host).status_code

    def active(self) -> str:
        """The active node."""
        return next(h for h in self.vaults if self.health(h) == 200)

    def seal_status(self, host: str) -> dict[str, Any]:
        """What a node says of its seal."""
        return dict(self.vault("sys/seal-status", host=host).json())

    def token(self) -> str:
        """A token of the runbooks' own AppRole."""
        kept = json.loads((self.lab.directory / "holders" / "runbooks.key").read_text())
        answer = self.vault("auth/approle/login", verb="POST", json=kept).json()
        return str(answer["auth"]["client_token"])

    def secret(self, path: str) -> dict[str, Any]:
        """A secret of the mesh in Vault."""
        answer = self.vault(f"mesh/data/{path}", self.token())
        assert answer.status_code == 200, f"{path}: {answer.status_code}"
        return dict(answer.json()["data"]["data"])

    def shares(self, *holders: str) -> list[str]:
        """The key shares of holders, of all if none is named."""
        found: list[str] = []
        for name in holders or ("ops-a", "ops-b", "ops-c"):
            found += self.held(name).get("shares") or []
        return found

    def held(self, holder: str) -> dict[str, Any]:
        """A holder's document; empty if there is none."""
        if holder == "ops-b":
            client = self.clouds.aws("secretsmanager", "us-west-2")
            try:
                return dict(json.loads(client.get_secret_value(SecretId=SECRET)["SecretString"]))
            except client.exceptions.ResourceNotFoundException:
                return {}
        file = self.lab.directory / "holders" / f"{holder}.key"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    @contextmanager
    def root(self) -> Iterator[str]:
        """A root token of the test's own, generated from shares and revoked at the end."""
        attempt = self.vault("sys/generate-root/attempt", verb="PUT", json={}).json()
        status: dict[str, Any] = {}
        for share in self.shares()[:3]:
            body = {"key": share, "nonce": attempt["nonce"]}
            status = self.vault("sys/generate-root/update", verb="PUT", json=body).json()
        encoded = status["encoded_token"]
        masked = base64.b64decode(encoded + "=" * (-len(encoded) % 4))
        token = bytes(a ^ b for a, b in zip(masked, attempt["otp"].encode(), strict=True)).decode()
        try:
            yield token
        finally:
            self.vault("auth/token/revoke-self", token, verb="POST")

    def root_tokens(self) -> int:
        """How many root tokens live, the one made to look not counted."""
        with self.root() as token:
            listed = self.vault("auth/token/accessors", token, verb="LIST").json()["data"]["keys"]
            found = 0
            for accessor in listed:
                answer = self.vault(
                    "auth/token/lookup-accessor", token, verb="POST", json={"accessor": accessor}
                )
                if answer.status_code == 200:
                    found += "root" in answer.json()["data"]["policies"]
        return found - 1

    def audited(self, host: str = "", since: int = 0) -> list[dict[str, Any]]:
        """Requests that a node's audit log holds, from a size of the file on."""
        file = self.lab.disk(host or self.active(), "/var/log/vault-audit.log")
        if not file.exists():
            return []
        with file.open("rb") as stream:
            stream.seek(since)
            entries = [json.loads(line) for line in stream]
        return [e for e in entries if e["type"] == "request"]

    def audit_size(self, host: str = "") -> int:
        """How long a node's audit log is now."""
        return self.lab.disk(host or self.active(), "/var/log/vault-audit.log").stat().st_size

    # Consul.

    def servers(self, dc: str) -> list[str]:
        """The hosts of a datacenter's Consul servers."""
        return [h.name for h in self.layout.with_role("consul-server", dc)]

    def management(self) -> str:
        """Consul's management token, from Vault."""
        return str(self.secret("consul/bootstrap")["secret"])

    def consul(self, host: str, path: str, token: str = "", **params: str) -> httpx.Response:
        """One GET from the agent of a host."""
        url = f"https://{self.layout.host(host).address}:{CONSUL_HTTPS_PORT}/v1/{path}"
        return self.http.get(url, params=params, headers={"X-Consul-Token": token} if token else {})

    def consistent(self, host: str) -> bool:
        """Whether a read that a leader confirms with its quorum comes through within 3 s."""
        url = f"https://{self.layout.host(host).address}:{CONSUL_HTTPS_PORT}/v1/catalog/nodes"
        try:
            return self.http.get(url, params={"consistent": ""}, timeout=3).status_code == 200
        except httpx.HTTPError:
            return False

    def raft_index(self, dc: str, token: str) -> int:
        """The last index of a datacenter's raft log."""
        answer = self.consul(self.servers(dc)[0], "agent/self", token).json()
        return int(answer["Stats"]["raft"]["last_log_index"])

    # Hosts.

    def pids(self) -> dict[tuple[str, str], int | None]:
        """The main process of every unit of every host, and of its sshd."""
        found = {(h.name, u): self.lab.pid(h.name, u) for h in self.layout.hosts for u in h.units}
        for host in self.layout.hosts:
            file = self.layout.root(host.name) / "run/sshd.pid"
            alive = set(self.lab.processes_of(host.name))
            pid = int(file.read_text()) if file.exists() else None
            found[host.name, "sshd"] = pid if pid in alive else None
        return found

    def unsealing(self, host: str) -> Unsealing:
        """What a node's log says of shares it was given since it last started."""
        text = hosts.log_file(self.layout.root(host), "vault").read_text(errors="replace")
        return Unsealing(text.rpartition("OpenBao server started!")[2])


class Unsealing:
    """How a node was unsealed, as its own log tells it."""

    def __init__(self, log: str) -> None:
        self.submitted = log.count("unseal key supplied")
        waiting = re.findall(r"not enough keys: keys=(\d+) threshold=\d+ nonce=(\S+)", log)
        self.opened = log.count("core: vault is unsealed")
        # Shares that completed a set and did not open it.
        self.failures = self.submitted - len(waiting) - self.opened
        self.attempts = list(dict.fromkeys(nonce for _, nonce in waiting))
        lines = [line for line in log.splitlines() if "unseal" in line]
        last = max((i for i, line in enumerate(lines) if "vault is unsealed" in line), default=-1)
        self.after = sum("unseal key supplied" in line for line in lines[last + 1 :])


# The whole mesh.


def assert_up(lab: Lab) -> None:
    """
    B13, by other means than the runbook's own: the mesh is back.

    Leaders, autopilot, consistent reads, a really signed leaf that chains to
    the one root, `?dc=` both ways, replication, and calls through sidecars.
    """
    seen = Outside(lab)
    _assert_vault(seen)
    token = seen.management()
    root = seen.http.get(
        f"https://{seen.layout.host(seen.active()).address}:{VAULT_PORT}/v1/connect-root/ca/pem"
    )
    for dc in DATACENTERS:
        _assert_servers(seen, dc, token)
        _assert_leaf(seen, dc, token, x509.load_pem_x509_certificate(root.content))
    _assert_federation(seen, token)
    _assert_services(seen)


def _assert_vault(seen: Outside) -> None:
    codes = [seen.health(h) for h in seen.vaults]
    assert sorted(codes) == [200, *[429] * (len(codes) - 1)]
    answer = seen.vault("sys/storage/raft/configuration", seen.token()).json()
    voters = [s["node_id"] for s in answer["data"]["config"]["servers"] if s["voter"]]
    assert sorted(voters) == sorted(seen.vaults)


def _assert_servers(seen: Outside, dc: str, token: str) -> None:
    leaders = {str(seen.consul(h, "status/leader").json()) for h in seen.servers(dc)}
    assert len(leaders) == 1, leaders
    address = leaders.pop().rpartition(":")[0]
    assert address in {seen.layout.host(h).address for h in seen.servers(dc)}
    for host in seen.servers(dc):
        read = seen.consul(host, "catalog/nodes", token, consistent="")
        assert read.status_code == 200, read.text
        assert set(seen.servers(dc)) <= {n["Node"] for n in read.json()}
    health = seen.consul(seen.servers(dc)[0], "operator/autopilot/health", token).json()
    assert health["Healthy"] is True
    voters = {s["Name"] for s in health["Servers"] if s["Voter"] and s["Healthy"]}
    assert voters == set(seen.servers(dc))


def _assert_leaf(seen: Outside, dc: str, token: str, root: x509.Certificate) -> None:
    name = f"test-{time.time_ns()}"  # an agent answers a known one from its cache
    leaf = seen.consul(seen.servers(dc)[0], f"agent/connect/ca/leaf/{name}", token).json()
    chain = x509.load_pem_x509_certificates(leaf["CertPEM"].encode())
    roots = seen.consul(seen.servers(dc)[0], "agent/connect/ca/roots").json()
    (active,) = [r for r in roots["Roots"] if r["Active"]]
    assert x509.load_pem_x509_certificate(active["RootCert"].encode()) == root
    pool = chain[1:] + [
        x509.load_pem_x509_certificate(pem.encode())
        for pem in active.get("IntermediateCerts") or []
    ]
    here = chain[0]
    alternatives = here.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (uri,) = alternatives.get_values_for_type(x509.UniformResourceIdentifier)
    assert uri == f"spiffe://{roots['TrustDomain']}/ns/default/dc/{dc}/svc/{name}"
    for _ in range(len(pool) + 1):
        if here.issuer == root.subject:
            break
        here = next(c for c in pool if c.subject == here.issuer and _signed(here, c))
    here.verify_directly_issued_by(root)  # raises if it is not


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001 - another key of the same name
        return False
    return True


def _assert_federation(seen: Outside, token: str) -> None:
    for here, there in ((PRIMARY, SECONDARY), (SECONDARY, PRIMARY)):
        answer = seen.consul(seen.servers(here)[0], "catalog/nodes", token, dc=there, consistent="")
        assert answer.status_code == 200, f"{here} -> {there}: {answer.text}"
        assert set(seen.servers(there)) <= {n["Node"] for n in answer.json()}
    status = seen.consul(seen.servers(SECONDARY)[0], "acl/replication", token).json()
    assert status["Running"]
    tokens = seen.consul(seen.servers(PRIMARY)[0], "acl/tokens", token).json()
    newest = max(t["ModifyIndex"] for t in tokens if not t["Local"])
    assert status["ReplicatedTokenIndex"] >= newest


def _assert_services(seen: Outside) -> None:
    address = seen.layout.host("us-app-1").address
    for port, datacenter in ALLOWED:
        answer = seen.http.get(f"http://{address}:{port}/")
        assert answer.status_code == 200, f"{port}: {answer.status_code} {answer.text}"
        assert answer.json()["service"] == "payment-processor"
        assert answer.json()["datacenter"] in {datacenter or PRIMARY, datacenter or SECONDARY}
    assert seen.http.get(f"http://{address}:{DENIED}/").status_code == 403
