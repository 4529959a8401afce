"""Tokens that agents carry, replaced on the lab's real servers (R1, R2, R4, R6, R8, R9, R12)."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from blocks import agent_tokens
from deployments.lab.layout import CONSUL_HTTPS_PORT, DATACENTERS, PRIMARY, SECONDARY
from tasks import consul_acl, hosts
from tests.harness.lab import Lab, Ran
from tests.integration import changes
from tests.integration.outside import ALLOWED, assert_up
from tests.integration.tokens import Tokens
from tests.lab.machine import until

pytestmark = pytest.mark.integration

ALL = "agents,agent-defaults,replication"
MARK = "mesh-runbooks-proof"


class Agents(Tokens):
    """The tokens of a lab's agents as an outsider sees them."""

    @property
    def names(self) -> list[str]:
        """The roles of all of them."""
        return [t.name for t in agent_tokens.of_the_boot(self.lab.topology)]

    def kept(self, name: str) -> dict[str, Any]:
        """What Vault keeps of a role."""
        return self.seen.secret(f"{agent_tokens.FOLDER}/{name}")

    def all_kept(self) -> dict[str, dict[str, Any]]:
        return {name: self.kept(name) for name in self.names}

    def on_disk(self, host: str) -> dict[str, str]:
        """The tokens that an agent would have after a restart."""
        file = self.lab.disk(host, "/opt/consul/acl-tokens.json")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        return dict(json.loads(file.read_text()))

    def node(self, host: str) -> dict[str, Any]:
        """An agent's entry in the catalog."""
        dc = self.lab.layout.host(host).datacenter
        found = self.seen.consul(
            self.server(dc), f"catalog/node/{host}", self.management, consistent=""
        )
        return dict(found.json()["Node"])

    def plant(self, host: str) -> None:
        """Change an agent's entry, so that it has something to put right."""
        node = self.node(host)
        entry = {k: node[k] for k in ("ID", "Node", "Address", "TaggedAddresses")}
        dc = self.lab.layout.host(host).datacenter
        self.put("catalog/register", dc, **entry, NodeMeta={**node["Meta"], MARK: "by a test"})
        assert MARK in self.node(host)["Meta"]

    def gives(self, host: str, kind: str, secret: str) -> None:
        """Hand an agent a token, as its own operator may."""
        url = f"https://{self.lab.layout.host(host).address}:{CONSUL_HTTPS_PORT}/v1/agent/token"
        answer = self.seen.http.put(
            f"{url}/{kind}", json={"Token": secret}, headers={"X-Consul-Token": self.management}
        )
        assert answer.status_code == 200, answer.text

    def speaks_with(self, host: str) -> str:
        """The accessor with which an agent answers whoever has no token."""
        return str(self.seen.consul(host, "acl/token/self").json().get("AccessorID"))

    def one_each(self) -> None:
        """R4: each role has the one token that Vault has, and its agents have it on their disks."""
        kept = self.all_kept()
        for dc in DATACENTERS:
            found = self.seen.consul(self.server(dc), "acl/tokens", self.management).json()
            for token in agent_tokens.of_the_boot(self.lab.topology):
                mine = [t["AccessorID"] for t in found if t["Description"] == token.description]
                assert mine == [kept[token.name]["accessor"]], f"{token.name} in {dc}"
        for token in agent_tokens.of_the_boot(self.lab.topology):
            document = kept[token.name]
            assert set(document) == {"accessor", "secret", "state"}, token.name
            for host in token.hosts:
                assert self.on_disk(host)[token.kind] == document["secret"], token.name
            if token.kind == "default":
                assert self.speaks_with(token.hosts[0]) == document["accessor"]


