"""What the bare scripts run on: processes, clients, polling, and the clock."""

from __future__ import annotations

import json
import os
import shlex
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx

from deployments.lab import processes
from deployments.lab.layout import CONSUL_HTTPS_PORT, VAULT_PORT, LabHost, Layout

T = TypeVar("T")
PATIENCE = 120.0
POLL = 0.02  # of two dozen askers: oftener, and they take the processor from the servers


class Refused(ValueError):
    """A server answered, but not with success."""


# What an answer that is not yet right may raise while it is looked at.
NOT_YET = (httpx.HTTPError, AssertionError, LookupError, TypeError, ValueError)


class Bench:
    """One mesh of bare processes, and the clock."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.phases: dict[str, float] = {}
        self.began = time.monotonic()
        self._tls = ssl.create_default_context(cafile=str(layout.ca_file))
        self._kept = layout.directory / "bare.json"
        self._lock = threading.Lock()
        self.kept: dict[str, Any] = (
            json.loads(self._kept.read_text()) if self._kept.exists() else {}
        )
        self.pool = ThreadPoolExecutor(48)
        self.vaults = [h.name for h in layout.with_role("vault")]

    # Time and waiting

    def mark(self, phase: str) -> None:
        """Note that a phase has ended now."""
        self.phases[phase] = round(time.monotonic() - self.began, 3)

    def until(self, what: str, probe: Callable[[], T | None], patience: float = PATIENCE) -> T:
        """Ask until the answer is true; `TimeoutError` with the last one otherwise."""
        end = time.monotonic() + patience
        last: object = None
        while time.monotonic() < end:
            try:
                if found := probe():
                    return found
                last = found
            except NOT_YET as error:
                last = error
            time.sleep(POLL)
        raise TimeoutError(f"{what}: {last!r}")

    def all_of(self, *calls: Callable[[], Any]) -> list[Any]:
        """Do several things at once; the first error, once all have ended."""
        return [future.result() for future in [self.pool.submit(call) for call in calls]]

    def keep(self, **values: Any) -> None:
        """Store secrets before anything goes on."""
        self.kept |= values
        new = self._kept.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_text(json.dumps(self.kept))
        new.chmod(0o400)
        new.replace(self._kept)

    # Processes

    def start(self, hosts: Iterable[str], *units: str) -> None:
        """Start units, or all of a host's, as their `ExecStart` says."""
        for name in hosts:
            for unit in units or self.layout.host(name).units:
                self._start(name, unit)

    def _start(self, host: str, unit: str) -> None:
        root = self.layout.root(host)
        lines = (root / f"etc/systemd/system/{unit}.service").read_text().splitlines()
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        with Path(values["StandardOutput"].removeprefix("append:")).open("ab") as log:
            subprocess.Popen(
                shlex.split(values["ExecStart"]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=root,
                env={"PATH": os.defpath} | processes.environment(self.layout.id, host),
                start_new_session=True,
            )

    def start_balancer(self) -> None:
        """The cloud's balancer in front of Vault: a process of its own, as it outlives a boot."""
        command = [sys.executable, "-m", "benchmarks.bare_boot", "balancer"]
        command += ["--size", self.layout.size, "--network", self.layout.network]
        command += ["--directory", str(self.layout.directory)]
        with (self.layout.directory / "balancer.log").open("ab") as log:
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | processes.environment(self.layout.id, "balancer"),
                start_new_session=True,
            )

    def cut(self) -> int:
        """SIGKILL to every process of it until none is left; how many there were."""
        return processes.kill(self.layout.id)

    # Clients

    def vault(self, host: str, token: str = "") -> httpx.Client:
        """One Vault node."""
        url = f"https://{self.layout.host(host).address}:{VAULT_PORT}"
        return self._client(url, {"X-Vault-Token": token} if token else {})

    def consul(self, host: str, token: str = "") -> httpx.Client:
        """One Consul agent."""
        url = f"https://{self.layout.host(host).address}:{CONSUL_HTTPS_PORT}"
        return self._client(url, {"X-Consul-Token": token} if token else {})

    def _client(self, url: str, headers: dict[str, str]) -> httpx.Client:
        return httpx.Client(
            base_url=url, headers=headers, verify=self._tls, timeout=10.0, trust_env=False
        )

    def servers(self, datacenter: str) -> list[str]:
        """Names of a datacenter's Consul servers."""
        return [h.name for h in self.layout.with_role("consul-server", datacenter)]

    def clients(self, datacenter: str = "") -> list[LabHost]:
        """Hosts with a client agent: the gateways first."""
        found = self.layout.with_role("gateway", datacenter)
        return [*found, *self.layout.with_role("app", datacenter)]


def ok(answer: httpx.Response) -> Any:
    """The JSON of an answer that must be one of success."""
    if not answer.is_success:
        raise Refused(f"{answer.request.url.path}: {answer.status_code} {answer.text[:300]}")
    return answer.json() if answer.content.strip() else None
