"""The data plane: what it makes of an agent's answers, and how it outlives an agent's absence."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest

from deployments.lab import dataplane, disks
from deployments.lab.agent_watch import Agent, Watch
from deployments.lab.layout import Layout
from deployments.lab.pki import Authority, Names
from deployments.lab.xds import Resources, Xds
from tests.lab.machine import free_network

T = TypeVar("T")
TRUST = "11111111-2222-3333-4444-555555555555.consul"
HERE, THERE = "us-east-1", "eu-west-1"


def until(probe: Callable[[], T], seconds: float = 10.0) -> T:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := probe():
            return found
        time.sleep(0.02)
    raise AssertionError("not in time")


# Decisions


class Answers(dataplane.Watches):
    """An agent that has said what a test gives it, and nothing else."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__(Agent("https://127.0.0.1:1", "/nowhere"))
        self.answers = answers

    def value(self, path: str, decode: Callable[[Any], Any]) -> Any:
        return decode(self.answers[path]) if path in self.answers else None


def instance(address: str, port: int) -> dict[str, Any]:
    return {"Node": {"Address": "127.0.0.99"}, "Service": {"Address": address, "Port": port}}


def chain(resolver: dict[str, Any], **targets: str) -> dict[str, Any]:
    return {
        "Chain": {
            "StartNode": "resolver:pay",
            "Nodes": {"resolver:pay": {"Type": "resolver", "Resolver": resolver}},
            "Targets": {
                name: {"Service": "pay", "Datacenter": datacenter}
                for name, datacenter in targets.items()
            },
        }
    }


LEAF = "/v1/agent/connect/ca/leaf/web"
ROOTS = "/v1/agent/connect/ca/roots"
MATCH = "/v1/connect/intentions/match?by=destination&name=web"
CHAIN = "/v1/discovery-chain/pay"
KNOWN: dict[str, Any] = {
    ROOTS: {"TrustDomain": TRUST, "Roots": [{"RootCert": "ROOT"}]},
    LEAF: {"CertPEM": "LEAF", "PrivateKeyPEM": "KEY"},
    MATCH: {"web": []},
    CHAIN: chain({"Default": True, "Target": "here"}, here=HERE),
    "/v1/health/connect/pay?passing": [instance("127.0.0.5", 20000)],
    "/v1/health/service/mesh-gateway?passing": [instance("127.0.0.6", 8443)],
}
SIDECAR = {
    "service": "web",
    "datacenter": HERE,
    "datacenters": [HERE, THERE],
    "directory": "/run/x",
    "listen": ["127.0.0.1", 20000],
    "application": ["127.0.0.1", 8080],
    "access_log": "",
    "upstreams": [{"service": "pay", "listen": ["127.0.0.1", 9191], "datacenter": ""}],
}


def targets(made: Resources) -> list[tuple[str, list[str]]]:
    """Each target cluster of the upstream, in order, with its endpoints' addresses."""
    (aggregate,) = (c for c in made["cds"] if c["name"] == "pay:9191")
    order = aggregate["cluster_type"]["typed_config"]["clusters"]
    by_name = {c["name"]: c for c in made["cds"]}
    return [
        (
            name,
            [
                e["endpoint"]["address"]["socket_address"]["address"]
                for e in by_name[name]["load_assignment"]["endpoints"][0]["lb_endpoints"]
            ],
        )
        for name in order
    ]


@pytest.mark.parametrize("missing", [ROOTS, LEAF, MATCH])
def test_a_sidecar_listens_only_when_it_knows_itself_and_who_may_call(missing: str):
    made = dataplane.sidecar(SIDECAR, Answers({k: v for k, v in KNOWN.items() if k != missing}))

    assert (made["lds"], made["cds"]) == ([], [])


def test_a_sidecar_listens_inwards_and_for_each_upstream():
    made = dataplane.sidecar(SIDECAR, Answers(KNOWN))

    assert {"inbound", "pay:9191"} == {listener["name"] for listener in made["lds"]}


def test_without_a_resolver_the_other_datacenter_stands_in_through_the_own_gateway():
    assert [
        (f"9191/pay.{HERE}", ["127.0.0.5"]),
        (f"9191/pay.{THERE}", ["127.0.0.6"]),
    ] == targets(dataplane.sidecar(SIDECAR, Answers(KNOWN)))


