"""
No secret leaves where it is kept: searched for by its own bytes, everywhere.

A mesh is booted from nothing, its tokens are rotated, it is cut, booted with a
wrong share and booted right, all under a real Prefect server. Then every secret
there is by now (key shares, tokens, keys, credentials) is looked for in
Prefect's database and storage, in every API answer, in what was printed, in journal, reports and pictures, and in
the argument lists of every process that ran meanwhile.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from deployments.lab.layout import CONSUL_HTTPS_PORT, PRIMARY, SECONDARY
from tests.deploy.server import PrefectServer
from tests.harness.lab import Lab, Ran
from tests.integration.outside import Outside
from tests.lab.machine import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

ROTATED = (
    " services/",
    " consul/engines/",
    " consul/tokens/",
    " consul/ca-token",
    " consul/gossip",
)
WRONG = "canary-5b1e0c97-not-a-share"


class Arguments(threading.Thread):
    """Every argument list of every process while it runs, as often as it can look."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.seen.add(path.read_bytes())
                except OSError:
                    continue
            time.sleep(0.02)


def test_no_secret_is_found_anywhere(fresh_lab: Lab, prefect: PrefectServer) -> None:
    lab = fresh_lab
    watcher = Arguments()
    watcher.start()
    said: list[Ran] = []

    def run(runbook: str, **options: object) -> Ran:
        words = ["run", runbook, "--mesh", "lab", "--json", "--engine", "prefect"]
        for name, value in options.items():
            words += ["--set", f"{name}={str(value).lower()}"]
        ran = lab.mesh(*words, timeout=400, **_prefect_only(prefect))
        said.append(ran)
        return ran

    def boot(**options: object) -> Ran:
        return run("cold-boot", **options)

    first = boot(initialise=True)
    assert first.status == 0, f"{first}\n{first.err[-3000:]}"
    secrets = _secrets(lab)
    assert len(secrets) > 15, sorted(secrets)

    # All that rotates: what was replaced must not be found either.
    for generation in ("first", "second"):
        rotated = run("token-rotation", older_than=0)
        assert rotated.status == 0, f"{rotated}\n{rotated.err[-3000:]}"
        held = _secrets(lab).items()
        now = {f"{generation} {k}": v for k, v in held if any(path in k for path in ROTATED)}
        # All but the role of the secrets engine, whose credentials are never kept.
        rotating = [role for role in lab.topology.roles() if role.kind != "dynamic" or role.path]
        assert len(now) == len(rotating) > 10
        assert not set(now.values()) & set(secrets.values()), "nothing was replaced"
        secrets |= now
        audited = run("token-audit")
        assert audited.status == 0, f"{audited}\n{audited.err[-3000:]}"
    # What it finds it quotes: a token that nobody declared must be named, and not its secret.
    secrets |= {"secret of a stranger": _stranger(lab)}
    audited = run("token-audit")
    assert (audited.status, audited.outcome) == (1, "failed"), audited
    assert any("stranger" in line for line in audited.problem["details"])

    # A wrong share in a holder's store: its text must not come back in an error.
    lab.power_cut()
    kept = lab.directory / "holders" / "ops-a.key"
    right = kept.read_bytes()
    document = json.loads(right)
    document["shares"] = [WRONG, WRONG + "-2"]
    kept.unlink()
    kept.write_text(json.dumps(document))
    kept.chmod(0o400)
    stopped = boot(without_holders="ops-b")
    assert stopped.status in {1, 3}, stopped
    passed_over = boot()
    assert passed_over.status == 0, f"{passed_over}\n{passed_over.err[-3000:]}"
    assert any("ops-a" in notice for notice in passed_over.report["notices"])
    lab.power_cut()
    kept.unlink()
    kept.write_bytes(right)
    kept.chmod(0o400)

    healed = boot()
    assert healed.status == 0, f"{healed}\n{healed.err[-3000:]}"
    watcher.over.set()
    watcher.join()

    secrets |= {"wrong share": WRONG} | _secrets(lab)
    places = {
        **_answers(prefect),
        **{f"printed by run {n}": (r.out + r.err).encode() for n, r in enumerate(said)},
        "arguments of processes": b"\n".join(sorted(watcher.seen)),
    }
    searched = 0
    for folder in (prefect.home, lab.directory.parent / "state", lab.directory):
        for file in _files(folder, lab):
            places[str(file)] = file.read_bytes()
            searched += 1
    assert searched > 5
    assert any(name.endswith(".db") for name in places)
    assert len(watcher.seen) > 30
    found = [
        f"{what} in {where}"
        for where, content in places.items()
        for what, secret in secrets.items()
        if secret.encode() in content
    ]
    assert found == []


