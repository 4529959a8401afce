"""
The program of the units `mesh-gateway` and `<service>-sidecar`.

It keeps an Envoy as its child, asks the host's own Consul agent what Envoy is
to do, and tells it by xDS. `consul connect envoy` would do the same, but Consul
1.8 speaks only the xDS v2 that Envoy gave up. A gateway routes servers from its
configuration at once, so that federation waits for no agent.
When Envoy ends, so does this program, and the unit's `Restart=` decides.

    python -m deployments.lab.dataplane CONFIG.json

Standard library only: several of these run on every machine that runs a lab.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from deployments.lab import envoy_gateway, envoy_sidecar
from deployments.lab.agent_watch import Agent, Watch
from deployments.lab.envoy_resources import Address, bootstrap
from deployments.lab.envoy_sidecar import Intention, Target, Upstream
from deployments.lab.xds import Resources, Xds

_SOCKET = "xds.sock"
_OPTIONS = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "warn")
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_GATHER_SECONDS = 0.02  # answers come in bunches; Envoy is told once


class Watches:
    """The watches of one program, each started when first asked for."""

    def __init__(self, agent: Agent) -> None:
        self.changed = threading.Event()
        self._agent = agent
        self._watches: dict[str, Watch] = {}

    def value(self, path: str, decode: Callable[[Any], Any]) -> Any:
        """What the agent last answered; None before it first did."""
        if path not in self._watches:
            self._watches[path] = Watch(self._agent, path, decode, self.changed)
            self._watches[path].start()
        return self._watches[path].value

    def problems(self) -> dict[str, str]:
        """What stands in the way of each watch that has something, by its path."""
        return {path: watch.problem for path, watch in self._watches.items() if watch.problem}

    def roots(self) -> tuple[str, tuple[str, ...]]:
        """The trust domain (empty until known) and the roots' PEM."""
        return self.value("/v1/agent/connect/ca/roots", _roots) or ("", ())

    def instances(self, service: str) -> tuple[Address, ...]:
        """Sidecars of a service in this datacenter whose checks pass."""
        return self.value(f"/v1/health/connect/{service}?passing", _addresses) or ()


def gateway(config: dict[str, Any], watches: Watches) -> Resources:
    """Routes to this datacenter's servers and services, and to the other datacenters."""
    trust_domain, _ = watches.roots()
    found = watches.value("/v1/health/service/consul?passing", _servers) or {}
    servers = {name: (address, port) for name, (address, port) in config["servers"].items()}
    remotes = {dc: tuple(map(tuple, at)) for dc, at in config["remotes"].items()}
    federated = watches.value("/v1/internal/federation-states/mesh-gateways", _gateways) or {}
    remotes |= {dc: at for dc, at in federated.items() if dc != config["datacenter"] and at}
    names = watches.value("/v1/catalog/services", _meshed) or ()
    instances = {name: watches.instances(name) for name in names}
    return envoy_gateway.gateway(
        {name: tuple(at) for name, at in config["listen"].items()},
        servers | found,
        config["datacenter"],
        remotes,
        trust_domain,
        {name: at for name, at in instances.items() if at},
        config["access_log"],
    )


def sidecar(config: dict[str, Any], watches: Watches) -> Resources:
    """The service's identity, who may call it, and what it calls; nothing before its leaf is there."""
    service = config["service"]
    trust_domain, roots = watches.roots()
    leaf = watches.value(f"/v1/agent/connect/ca/leaf/{service}", _leaf)
    path = f"/v1/connect/intentions/match?by=destination&name={service}"
    intentions = watches.value(path, lambda answer: _intentions(answer, service))
    upstreams = [_upstream(config, u, watches) for u in config["upstreams"]]
    made: Resources = envoy_sidecar.secrets(leaf, roots) | {"lds": [], "cds": []}
    if not (trust_domain and leaf and intentions is not None):
        return made
    parts = [envoy_sidecar.outbound(u, trust_domain) for u in upstreams]
    parts.append(
        envoy_sidecar.inbound(
            tuple(config["listen"]),
            tuple(config["application"]),
            intentions,
            trust_domain,
            access_log=config["access_log"],
        )
    )
    for part in parts:
        for kind, resources in part.items():
            made[kind] = made[kind] + resources
    return made


def _upstream(config: dict[str, Any], upstream: dict[str, Any], watches: Watches) -> Upstream:
    service, here = upstream["service"], config["datacenter"]
    if pinned := upstream["datacenter"]:
        order = ((service, pinned),)
    else:
        # A service-resolver in Consul decides; without one, every other datacenter stands in.
        resolved = watches.value(f"/v1/discovery-chain/{service}", _resolved)
        order = resolved or tuple((service, dc) for dc in config["datacenters"])
    targets = []
    for name, datacenter in order:
        if datacenter == here:
            endpoints = watches.instances(name)
        else:
            endpoints = watches.value("/v1/health/service/mesh-gateway?passing", _addresses) or ()
        targets.append(Target(name, datacenter, endpoints))
    return Upstream(service, tuple(upstream["listen"]), tuple(targets))


