"""The gossip of a lab as an outsider sees it: keyrings, disks, Vault, and who is alive."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from deployments.lab.consul_files import CONFIG_DIR, DATA_DIR, GOSSIP_FILE
from deployments.lab.layout import CONSUL_HTTPS_PORT, DATACENTERS, PRIMARY
from tests.harness.lab import Lab, Ran
from tests.integration import watched
from tests.integration.outside import ALLOWED, Outside
from tests.lab.machine import until

ROLE = "gossip-key"
PATH = "consul/gossip"
MARK = "mesh-runbooks/gossip-rotation"
OPTIONS = {"roles": ROLE, "older_than": 0, "soak": 0.5}


class Gossip:
    """The gossip key of one lab, wherever it is."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.seen = lab, Outside(lab)
        self.management = self.seen.management()
        self.hosts = [h.name for h in lab.layout.hosts if "consul" in h.units]

    def rotate(self, **options: object) -> Ran:
        """Run token-rotation for this role, due or not."""
        return self.lab.run("token-rotation", OPTIONS | options)

    def rotate_watched(self, calls: Path, *at: dict[str, Any]) -> Ran:
        """The same, with things done at some of its calls (see `watched`)."""
        environ: dict[str, Any] = {watched.VARIABLE: json.dumps(at)}
        module = f"tests.integration.watched {calls}"
        return self.lab.run("token-rotation", OPTIONS, module=module, **environ)

    def power_cut(self, host: str) -> str:
        """The command that takes the power of one host."""
        request = f"request(Path('{self.lab.directory}'), 'power-cut', hosts=['{host}'])"
        code = f"from pathlib import Path; from deployments.lab.control import *; {request}"
        return f'{sys.executable} -c "{code}"'

    def ask(self, verb: str, key: str = "") -> httpx.Response:
        """One call of the keyring API."""
        host = self.seen.layout.host(self.seen.servers(PRIMARY)[0])
        return self.seen.http.request(
            verb,
            f"https://{host.address}:{CONSUL_HTTPS_PORT}/v1/operator/keyring",
            json={"Key": key} if key else None,
            headers={"X-Consul-Token": self.management},
        )

    def pools(self) -> list[dict[str, Any]]:
        """What the keyring API tells: LAN of both datacenters, and the WAN."""
        answer = self.ask("GET")
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()
        assert sorted(p["Datacenter"] for p in found if not p["WAN"]) == sorted(DATACENTERS)
        assert len(found) == len(DATACENTERS) + 1
        return found

    def installed(self) -> set[str]:
        """Every key that any agent has."""
        return {key for pool in self.pools() for key in pool["Keys"]}

    def rings(self) -> dict[str, list[str]]:
        """Every keyring on a disk, by host and file, first key in use."""
        return {
            f"{host} {file.name}": json.loads(file.read_text())
            for host in self.hosts
            for file in self.lab.disk(host, f"{DATA_DIR}/serf").glob("*.keyring")
        }

    def files(self) -> dict[str, str]:
        """The key that each host's configuration has."""
        return {
            host: json.loads(self.lab.disk(host, f"{CONFIG_DIR}/{GOSSIP_FILE}").read_text())[
                "encrypt"
            ]
            for host in self.hosts
        }

    def document(self) -> dict[str, Any]:
        """What Vault keeps."""
        return self.seen.secret(PATH)

    def marked(self) -> bool:
        """Whether joins are frozen."""
        server = self.seen.servers(PRIMARY)[0]
        return self.seen.consul(server, f"kv/{MARK}", self.management).status_code == 200

    def members(self) -> dict[str, int]:
        """Every agent's state (1: alive), as a server of its datacenter and of the WAN sees it."""
        found: dict[str, int] = {}
        for dc in DATACENTERS:
            for params in ({}, {"wan": "1"}):
                server = self.seen.servers(dc)[0]
                answer = self.seen.consul(server, "agent/members", self.management, **params)
                found |= {f"{m['Name']} seen by {server}": m["Status"] for m in answer.json()}
        return found

    def all_alive(self) -> None:
        """Wait until every host's agent is a living member again."""

        def alive() -> bool:
            states = self.members()
            names = {name.split()[0] for name in states}
            return set(self.hosts) <= names and set(states.values()) == {1}

        until(alive, "all agents to be alive", 60)

    def one_key(self) -> str:
        """All agents have and use one key, all disks start with it, Vault has it and no other."""
        pools = self.pools()
        (key,) = {str(key) for pool in pools for key in pool["Keys"]}
        for pool in pools:
            assert pool["Keys"] == pool["PrimaryKeys"] == {key: pool["NumNodes"]}, pool["NumNodes"]
        servers = [s for dc in DATACENTERS for s in self.seen.servers(dc)]
        lans = [pool["NumNodes"] for pool in pools if not pool["WAN"]]
        assert sum(lans) == len(self.hosts)
        assert [pool["NumNodes"] for pool in pools if pool["WAN"]] == [len(servers)]
        rings = self.rings()
        assert len(rings) == len(self.hosts) + len(servers)
        wrong = [where for where, ring in rings.items() if ring != [key]]
        wrong += [host for host, found in self.files().items() if found != key]
        assert wrong == []
        document = self.document()
        assert set(document) == {"key", "fingerprint", "since", "state"}
        assert document["key"] == key
        assert not self.marked()
        return key


class Watch(threading.Thread):
    """
    Looks 10 times a second who is alive, and calls services through the mesh.

    Who can read nobody stays failed. An agent of a busy machine is failed for a
    moment too, which is told apart by its length.
    """

    LONGEST = 3.0

    def __init__(self, gossip: Gossip) -> None:
        super().__init__(daemon=True)
        self.gossip = Gossip(gossip.lab)  # connections of its own
        self.over = threading.Event()
        self.looks = 0
        self.failures: list[str] = []

    def run(self) -> None:
        address = self.gossip.seen.layout.host("us-app-1").address
        gone: dict[str, float] = {}
        while not self.over.is_set():
            began = time.monotonic()
            try:
                states = self.gossip.members()
                gone = {n: gone.get(n, began) for n, state in states.items() if state != 1}
                for name, since in gone.items():
                    if began - since > self.LONGEST:
                        self.failures.append(f"{name}: {states[name]}")
                for port, _ in ALLOWED:
                    answer = self.gossip.seen.http.get(f"http://{address}:{port}/")
                    if answer.status_code != 200:
                        self.failures.append(f"{port}: {answer.status_code}")
                self.looks += 1
            except Exception as error:  # noqa: BLE001 - whatever a caller would stumble over
                self.failures.append(repr(error))
            self.over.wait(max(0.0, 0.1 - (time.monotonic() - began)))


@contextmanager
def watching(gossip: Gossip) -> Iterator[Watch]:
    """Somebody looks all the while; what was seen is the test's to judge."""
    watch = Watch(gossip)
    watch.start()
    try:
        yield watch
    finally:
        watch.over.set()
        watch.join()
