"""
The floor under a rotation: the same calls to the same servers, with nothing in between.

A bare threaded script for the benchmark: one connection a worker and server, each
step for all tokens at once, the standard library's HTTP client; no plan, no check of
an answer's shape, no deadline, no report, no way back. It looks, stores, creates,
waits for replication, proves, promotes, reads back, disarms, revokes, proves 403 in
every datacenter and forgets, as `token-rotation` does, and leaves the same behind.

    python -m benchmarks.bare_rotation MESH.yaml --workers 16

The last line is JSON: seconds, by phase too, and calls. Secrets stay in memory.
"""

from __future__ import annotations

import argparse
import http.client
import json
import ssl
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from blocks.engine import do_without_prefect

NEVER = str(2**63 - 1)


class Floor:
    """The servers of one mesh, and a connection to each for each thread."""

    def __init__(self, mesh_file: str, workers: int) -> None:
        from blocks.mesh import connect, load_mesh
        from tasks import consul, token_survey

        mesh = load_mesh(mesh_file)
        self.roles = mesh.tokens
        with connect(mesh) as connections:
            self.management = token_survey.management(connections).get_secret_value()
            vault = connections.vault()
            self.vault_token = vault.login().get_secret_value()
            self.vault = vault.nodes[vault.active() or ""]
            ca_file = vault.ca_file
            self.consul = {
                dc.name: consul.url(connections, dc.consul.servers[0]) for dc in mesh.datacenters
            }
        self.primary, self.secondaries = mesh.primary, mesh.secondaries
        self.kv = mesh.vault.kv_mount
        self.tls = ssl.create_default_context(cafile=ca_file)
        self.pool = ThreadPoolExecutor(workers)
        self.workers = workers
        self.mine = threading.local()
        self.calls = 0
        self.phases: dict[str, float] = {}

    def call(
        self, base: str, verb: str, path: str, token: str, body: Any = None
    ) -> tuple[int, Any]:
        """One request; status, and JSON if there is any."""
        kept = self.mine.__dict__.setdefault("kept", {})
        if base not in kept:
            parts = urlsplit(base)
            assert parts.hostname
            kept[base] = http.client.HTTPSConnection(parts.hostname, parts.port, context=self.tls)
        header = "X-Vault-Token" if base == self.vault else "X-Consul-Token"
        content = None if body is None else json.dumps(body).encode()
        kept[base].request(verb, path, content, {header: token})
        answer = kept[base].getresponse()
        read = answer.read()
        self.calls += 1
        return answer.status, json.loads(read) if read[:1] in {b"{", b"["} else None

    def ok(self, *arguments: Any) -> Any:
        """The answer of a request that must be carried out."""
        status, found = self.call(*arguments)
        if status != 200:
            raise SystemExit(f"{arguments[1]} {arguments[2]}: {status}")
        return found

    def each(self, phase: str, items: Sequence[Any], act: Callable[[Any], None]) -> None:
        """A step for all, in threads."""
        began = time.monotonic()

        def some(part: Sequence[Any]) -> None:
            for item in part:
                act(item)

        parts = [items[n :: self.workers] for n in range(self.workers)]
        for done in [self.pool.submit(some, part) for part in parts if part]:
            done.result()
        self.phases[phase] = round(time.monotonic() - began, 2)

    def replicated(self, index: int) -> None:
        """Wait until the secondaries have come to a change."""
        began = time.monotonic()
        for dc in self.secondaries:
            path = "/v1/acl/replication"
            while (
                self.ok(self.consul[dc.name], "GET", path, self.management)["ReplicatedTokenIndex"]
                < index
            ):
                time.sleep(0.1)
        self.phases["replication"] = round(
            self.phases.get("replication", 0) + time.monotonic() - began, 2
        )


class Token:
    """One role on its way."""

    def __init__(self, role: Any) -> None:
        self.role = role
        self.version = 0
        self.old: dict[str, str] = {}
        self.new: dict[str, str] = {}
        self.index = 0