class Watcher(threading.Thread):
    """Sees 10 times a second whether services are healthy and answer through the mesh."""

    def __init__(self, agents: Agents) -> None:
        super().__init__(daemon=True)
        self.agents = agents
        self.over = threading.Event()
        self.looks = 0
        self.failures: list[str] = []
        self.wanted = {dc: self._passing(dc) for dc in DATACENTERS}

    def _passing(self, dc: str) -> set[tuple[str, str]]:
        seen = self.agents.seen
        found = set()
        for name in ("payment-processor", "web-portal", "reporting-agent", "mesh-gateway"):
            answer = seen.consul(
                self.agents.server(dc),
                f"health/service/{name}",
                self.agents.management,
                passing="1",
            )
            found |= {(name, entry["Node"]["Node"]) for entry in answer.json()}
        return found

    def run(self) -> None:
        address = self.agents.lab.layout.host("us-app-1").address
        while not self.over.is_set():
            try:
                for dc, wanted in self.wanted.items():
                    if lost := wanted - self._passing(dc):
                        self.failures.append(f"not passing in {dc}: {lost}")
                for port, _ in ALLOWED:
                    answer = self.agents.seen.http.get(f"http://{address}:{port}/")
                    if answer.status_code != 200:
                        self.failures.append(f"{port}: {answer.status_code}")
                self.looks += 1
            except (httpx.HTTPError, ValueError) as error:
                self.failures.append(repr(error))
            self.over.wait(0.1)

    @contextmanager
    def watching(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self.over.set()
            self.join()
        assert self.failures == []
        assert self.looks > 10


@pytest.fixture
def agents(healthy: Lab) -> Agents:
    """A healthy lab whose agents carry what Vault has."""
    return Agents(healthy)


def rotate(agents: Agents, **options: object) -> Ran:
    chosen: dict[str, Any] = {"roles": ALL, "older_than": 0, "soak": 0.5} | options
    return agents.rotate(**chosen)


def test_every_agents_token_is_replaced_and_no_service_notices(agents: Agents):
    """R1, R2, R4, R8: in memory, on disk and in use; the old ones are 403 in both datacenters."""
    before = agents.all_kept()
    watcher = Watcher(agents)
    assert watcher.wanted[PRIMARY]
    assert watcher.wanted[SECONDARY]

    with watcher.watching():
        ran = rotate(agents)

    changes.ends(ran, 0, "verified")
    agents.one_each()
    now = agents.all_kept()
    for name, document in before.items():
        assert now[name]["accessor"] != document["accessor"]
        assert [agents.self_status(dc, document["secret"]) for dc in DATACENTERS] == [403, 403]
    count = len(agents.names)
    assert (ran.report["measures"]["promoted"], ran.report["measures"]["revoked"]) == (count, count)
    assert [host for host in agents_of(agents) if MARK in agents.node(host)["Meta"]] == []

    # Nothing that was said or written down holds a secret of those before or of those now.
    secrets = [d["secret"] for d in (*before.values(), *now.values())]
    told = ran.out + ran.err + (agents.lab.directory / "journal.jsonl").read_text()
    assert [s for s in secrets if s in told] == []

    # They are the boot's own, to the boot and to the audit too.
    again = agents.rotate(roles=ALL)
    changes.ends(again, 0, "nothing")
    assert again.mutating_calls == 0
    booted = agents.lab.run("cold-boot")
    changes.ends(booted, 0, "nothing")
    audited = agents.lab.run("token-audit")
    changes.ends(audited, 0, "nothing")


def test_no_agent_asks_on_and_on_with_a_token_that_is_revoked(agents: Agents):
    """Of its sidecars' upstreams an agent asks with the token they were registered with."""
    changes.ends(rotate(agents, roles=["agent-defaults"]), 0, "verified")
    ended = time.time()

    def asked(host: str) -> int | None:
        """How often an agent asked its servers in ten seconds that began after the rotation."""
        metrics = agents.seen.consul(host, "agent/metrics", agents.management).json()
        at = datetime.strptime(metrics["Timestamp"], "%Y-%m-%d %H:%M:%S %z %Z").timestamp()
        if at < ended + 5:
            return None
        counts = {c["Name"]: c["Count"] for c in metrics["Counters"]}
        return int(counts.get("consul.client.rpc", 0)) + 1

    for host in ("us-app-1", "us-app-2", "eu-app-1"):
        counted = until(partial(asked, host), f"figures of {host}", 40)
        assert counted
        assert counted < 2000, host


def agents_of(agents: Agents) -> list[str]:
    return [t.hosts[0] for t in agent_tokens.of_the_boot(agents.lab.topology) if t.kind == "agent"]


def test_restarted_agents_keep_the_new_tokens_and_work_with_them(agents: Agents):
    """R9: in each datacenter a client agent that was killed, and a server that is restarted."""
    pairs = [(agents.server(PRIMARY), "us-app-1"), (agents.server(SECONDARY), "eu-app-1")]
    both = [host for pair in pairs for host in pair]
    chosen = [f"agent-{host}" for host in both] + [f"default-{client}" for _, client in pairs]
    changes.ends(rotate(agents, roles=[*chosen, "replication"]), 0, "verified")

    with agents.lab.connections() as connections:
        machine = connections.topology.host
        for host in both:
            agents.plant(host)
        for server, client in pairs:
            pid = agents.lab.pid(client, "consul")
            assert pid
            os.kill(pid, signal.SIGKILL)
            hosts.start(connections, machine(client), ["consul"])
            hosts.restart(connections, machine(server), ["consul"])

    for _, client in pairs:
        wanted = agents.kept(f"default-{client}")["accessor"]
        until(lambda c=client, w=wanted: speaks(agents, c) == w, f"{client} to speak with it", 60)  # type: ignore[misc]
    for host in both:
        until(lambda host=host: put_right(agents, host), f"{host} to put its entry right", 60)  # type: ignore[misc]
    booted = agents.lab.run("cold-boot")
    assert booted.status == 0, booted
    assert_up(agents.lab)
    agents.one_each()


def speaks(agents: Agents, host: str) -> str:
    try:
        return agents.speaks_with(host)
    except (httpx.HTTPError, ValueError):
        return ""


def put_right(agents: Agents, host: str) -> bool:
    try:
        return MARK not in agents.node(host)["Meta"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


def test_an_agent_that_is_down_is_named_and_left_alone_and_others_are_not(agents: Agents):
    before = agents.all_kept()
    with agents.lab.frozen("us-app-2", "consul"):
        ran = rotate(agents, roles="agent-us-app-2,agent-us-app-1")
        alone = rotate(agents, roles="agent-us-app-2")

    changes.ends(ran, 1, "failed")
    assert "agent-us-app-2 can be rotated" in ran.problem["details"][0]
    assert "the agent on us-app-2 does not answer" in ran.problem["details"][0]
    assert ran.report["measures"] | {"promoted": 1, "failed": 0} == ran.report["measures"]
    changes.ends(alone, 3, "refused")
    assert alone.mutating_calls == 0
    assert agents.kept("agent-us-app-2") == before["agent-us-app-2"]
    assert agents.kept("agent-us-app-1") != before["agent-us-app-1"]
    changes.ends(rotate(agents, roles="agent-us-app-2"), 0, "verified")
    agents.one_each()


def test_an_agent_that_goes_down_in_the_middle_fails_its_role_and_keeps_its_old_token(
    agents: Agents, tmp_path: Path
):
    """R2, R6: nobody knows which one it has; both work, and the next run ends it."""
    before = agents.kept("agent-us-app-2")
    pid = agents.lab.pid("us-app-2", "consul")
    assert pid
    freeze = {"after": "POST /v1/mesh/data/consul/tokens/agent-us-app-2", "do": f"kill -STOP {pid}"}
    words = agents.lab.arguments(
        "token-rotation",
        {"roles": "agent-us-app-2,agent-us-app-1", "older_than": 0, "soak": 0.5},
    )
    try:
        ran = agents.lab.mesh(
            *words,
            module=f"tests.integration.watched {tmp_path / 'calls'}",
            WATCH=json.dumps([freeze]),
        )
    finally:
        os.kill(pid, signal.SIGCONT)

    changes.ends(ran, 1, "failed")
    assert "agent-us-app-2 through adopt" in ran.problem["details"][0]
    assert "us-app-2: its agent to answer" in ran.problem["details"][0]
    held = agents.kept("agent-us-app-2")
    assert held["previous"]["accessor"] == before["accessor"]
    for secret in (held["secret"], before["secret"]):
        assert [agents.self_status(dc, secret) for dc in DATACENTERS] == [200, 200]
    assert set(agents.kept("agent-us-app-1")) == {"accessor", "secret", "state"}
    changes.ends(rotate(agents, roles="agent-us-app-2"), 0, "verified")
    assert agents.kept("agent-us-app-2")["accessor"] == held["accessor"]
    assert [agents.self_status(dc, before["secret"]) for dc in DATACENTERS] == [403, 403]
    agents.one_each()


# Once, or over and over until a file is gone.
GIVE = """
import os, sys, time, httpx
said, until = sys.argv[1:]
url, management, secret, ca = open(said).read().split()
with httpx.Client(verify=ca, headers={"X-Consul-Token": management}) as client:
    client.put(url, json={"Token": secret})
    while os.path.exists(until):
        client.put(url, json={"Token": secret})
"""


def giving(agents: Agents, folder: Path, host: str, kind: str, secret: str) -> str:
    """
    A shell command by which something hands an agent a token; no secret is in it.

    An agent's own token is handed anew by the rotation: so this does it over and over.
    """
    script, said = folder / "give.py", folder / f"{kind}.txt"
    script.write_text(GIVE)
    said.touch(mode=0o600)
    address = agents.lab.layout.host(host).address
    url = f"https://{address}:{CONSUL_HTTPS_PORT}/v1/agent/token/{kind}"
    said.write_text(f"{url} {agents.management} {secret} {agents.lab.layout.ca_file}")
    if kind != "agent":
        return f"{sys.executable} {script} {said} {folder / 'never'}"
    return f"{sys.executable} {script} {said} {folder / 'going-on'} >{folder / 'log'} 2>&1 &"


def armed(agents: Agents, accessor: str) -> bool:
    found = agents.seen.consul(
        agents.server(PRIMARY), f"acl/token/{accessor}", agents.management
    ).json()
    return bool(found.get("NodeIdentities") or found.get("Policies"))


def caught_up(agents: Agents) -> bool:
    tokens = agents.seen.consul(agents.server(PRIMARY), "acl/tokens", agents.management).json()
    status = agents.seen.consul(
        agents.server(SECONDARY), "acl/replication", agents.management
    ).json()
    newest = max(int(t["ModifyIndex"]) for t in tokens if not t["Local"])
    return int(status["ReplicatedTokenIndex"]) >= newest


@pytest.mark.parametrize(
    "roles",
    [
        {"agent-us-consul-1": "us-consul-1", "default-eu-app-1": "eu-app-1"},
        {"replication-eu-west-1": "eu-consul-1"},
    ],
    ids=["agent and default", "replication"],
)
def test_agents_that_do_not_work_with_the_new_token_get_the_old_one_armed_again(
    agents: Agents, roles: dict[str, str], tmp_path: Path
):
    """R2: something else hands them the old ones again, just when those are disarmed."""
    before = {name: agents.kept(name) for name in roles}
    asked = []
    for name, host in roles.items():
        kind = name.partition("-")[0]
        command = giving(agents, tmp_path, host, kind, before[name]["secret"])
        # Before, so that no query is under way that was begun with the new one.
        asked.append({"before": f"PUT /v1/acl/token/{before[name]['accessor']}", "do": command})
    options = {"roles": list(roles), "older_than": 0, "soak": 60, "error_threshold": 9}

    going_on = tmp_path / "going-on"
    going_on.touch()
    try:
        ran = agents.lab.mesh(
            *agents.lab.arguments("token-rotation", options),
            module=f"tests.integration.watched {tmp_path / 'calls'}",
            WATCH=json.dumps(asked),
        )
    finally:
        going_on.unlink()

    changes.ends(ran, 1, "failed")
    assert sorted(d.partition(" through use")[0] for d in ran.problem["details"]) == sorted(roles)
    for name, held in before.items():
        assert armed(agents, held["accessor"])
        assert agents.self_status(SECONDARY, held["secret"]) == 200
        assert agents.kept(name)["previous"]["accessor"] == held["accessor"]
    time.sleep(1)  # the last one was handed
    # Consul tries again ever later, after what it was refused.
    until(lambda: caught_up(agents), "replication to have caught up", 150)
    changes.ends(rotate(agents, roles=list(roles)), 0, "verified")
    agents.one_each()


def test_a_first_token_that_a_killed_rotation_left_pending_is_used_by_the_boot_and_not_lost(
    agents: Agents,
):
    """Its ids are in Vault before anybody knows them; the boot writes over them never."""
    name = "default-us-app-2"
    path = f"mesh/data/{agent_tokens.FOLDER}/{name}"
    vault, before = agents.seen.token(), agents.kept(name)
    pending = {"accessor": str(uuid.uuid4()), "secret": str(uuid.uuid4())}
    document = {"state": "pending", "pending": pending}
    agents.seen.vault(path, vault, verb="POST", json={"data": document})

    with agents.lab.connections() as connections:
        role = next(r for r in consul_acl.roles(connections.topology) if r.name == name)
        primary = connections.topology.datacenter(PRIMARY)
        made = consul_acl.ensure_token(
            connections, primary, role, SecretStr(agents.management), SecretStr(vault)
        )

    assert made.get_secret_value() == pending["secret"]
    assert agents.kept(name) == document
    assert agents.self_status(PRIMARY, pending["secret"]) == 200

    ran = rotate(agents, roles=name)
    changes.ends(ran, 0, "verified")
    assert agents.kept(name) == {"state": "live"} | pending
    agents.delete(f"acl/token/{before['accessor']}")  # which Vault had forgotten
    until(lambda: agents.self_status(SECONDARY, before["secret"]) == 403, "replication", 60)
    agents.one_each()


def test_an_agent_whose_token_somebody_revoked_is_handed_another(agents: Agents):
    """And no other run is needed if the one that does it is killed: it stands in Vault."""
    name = "agent-eu-app-1"
    gone = agents.kept(name)
    agents.delete(f"acl/token/{gone['accessor']}")
    until(lambda: agents.self_status(SECONDARY, gone["secret"]) == 403, "replication", 60)

    changes.ends(agents.rotate(roles=name), 0, "verified")

    assert agents.kept(name)["accessor"] != gone["accessor"]
    agents.one_each()


def test_tokens_for_registrations_by_file_are_refused_before_consul_1_15(agents: Agents):
    """The lab's Consul is older: the role is left as it is, in one line."""

    def change(document: dict[str, Any]) -> None:
        document["tokens"].append(
            {"role": "registrations", "kind": "config_file_service_registration"}
        )

    mesh = changes.variant(agents.lab, change, "registrations")

    ran = agents.rotate(mesh, roles="registrations")

    changes.ends(ran, 3, "refused")
    assert ran.mutating_calls == 0
    assert len(ran.problem["details"]) == 5  # client agents
    for reason in ran.problem["details"]:
        assert "is Consul 1.8.7" in reason
        assert "exist since 1.15" in reason