# What the agent answers


def _roots(answer: Any) -> tuple[str, tuple[str, ...]]:
    return answer["TrustDomain"] or "", tuple(sorted(r["RootCert"] for r in answer["Roots"] or []))


def _leaf(answer: Any) -> tuple[str, str]:
    return answer["CertPEM"], answer["PrivateKeyPEM"]


def _intentions(answer: Any, service: str) -> tuple[Intention, ...]:
    rows = sorted(answer.get(service) or [], key=lambda row: -row["Precedence"])
    return tuple(Intention(row["SourceName"], row["Action"] == "allow") for row in rows)


def _addresses(answer: Any) -> tuple[Address, ...]:
    return tuple(sorted(_address(row) for row in answer))


def _address(row: Any) -> Address:
    return row["Service"]["Address"] or row["Node"]["Address"], row["Service"]["Port"]


def _servers(answer: Any) -> dict[str, Address]:
    return {row["Node"]["Node"]: (row["Node"]["Address"], row["Service"]["Port"]) for row in answer}


def _gateways(answer: Any) -> dict[str, tuple[Address, ...]]:
    found = {}
    for datacenter, rows in (answer or {}).items():
        found[datacenter] = tuple(
            sorted(
                (wan["Address"], wan["Port"])
                for row in rows
                if (wan := row["Service"]["TaggedAddresses"].get("wan"))
                and all(check["Status"] != "critical" for check in row["Checks"])
            )
        )
    return found


def _meshed(answer: Any) -> tuple[str, ...]:
    suffix = "-sidecar-proxy"
    return tuple(sorted(name.removesuffix(suffix) for name in answer if name.endswith(suffix)))


def _resolved(answer: Any) -> tuple[tuple[str, str], ...]:
    chain = answer["Chain"]
    node = chain["Nodes"][chain["StartNode"]]
    resolver = node.get("Resolver") or {}
    if node["Type"] != "resolver" or resolver.get("Default"):
        return ()
    ids = [resolver["Target"], *((resolver.get("Failover") or {}).get("Targets") or [])]
    targets = [chain["Targets"][target] for target in ids]
    return tuple((target["Service"], target["Datacenter"]) for target in targets)


# Envoy


class Envoy:
    """Envoy as a child, told what to do at a socket in a directory that nobody else may enter."""

    def __init__(self, config: dict[str, Any]) -> None:
        directory = Path(config["directory"])
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True)
        self._xds = Xds(directory / _SOCKET)
        self.tell = self._xds.tell
        self.tell({"lds": [], "cds": []})
        start = bootstrap(config["node"], config["name"], tuple(config["admin"]), _SOCKET)
        (directory / "bootstrap.json").write_text(json.dumps(start))
        self._process = subprocess.Popen(
            [config["envoy"], "-c", "bootstrap.json", *_OPTIONS],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_parent,  # noqa: PLW1509, no thread runs yet
        )
        self._xds.start()

    def ended(self) -> int | None:
        """Its exit status once it has ended."""
        return self._process.poll()

    def stop(self) -> None:
        """End it, the hard way after three seconds."""
        self._process.terminate()
        try:
            self._process.wait(3)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _log(text: str) -> None:
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    print(f"{stamp}.{int(now % 1 * 1000):03}Z {text}", flush=True)


def run(config: dict[str, Any]) -> int:
    """Serve until told to stop (0) or until Envoy ends (1)."""
    stopping = threading.Event()
    watches = Watches(Agent(config["agent"], config["ca_file"]))

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()
        watches.changed.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    envoy = Envoy(config)
    render = gateway if config["kind"] == "mesh-gateway" else sidecar
    said: set[str] = set()
    watches.changed.set()
    while not stopping.is_set():
        if watches.changed.wait(0.5):
            time.sleep(_GATHER_SECONDS)
            watches.changed.clear()
            if changed := envoy.tell(render(config, watches)):
                _log(f"told Envoy: {', '.join(changed)}")
            if (problems := watches.problems()).keys() != said:
                said = set(problems)
                lines = [f"{path}: {problem}" for path, problem in problems.items()]
                _log("; ".join(lines) or "the agent answers everything")
        if (status := envoy.ended()) is not None:
            _log(f"Envoy ended with status {status}")
            return 1
    envoy.stop()
    return 0


def main() -> int:
    """Read the configuration named on the command line and serve."""
    os.umask(0o077)
    config: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    return run(config)


if __name__ == "__main__":
    sys.exit(main())