def test_an_instance_that_fails_its_checks_is_no_endpoint():
    answers = KNOWN | {"/v1/health/connect/pay?passing": []}

    assert (f"9191/pay.{HERE}", []) == targets(dataplane.sidecar(SIDECAR, Answers(answers)))[0]


def test_a_resolver_in_consul_decides_the_order():
    resolver = {"Target": "there", "Failover": {"Targets": ["here"]}}
    answers = KNOWN | {CHAIN: chain(resolver, here=HERE, there=THERE)}

    found = targets(dataplane.sidecar(SIDECAR, Answers(answers)))
    assert [f"9191/pay.{THERE}", f"9191/pay.{HERE}"] == [name for name, _ in found]


def test_a_pinned_upstream_goes_to_its_datacenter_alone():
    upstream = {"service": "pay", "listen": ["127.0.0.1", 9191], "datacenter": THERE}
    made = dataplane.sidecar(SIDECAR | {"upstreams": [upstream]}, Answers(KNOWN))

    assert [(f"9191/pay.{THERE}", ["127.0.0.6"])] == targets(made)


def test_the_strongest_intention_comes_first():
    rows = [
        {"SourceName": "*", "Action": "deny", "Precedence": 8},
        {"SourceName": "api", "Action": "allow", "Precedence": 9},
    ]
    made = dataplane.sidecar(SIDECAR, Answers(KNOWN | {MATCH: {"web": rows}}))
    (inbound,) = (listener for listener in made["lds"] if listener["name"] == "inbound")
    manager = inbound["filter_chains"][0]["filters"][0]["typed_config"]

    assert list(manager["http_filters"][0]["typed_config"]["rules"]["policies"]) == ["000-api"]


GATEWAY = {
    "datacenter": HERE,
    "servers": {"s1": ["127.0.0.11", 8300]},
    "remotes": {THERE: [["127.0.0.21", 8443]]},
    "listen": {"lan": ["127.0.0.31", 8443]},
    "access_log": "",
}


def routes(made: Resources) -> dict[str, list[str]]:
    """The endpoints' addresses of every cluster."""
    return {
        c["name"]: [
            e["endpoint"]["address"]["socket_address"]["address"]
            for e in c["load_assignment"]["endpoints"][0]["lb_endpoints"]
        ]
        for c in made["cds"]
    }


def test_a_gateway_with_no_agent_routes_what_its_configuration_says():
    found = routes(dataplane.gateway(GATEWAY, Answers({})))

    assert ["127.0.0.11"] == found["local-servers"] == found["server-s1"]
    assert found[f"gateway-{THERE}"] == ["127.0.0.21"]


def federation(status: str) -> dict[str, Any]:
    tagged = {"wan": {"Address": "127.0.0.22", "Port": 8443}}
    row = {"Service": {"TaggedAddresses": tagged}, "Checks": [{"Status": status}]}
    return {"/v1/internal/federation-states/mesh-gateways": {"ap-south-1": [row], THERE: [row]}}


def test_a_gateway_learns_of_datacenters_and_of_gateways_that_moved():
    found = routes(dataplane.gateway(GATEWAY, Answers(federation("passing"))))

    assert ["127.0.0.22"] == found["gateway-ap-south-1"] == found[f"gateway-{THERE}"]


def test_a_gateway_keeps_its_configured_peer_while_none_is_healthy():
    found = routes(dataplane.gateway(GATEWAY, Answers(federation("critical"))))

    assert found[f"gateway-{THERE}"] == ["127.0.0.21"]
    assert "gateway-ap-south-1" not in found


def test_a_gateway_routes_services_that_have_a_living_sidecar():
    answers = {
        ROOTS: KNOWN[ROOTS],
        "/v1/catalog/services": {"consul": [], "pay": [], "pay-sidecar-proxy": [], "dead": []},
        "/v1/health/connect/pay?passing": [instance("127.0.0.5", 20000)],
    }
    found = routes(dataplane.gateway(GATEWAY, Answers(answers)))

    assert found["service-pay"] == ["127.0.0.5"]
    assert {"service-pay"} == {name for name in found if name.startswith("service-")}


# Watching


