"""A Prefect server of its own, and a mesh that lies in the dark with its secrets marked."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import yaml
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

ROOT = Path(__file__).resolve().parents[2]
MESH = "dark"
T = TypeVar("T")

# Every secret of the mesh here; none may be found anywhere.
SSH_KEY = (
    Ed25519PrivateKey.generate()
    .private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    .decode()
)
SECRETS = {
    "aws": "canary-4f1c9a7e-aws",
    "proxmox": "canary-4f1c9a7e-pve",
    "hosts": SSH_KEY.splitlines()[3],  # the line that holds the private part
}


@dataclass
class PrefectServer:
    """A running server; `home` is all it keeps."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]
    environ: dict[str, str] = field(default_factory=dict)

    def get(self, path: str, **params: Any) -> Any:
        """One answer of its API."""
        return self._ask("GET", path, params=params).json()

    def post(self, path: str, body: Any = None) -> Any:
        """One answer to a POST."""
        answer = self._ask("POST", path, json=body or {})
        return answer.json() if answer.content else None

    def _ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        """Asked again while its database is busy, as Prefect's own client does.

        On SQLite the server answers 503 with nothing done when a writer waited too long.
        """
        ends = time.monotonic() + 60
        while True:
            answer = httpx.request(method, f"{self.url}{path}", timeout=60, **given)
            if answer.status_code != 503 or time.monotonic() > ends:
                answer.raise_for_status()
                return answer
            time.sleep(0.5)