def cycle(floor: Floor) -> None:
    """The whole cycle, for all tokens at once."""
    tokens = [Token(role) for role in floor.roles]
    main, own = floor.consul[floor.primary], floor.management

    def path(token: Token) -> str:
        return f"/v1/{floor.kv}/data/{token.role.path}"

    def write(token: Token, data: dict[str, Any]) -> None:
        body = {"data": data, "options": {"cas": token.version}}
        token.version = floor.ok(floor.vault, "POST", path(token), floor.vault_token, body)["data"][
            "version"
        ]

    def look(token: Token) -> None:
        found = floor.ok(floor.vault, "GET", path(token), floor.vault_token)["data"]
        token.version, data = found["metadata"]["version"], found["data"]
        token.old = {key: data[key] for key in ("accessor", "secret")}

    def store(token: Token) -> None:
        token.new = {"accessor": str(uuid.uuid4()), "secret": str(uuid.uuid4())}
        write(token, {"state": "live", **token.old, "pending": token.new})

    def create(token: Token) -> None:
        body = {
            "AccessorID": token.new["accessor"],
            "SecretID": token.new["secret"],
            "Description": f"token of {token.role.role}, rotated by mesh-runbooks",
            "Policies": [{"Name": name} for name in token.role.policies],
        }
        token.index = floor.ok(main, "PUT", "/v1/acl/token", own, body)["ModifyIndex"]

    def prove(token: Token) -> None:
        for base in floor.consul.values():
            found = floor.ok(base, "GET", "/v1/acl/token/self", token.new["secret"])
            assert found["AccessorID"] == token.new["accessor"]
            may, may_not = (lines[0].split()[-1] for lines in (token.role.may, token.role.may_not))
            assert floor.call(base, "GET", f"/v1/kv/{may}", token.new["secret"])[0] != 403
            denied = floor.call(base, "PUT", f"/v1/kv/{may_not}?cas={NEVER}", token.new["secret"])
            assert denied[0] == 403

    def promote(token: Token) -> None:
        write(token, {"state": "live", **token.new, "previous": token.old})

    def adopt(token: Token) -> None:
        found = floor.ok(floor.vault, "GET", path(token), floor.vault_token)["data"]["data"]
        assert found["secret"] == token.new["secret"]

    def disarm(token: Token) -> None:
        where = f"/v1/acl/token/{token.old['accessor']}"
        found = floor.ok(main, "GET", where, own)
        body = {"AccessorID": found["AccessorID"], "Description": found["Description"]}
        token.index = floor.ok(main, "PUT", where, own, body)["ModifyIndex"]

    def revoke(token: Token) -> None:
        floor.ok(main, "DELETE", f"/v1/acl/token/{token.old['accessor']}", own)

    def refused(token: Token) -> None:
        for base in floor.consul.values():
            while floor.call(base, "GET", "/v1/acl/token/self", token.old["secret"])[0] != 403:
                time.sleep(0.1)

    def forget(token: Token) -> None:
        write(token, {"state": "live", **token.new})

    def listed() -> None:
        for base in floor.consul.values():
            floor.ok(base, "GET", "/v1/acl/tokens?consistent=1", own)

    listed()
    floor.each("look", tokens, look)
    floor.each("store", tokens, store)
    floor.each("create", tokens, create)
    floor.replicated(max(token.index for token in tokens))
    floor.each("prove", tokens, prove)
    floor.each("promote", tokens, promote)
    floor.each("adopt", tokens, adopt)
    for dc, base in floor.consul.items():
        for name in {name for role in floor.roles for name in role.consumers}:
            assert floor.ok(base, "GET", f"/v1/health/service/{name}?passing=1", own), dc
    floor.each("disarm", tokens, disarm)
    floor.replicated(max(token.index for token in tokens))
    floor.each("revoke", tokens, revoke)
    floor.each("refused", tokens, refused)
    floor.each("forget", tokens, forget)
    listed()
    floor.each("verify", tokens, look)


def main(argv: Sequence[str] | None = None) -> int:
    """Rotate every token of a mesh once."""
    parser = argparse.ArgumentParser(prog="benchmarks.bare_rotation", description=__doc__)
    parser.add_argument("mesh")
    parser.add_argument("--workers", type=int, default=16)
    given = parser.parse_args(argv)
    do_without_prefect()
    began = time.monotonic()
    floor = Floor(given.mesh, given.workers)
    floor.phases["set up"] = round(time.monotonic() - began, 2)
    cycle(floor)
    floor.pool.shutdown()
    seconds = round(time.monotonic() - began, 3)
    print(json.dumps({"seconds": seconds, "calls": floor.calls, "phases": floor.phases}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