class FakeAgent:
    """Answers one path over HTTPS with whatever the test wants at the moment."""

    def __init__(self, folder: Path) -> None:
        self.answers: list[tuple[int, object]] = [(200, {"n": 1})]
        self.asked: list[str] = []
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                fake.asked.append(self.path)
                status, value = fake.answers[0]
                if len(fake.answers) > 1:
                    fake.answers.pop(0)
                body = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("X-Consul-Index", str(len(fake.asked)))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        authority = Authority.create(folder)
        pair = authority.issue(Names("agent", addresses=("127.0.0.1",)))
        (folder / "pem").write_bytes(pair.certificate + pair.key)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "pem")
        self._handler = Handler
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self.agent = Agent(f"https://127.0.0.1:{self.port}", str(folder / "ca.pem"))

    @contextmanager
    def up(self) -> Iterator[None]:
        server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler)
        server.socket = self._context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()


@pytest.fixture
def fake(tmp_path: Path) -> FakeAgent:
    return FakeAgent(tmp_path)


@pytest.fixture
def watch(fake: FakeAgent) -> Iterator[Watch]:
    watch = Watch(fake.agent, "/v1/x", lambda answer: answer["n"], threading.Event())
    watch.start()
    yield watch
    watch.stop()


def test_a_watch_waits_for_an_agent_that_is_not_there_yet(fake: FakeAgent, watch: Watch):
    until(lambda: "refused" in watch.problem)
    assert watch.value is None

    with fake.up():
        assert until(lambda: watch.value) == 1
        assert watch.problem == ""


def test_a_watch_asks_again_from_the_index_it_knows(fake: FakeAgent, watch: Watch):
    with fake.up():
        until(lambda: len(fake.asked) > 1)

    assert fake.asked[0] == "/v1/x"
    assert fake.asked[1] == "/v1/x?index=1&wait=50s"


def test_a_watch_does_not_settle_for_nothing(fake: FakeAgent, watch: Watch):
    """It may be what ACLs left of an answer while the agent had no token yet."""
    fake.answers[:] = [(200, {"n": 0})]
    with fake.up():
        until(lambda: len(fake.asked) > 1)

    assert fake.asked[1] == "/v1/x?index=1&wait=1s"


@pytest.mark.parametrize("bad", [(403, "no"), (500, "no"), (200, ["not", "that"]), (200, {})])
def test_a_watch_keeps_what_it_has_while_answers_are_bad(
    fake: FakeAgent, watch: Watch, bad: tuple[int, object]
):
    with fake.up():
        until(lambda: watch.value == 1)
        fake.answers[:] = [bad]
        until(lambda: watch.problem)
        assert watch.value == 1

        fake.answers[:] = [(200, {"n": 2})]
        until(lambda: watch.value == 2)
        assert not watch.problem


# The program, with a real Envoy


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    with free_network() as network:
        layout = Layout("small", network, tmp_path, "id")
        disks.render(layout)
        yield layout


@contextmanager
def running(layout: Layout, host: str, unit: str) -> Iterator[subprocess.Popen[bytes]]:
    config = f"{layout.root(host)}{disks.DATAPLANE_DIR}/{unit}.json"
    command = [sys.executable, "-I", "-m", "deployments.lab.dataplane", config]
    with disks.log_path(layout, host, unit).open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def accepts(address: tuple[str, int]) -> bool:
    with socket.socket() as client:
        return client.connect_ex(address) == 0


@pytest.mark.integration
def test_a_gateway_passes_tls_to_the_server_it_is_meant_for_without_any_agent(layout: Layout):
    """What federation needs at a first boot, when no agent has a token yet."""
    gateway, server = layout.host("us-gateway-1"), layout.host("us-consul-1")
    name = f"us-consul-1.server.{HERE}.consul"
    with (
        socket.create_server((server.address, 8300)) as listener,
        running(layout, gateway.name, "mesh-gateway"),
    ):
        wan = (gateway.wan_address, 8443)
        until(lambda: accepts(wan), 20)
        context = ssl._create_unverified_context()
        client = socket.create_connection(wan)

        def greet() -> None:
            with suppress(OSError):  # nobody answers its handshake
                context.wrap_socket(client, server_hostname=name)

        threading.Thread(target=greet, daemon=True).start()
        listener.settimeout(10)
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(10)
            assert name.encode() in accepted.recv(4096)
        client.close()