def environment(home: Path, url: str = "") -> dict[str, str]:
    """What a process needs to be a Prefect of its own; nothing of the developer's comes along."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PREFECT_", "MESH", "AWS_"))
    }
    made = kept | {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "MESH_STATE_DIR": str(home / "state"),
    }
    return made | ({"PREFECT_API_URL": url} if url else {})


def start(home: Path) -> PrefectServer:
    """A server on a free port of the loopback, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = environment(home)
    program = Path(sys.executable).with_name("prefect")
    with (home / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [str(program), "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            env=environ,
            start_new_session=True,
            preexec_fn=default_signals,  # noqa: PLW1509 - nothing else runs in this process yet
        )
    url = f"http://127.0.0.1:{port}/api"
    server = PrefectServer(url, home, process, environment(home, url))

    def answers() -> bool:
        assert process.poll() is None, (home / "server.log").read_text()[-3000:]
        try:
            return httpx.get(f"{url}/health", timeout=2).status_code == 200
        except httpx.TransportError:
            return False

    try:
        await_(answers, 240, lambda: (home / "server.log").read_text()[-3000:])
    except BaseException:
        end(process)
        raise
    return server


def default_signals() -> None:
    """Undo what a background shell sets: with SIGINT ignored, Prefect ignores SIGTERM too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and whatever it started in its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            continue


def await_(probe: Callable[[], T], deadline: float, about: Callable[[], object] = lambda: "") -> T:
    """What a probe gives once it gives anything."""
    ends = time.monotonic() + deadline
    while not (found := probe()):
        assert time.monotonic() < ends, f"not within {deadline} s: {about()}"
        time.sleep(0.2)
    return found


@contextmanager
def worker(server: PrefectServer) -> Iterator[Path]:
    """A process worker of the pool `mesh`, for the length of a `with`; its log."""
    log = server.home / "worker.log"
    program = Path(sys.executable).with_name("prefect")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(program), "worker", "start", "--pool", "mesh", "--name", "tests"],
            stdout=output,
            stderr=output,
            env=server.environ,
            cwd=server.home,
            start_new_session=True,
            preexec_fn=default_signals,  # noqa: PLW1509 - forks once, before any thread matters
        )
    try:
        yield log
    finally:
        end(process)


def run_deployment(
    server: PrefectServer, name: str, log: Path, *, mesh: str, deadline: float = 90, **given: Any
) -> dict[str, Any]:
    """Start a deployment as the UI does, and wait until its run has ended."""
    found = server.get(f"/deployments/name/{name}/{name}-{mesh}")
    started = server.post(
        f"/deployments/{found['id']}/create_flow_run",
        {
            "parameters": found["parameters"] | given,
            "state": {"type": "SCHEDULED"},
            "idempotency_key": str(uuid.uuid4()),
        },
    )

    def ended() -> Any:
        run = server.get(f"/flow_runs/{started['id']}")
        final = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}
        return run if run["state_type"] in final else None

    found = await_(ended, deadline, lambda: log.read_text()[-4000:])
    return dict(found)


def logs(server: PrefectServer, run: dict[str, Any]) -> str:
    """What a run has logged to the server."""
    body = {"logs": {"flow_run_id": {"any_": [run["id"]]}}}
    return "\n".join(line["message"] for line in server.post("/logs/filter", body))


def mesh(
    arguments: list[str], environ: Mapping[str, str], cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The command `mesh`, as typed."""
    return subprocess.run(
        [sys.executable, "-m", "deployments.cli", *arguments],
        capture_output=True,
        text=True,
        env=dict(environ),
        cwd=cwd,
        timeout=120,
        check=False,
    )


def write_topology(folder: Path) -> Path:
    """A small mesh on which nothing answers, with its credentials beside it."""
    file = folder / f"{MESH}.yaml"
    file.write_text(yaml.safe_dump(topology()))
    credentials = folder / "credentials.yaml"
    credentials.write_text(yaml.safe_dump(_credentials()))
    credentials.chmod(0o400)
    return file


def _credentials() -> dict[str, dict[str, str]]:
    """Credentials of every kind, each of them in `SECRETS`."""
    return {
        "aws": {"access_key_id": "AKIAEXAMPLE", "secret_access_key": SECRETS["aws"]},
        "proxmox": {
            "user": "runbooks@pve",
            "token_name": "mesh",
            "token_value": SECRETS["proxmox"],
        },
        "hosts": {"private_key": SSH_KEY},
    }


def topology() -> dict[str, Any]:
    """The same as a document. Port 1 of the loopback refuses at once."""

    def host(name: str, number: int) -> dict[str, Any]:
        return {"name": name, "address": f"127.66.6.{number}", "ssh_port": 1}

    def datacenter(name: str, number: int, cloud: dict[str, Any]) -> dict[str, Any]:
        return {
            "name": name,
            "cloud": cloud,
            "hosts": [host(f"{name}-consul", number), host(f"{name}-gateway", number + 1)],
            "consul": {
                "servers": [f"{name}-consul"],
                "https_port": 1,
                "intermediate_pki_path": f"connect-intermediate-{name}",
            },
            "gateways": [
                {
                    "host": f"{name}-gateway",
                    "lan": f"127.66.6.{number + 1}:2",
                    "wan": f"127.66.7.{number + 1}:2",
                }
            ],
        }

    us = datacenter(
        "us", 10, {"kind": "aws", "region": "us-east-1", "endpoint_url": "http://127.0.0.1:1"}
    )
    us["hosts"].append(host("vault-1", 9))
    eu = datacenter("eu", 20, {"kind": "proxmox", "address": "https://127.0.0.1:1"})
    return {
        "name": MESH,
        "primary": "us",
        "datacenters": [us, eu],
        "vault": {
            "nodes": ["vault-1"],
            "port": 1,
            "address": "https://127.66.6.9:1",
            "holders": [
                {"name": "a", "store": "file", "shares": 2, "path": "a.key"},
                {"name": "b", "store": "file", "shares": 2, "path": "b.key"},
                {"name": "c", "store": "file", "shares": 1, "path": "c.key"},
            ],
            "snapshots": {"directory": "snapshots"},
        },
    }


def leaked(text: str | bytes) -> list[str]:
    """Whose secret stands in this text."""
    data = text.encode() if isinstance(text, str) else text
    return [whose for whose, secret in SECRETS.items() if secret.encode() in data]


def leaked_below(folder: Path) -> dict[str, list[str]]:
    """Files below a folder that hold a secret, and whose."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(f): found for f in files if (found := leaked(f.read_bytes()))}