def _prefect_only(server: PrefectServer) -> dict[str, str]:
    names = ("PREFECT_API_URL", "PREFECT_HOME", "DO_NOT_TRACK")
    return {name: server.environ[name] for name in names}


def _secrets(lab: Lab) -> dict[str, str]:
    """Every secret of the lab, by what it is."""
    found: dict[str, str] = {}
    with lab.connections() as connections:
        mesh = connections.topology
        for holder in mesh.vault.holders:
            document = connections.store(holder).read() or {}
            for number, share in enumerate(document.get("shares", [])):
                found[f"share {number} of {holder.name}"] = str(share)
        assert mesh.vault.credential is not None
        credential = connections.store(mesh.vault.credential).read() or {}
        found["secret id of the AppRole"] = str(credential["secret_id"])
        token = connections.vault().login()
        host = connections.vault().active()
        assert host is not None
        with connections.vault().node(host, token=token) as api:
            for path in _paths(api, mesh.vault.kv_mount, ""):
                data = api.get(f"/v1/{mesh.vault.kv_mount}/data/{path}").json(dict)["data"]["data"]
                for name in ("secret", "token", "key"):
                    if data.get(name):
                        found[f"{name} at {path}"] = str(data[name])
    gossip = json.loads(lab.disk("us-consul-1", "/etc/consul.d/gossip.json").read_text())
    found["gossip key"] = str(gossip["encrypt"])
    key = (lab.layout.pki / "operator_ed25519").read_text().splitlines()
    found["ssh key"] = key[3]
    assert all(len(secret) > 15 for secret in found.values()), sorted(found)
    return found


def _stranger(lab: Lab) -> str:
    """A token made by hand; its secret."""
    seen = Outside(lab)
    host = seen.layout.host(seen.servers(PRIMARY)[0])
    made = seen.http.put(
        f"https://{host.address}:{CONSUL_HTTPS_PORT}/v1/acl/token",
        json={"Description": "somebody's"},
        headers={"X-Consul-Token": seen.management()},
    ).json()
    until(
        lambda: (
            seen.consul(seen.servers(SECONDARY)[0], "acl/token/self", made["SecretID"]).status_code
            == 200
        ),
        "replication",
    )
    return str(made["SecretID"])


def _paths(api: Any, mount: str, folder: str) -> list[str]:
    answer = api.request("LIST", f"/v1/{mount}/metadata/{folder}", mutates=False)
    paths: list[str] = []
    for key in answer.json(dict)["data"]["keys"] if answer.status == 200 else []:
        paths += _paths(api, mount, folder + key) if key.endswith("/") else [folder + key]
    return paths


def _answers(server: PrefectServer) -> dict[str, bytes]:
    """What Prefect's API tells of runs, tasks, logs, artifacts, states and events."""
    found = {}
    for kind in ("flow_runs", "task_runs", "logs", "artifacts", "variables", "block_documents"):
        pages: list[bytes] = []
        for offset in range(0, 10_000, 200):
            answer = httpx.post(
                f"{server.url}/{kind}/filter", json={"limit": 200, "offset": offset}, timeout=30
            )
            assert answer.status_code == 200, f"{kind}: {answer.text[:300]}"
            pages.append(answer.content)
            if len(answer.json()) < 200:
                break
        found[f"API {kind}"] = b"".join(pages)
    events = httpx.post(f"{server.url}/events/filter", json={"limit": 50}, timeout=30)
    assert events.status_code == 200
    found["API events"] = events.content
    assert len(json.loads(found["API artifacts"].split(b"][")[0].rstrip(b"]") + b"]")) > 0
    return found


def _files(folder: Path, lab: Lab) -> Iterator[Path]:
    """All files of a folder, but those whose purpose is to hold a secret."""
    if not folder.is_dir():
        return
    kept = {lab.directory / name for name in ("holders", "pki", "hosts", "aws", "cache")}
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.name == "credentials.yaml":
            continue
        if not any(file.is_relative_to(place) for place in kept):
            yield file
