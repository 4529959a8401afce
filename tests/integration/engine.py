"""Vault's Consul secrets engine as an outsider sees it, at the lab's facade; and who uses it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from signal import SIGKILL
from typing import Any

import httpx

from deployments.lab import processes
from deployments.lab.layout import DATACENTERS, PRIMARY
from tests.integration.tokens import AGENTS, Tokens
from tests.lab.machine import until

ROLE, ACCESS = "catalog-reader", "consul-engine"
BOTH = f"{ACCESS},{ROLE}"
READ = "health/service/payment-processor"


class Engine(Tokens):
    """The engine of one lab, its access token and what it minted."""

    def ask(
        self, path: str, token: str = "", *, verb: str = "GET", **options: Any
    ) -> httpx.Response:
        """One request to the facade, as the runbooks unless a token is given."""
        headers = {"X-Vault-Token": token or self.seen.token()}
        url = f"{self.lab.layout.facade_url}/v1/{path}"
        return self.seen.http.request(verb, url, headers=headers, **options)

    def held(self) -> dict[str, Any]:
        """What Vault keeps of the access token."""
        return self.seen.secret("consul/engines/consul")

    def leases(self, role: str = ROLE) -> list[str]:
        """The ids of all leases of a role."""
        path = f"sys/leases/lookup/consul/creds/{role}"
        answer = self.ask(path, verb="LIST")
        keys = answer.json()["data"]["keys"] if answer.status_code == 200 else []
        return [f"consul/creds/{role}/{key}" for key in keys]

    def every(self, dc: str = PRIMARY) -> dict[str, dict[str, Any]]:
        """Every token of a datacenter by its accessor."""
        found = self.seen.consul(self.server(dc), "acl/tokens", self.management).json()
        return {t["AccessorID"]: t for t in found}

    def minted(self, dc: str = PRIMARY) -> list[str]:
        """The accessors of all that the engine made."""
        every = self.every(dc).values()
        return [t["AccessorID"] for t in every if t["Description"].startswith("Vault ")]

    def access(self, dc: str = PRIMARY) -> list[str]:
        """The accessors of all access tokens."""
        return [
            a
            for a, t in self.every(dc).items()
            if t["Description"].startswith(f"token of {ACCESS}")
        ]

    def as_it_should_be(self) -> None:
        """One access token, which Vault holds and the engine mints with; all it minted is leased."""
        held = self.held()
        assert set(held) == {"accessor", "secret", "state"}
        for dc in DATACENTERS:
            assert self.access(dc) == [held["accessor"]]
            assert self.self_status(dc, held["secret"]) == 200
        self.every_minted_is_leased()

    def every_minted_is_leased(self) -> None:
        """No token without a lease; a lease is looked at first, for it ends after its token."""
        leases = self.leases()
        assert len(self.minted()) <= len(leases)

    def pid(self) -> int:
        """The facade's process."""

        def found() -> int:
            for pid in processes.find(self.lab.layout.id):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"deployments.lab.facade" in words:
                    return pid
            return 0

        return until(found, "the facade to run")

    def kill(self) -> None:
        """kill -9 of the facade; it is up again afterwards."""
        pid = self.pid()
        os.kill(pid, SIGKILL)

        def again() -> bool:
            try:
                return self.pid() != pid and self.ask("sys/health").status_code == 200
            except httpx.TransportError:
                return False

        until(again, "the facade to be up again")

    def tidy(self) -> None:
        """No lease and no token of it is left; the facade keeps its roles."""
        for lease in self.leases():
            self.ask("sys/leases/revoke", verb="PUT", json={"lease_id": lease})
        super().tidy()


class Leased(threading.Thread):
    """
    Asks for a credential every second and uses the newest 20 times a second.

    A new one is used when a server of its datacenter knows it: its agent would
    remember for half a minute that there is none such.
    """

    def __init__(self, engine: Engine, dc: str) -> None:
        super().__init__(daemon=True)
        self.engine, self.dc, self.agent = engine, dc, AGENTS[dc]
        self.vault_token = engine.seen.token()
        self.over = threading.Event()
        self.uses = 0
        self.failures: list[str] = []
        self.accessors: list[str] = []

    def run(self) -> None:
        held: dict[str, Any] = {}
        fresh: dict[str, Any] = {}
        asked_at = 0.0
        while not self.over.is_set():
            began = time.monotonic()
            try:
                if began - asked_at > 1.0 and not fresh:
                    answer = self.engine.ask(f"consul/creds/{ROLE}", self.vault_token)
                    fresh, asked_at = answer.json()["data"], began
                if fresh and self.engine.self_status(self.dc, fresh["token"]) == 200:
                    held, fresh = fresh, {}
                    self.accessors.append(held["accessor"])
                if held:
                    self._use(held)
            except Exception as error:  # noqa: BLE001 - whatever a consumer would stumble over
                self.failures.append(repr(error))
            self.over.wait(max(0.0, 0.05 - (time.monotonic() - began)))

    def _use(self, held: dict[str, Any]) -> None:
        used = self.engine.seen.consul(self.agent, READ, held["token"])
        self.uses += 1
        if used.status_code != 200 or not used.json():
            self.failures.append(f"{used.status_code} {used.text} ({held['accessor']})")


@contextmanager
def asking(engine: Engine) -> Iterator[None]:
    """Somebody asks for a lease twice a second and never uses it, so that there are some to end."""
    over, token = threading.Event(), engine.seen.token()

    def ask() -> None:
        while not over.wait(0.5):
            with suppress(httpx.TransportError):
                engine.ask(f"consul/creds/{ROLE}", token)

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    try:
        until(engine.leases, "a lease")
        yield
    finally:
        over.set()
        asker.join()