@pytest.mark.integration
def test_envoy_goes_when_the_program_is_killed_and_the_program_when_envoy_is(layout: Layout):
    host = layout.host("us-gateway-1")
    with running(layout, host.name, "mesh-gateway") as program:
        (envoy,) = until(lambda: children(program.pid))
        until(lambda: accepts((host.address, 8443)), 20)
        program.kill()
        program.wait()
        until(lambda: not accepts((host.address, 8443)))
        until(lambda: not Path(f"/proc/{envoy}").exists())

    with running(layout, host.name, "mesh-gateway") as program:
        (envoy,) = until(lambda: children(program.pid))
        os.kill(envoy, signal.SIGKILL)
        assert program.wait(10) == 1


@pytest.mark.integration
def test_the_program_ends_well_when_told_to(layout: Layout):
    host = layout.host("us-gateway-1")
    with running(layout, host.name, "mesh-gateway") as program:
        until(lambda: accepts((host.address, 8443)), 20)
        program.terminate()

        assert program.wait(10) == 0


@pytest.mark.integration
def test_nobody_else_may_ask_for_a_sidecar_s_key_and_it_is_on_no_disk(layout: Layout):
    with running(layout, "us-app-1", "web-portal-sidecar"):
        folder = layout.root("us-app-1") / "run/mesh/web-portal-sidecar"
        until((folder / "bootstrap.json").exists)

        assert folder.stat().st_mode & 0o777 == 0o700
        assert {f.name for f in folder.iterdir()} == {"bootstrap.json", "xds.sock"}


@pytest.mark.integration
def test_envoy_takes_no_inotify_instance(layout: Layout):
    """Many machines give a user 128 for everything; Envoy aborts when there is none left."""
    host = layout.host("us-gateway-1")
    with running(layout, host.name, "mesh-gateway") as program:
        until(lambda: accepts((host.address, 8443)), 20)
        (envoy,) = children(program.pid)
        opened = []
        for fd in Path(f"/proc/{envoy}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                opened.append(str(fd.readlink()))

        assert "socket:" in "".join(opened)
        assert "anon_inode:inotify" not in opened


# What Envoy is told


@pytest.fixture
def xds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Xds]:
    """One below a path that is too long for a socket's, and the test beside it."""
    deep = tmp_path / ("a" * 60) / ("b" * 60)
    deep.mkdir(parents=True)
    xds = Xds(deep / "xds.sock")
    xds.start()
    monkeypatch.chdir(deep)
    yield xds
    xds.shutdown()
    xds.server_close()


def ask(path: str, known: str = "", name: str = "") -> Any:
    """What Envoy is answered, None for a 304."""
    body = json.dumps({"version_info": known, "resource_names": [name]})
    head = f"POST {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect("xds.sock")
        client.sendall((head + body).encode())
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    found = answer.partition(b"\r\n\r\n")[2]
    return json.loads(found) if found else None


LISTENERS = "/v3/discovery:listeners"


def test_envoy_is_told_at_once_what_it_does_not_know(xds: Xds):
    xds.tell({"lds": [{"name": "a"}], "leaf": [{"name": "leaf"}]})

    (listener,) = ask(LISTENERS)["resources"]
    assert listener["name"] == "a"
    assert listener["@type"].endswith("Listener")
    (leaf,) = ask("/v3/discovery:secrets", name="leaf")["resources"]
    assert leaf["name"] == "leaf"


def test_envoy_waits_for_news_and_is_told_the_moment_there_is(xds: Xds):
    xds.tell({"lds": [{"name": "a"}], "cds": []})
    known = ask(LISTENERS)["version_info"]
    later: list[Any] = []
    asking = threading.Thread(target=lambda: later.append(ask(LISTENERS, known)), daemon=True)
    asking.start()
    time.sleep(0.1)

    assert xds.tell({"lds": [{"name": "a"}], "cds": [{"name": "c"}]}) == ["cds"]
    time.sleep(0.1)
    assert not later
    assert xds.tell({"lds": [{"name": "b"}]}) == ["lds"]
    asking.join(5)
    assert [r["name"] for r in later[0]["resources"]] == ["b"]


def test_envoy_is_told_that_nothing_is_new(xds: Xds, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("deployments.lab.xds.HOLD_SECONDS", 0.1)
    xds.tell({"lds": []})

    assert ask(LISTENERS, ask(LISTENERS)["version_info"]) is None
