"""A second Vault, apart from the mesh, that seals the lab's by its transit engine."""

from __future__ import annotations

import secrets
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

from deployments.lab import binaries

KEY = "autounseal"
POLICY = f"""
path "transit/encrypt/{KEY}" {{ capabilities = ["update"] }}
path "transit/decrypt/{KEY}" {{ capabilities = ["update"] }}
"""


class Sealer:
    """One OpenBao node with its data on disk: it outlives its own restart, sealed."""

    def __init__(self, directory: Path, address: str) -> None:
        self._directory, self._address = directory, address
        self._process: subprocess.Popen[bytes] | None = None
        self._share = self._root = ""
        self._ports = [_free_port(address), _free_port(address)]

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://{self._address}:{self._ports[0]}"

    def start(self) -> None:
        """Run it; returns when it answers, uninitialised or sealed."""
        data = self._directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        config = self._directory / "sealer.hcl"
        config.write_text(
            f'api_addr = "{self.url}"\ncluster_addr = "https://{self._address}:{self._ports[1]}"\n'
            f'listener "tcp" {{\n  address = "{self._address}:{self._ports[0]}"\n'
            f'  cluster_address = "{self._address}:{self._ports[1]}"\n  tls_disable = true\n}}\n'
            f'storage "raft" {{\n  path = "{data}"\n  node_id = "sealer"\n'
            "  performance_multiplier = 1\n}\n"
        )
        with (self._directory / "sealer.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(binaries.bao()), "server", f"-config={config}"], stdout=log, stderr=log
            )
        ends = time.monotonic() + 30
        while True:
            try:
                httpx.get(f"{self.url}/v1/sys/health", timeout=2, trust_env=False)
                return
            except httpx.TransportError:
                assert self._process.poll() is None, "the sealer ended at once"
                assert time.monotonic() < ends, "the sealer does not answer"
                time.sleep(0.05)

    def stop(self) -> None:
        """End it."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def initialise(self) -> str:
        """Make it able to seal; the token to do so with, which lives for the test."""
        made = self._ask("PUT", "sys/init", {"secret_shares": 1, "secret_threshold": 1})
        self._share, self._root = made["keys"][0], made["root_token"]
        self.unseal()
        self._ask("POST", "sys/mounts/transit", {"type": "transit"})
        self._ask("POST", f"transit/keys/{KEY}", {})
        self._ask("PUT", "sys/policies/acl/seal", {"policy": POLICY})
        token = f"sealer-{secrets.token_hex(16)}"
        body = {"id": token, "policies": ["seal"], "no_parent": True, "period": "24h"}
        self._ask("POST", "auth/token/create", body)
        return token

    def unseal(self) -> None:
        """Open it; returns once it serves."""
        self._ask("PUT", "sys/unseal", {"key": self._share})
        ends = time.monotonic() + 30
        while httpx.get(f"{self.url}/v1/sys/health", timeout=5, trust_env=False).status_code != 200:
            assert time.monotonic() < ends, "the sealer does not become active"
            time.sleep(0.05)

    def _ask(self, verb: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"X-Vault-Token": self._root} if self._root else {}
        answer = httpx.request(
            verb, f"{self.url}/v1/{path}", json=body, headers=headers, timeout=20, trust_env=False
        )
        assert answer.is_success, f"{path}: {answer.status_code}"
        return dict(answer.json()) if answer.content else {}


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
