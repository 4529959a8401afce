"""The gossip key, replaced on the lab's real servers (R13)."""

from __future__ import annotations

import base64
import json
import secrets
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from deployments.lab.consul_files import DATA_DIR
from deployments.lab.layout import PRIMARY
from tasks import gossip_freeze
from tests.harness.lab import Lab
from tests.integration import changes
from tests.integration.gossip import MARK, OPTIONS, ROLE, Gossip, watching
from tests.lab.machine import until

pytestmark = pytest.mark.integration
HOST = "us-app-2"


@pytest.fixture
def gossip(healthy: Lab) -> Gossip:
    gossip = Gossip(healthy)
    gossip.all_alive()
    return gossip


def test_every_agent_uses_a_new_key_and_nobody_notices(gossip: Gossip):
    """LAN and WAN, in memory, on disk, in Vault; a host without a keyring starts with it too."""
    (before,) = gossip.installed()
    with watching(gossip) as watch:
        ran = gossip.rotate()

    changes.ends(ran, 0, "verified")
    assert watch.failures == []
    assert watch.looks > 10
    new = gossip.one_key()
    assert new != before
    assert len(base64.b64decode(new)) == 32
    told = ran.out + ran.err + (gossip.lab.directory / "journal.jsonl").read_text()
    assert [key for key in (before, new) if key in told] == []
    assert gossip.document()["fingerprint"] in told

    again = gossip.rotate(older_than=1)
    changes.ends(again, 0, "nothing")
    assert again.mutating_calls == 0

    gossip.lab.power_cut()
    shutil.rmtree(gossip.lab.disk(HOST, f"{DATA_DIR}/serf"))
    changes.booted(gossip.lab)
    gossip.all_alive()
    assert gossip.one_key() == new


def test_a_plan_changes_nothing(gossip: Gossip):
    rings, files = gossip.rings(), gossip.files()

    ran = gossip.lab.run("token-rotation", OPTIONS, plan=True)

    changes.ends(ran, 0, "planned")
    assert [r["action"] for r in ran.report["plan"]][-5:] == [
        "install",
        "use",
        "write",
        "remove",
        "forget",
    ]
    assert ran.mutating_calls == 0
    assert (gossip.rings(), gossip.files()) == (rings, files)


def test_a_host_that_is_down_stops_it_before_anything_changes(gossip: Gossip):
    """Consul itself would say 200 to every call: it does not count who has failed."""
    (before,) = gossip.installed()
    with gossip.lab.frozen(HOST, "consul"):
        until(lambda: 4 in gossip.members().values(), "it to count as failed", 30)
        assert gossip.ask("GET").status_code == 200

        ran = gossip.rotate()

        changes.ends(ran, 3, "refused")
        assert ran.mutating_calls == 0
        assert f"the agent of {HOST} is not there (failed)" in ran.problem["error"]
        assert ran.problem["where"] == ROLE
        changes.ends(gossip.rotate(older_than=1), 0, "nothing")
    gossip.all_alive()
    assert gossip.installed() == {before}


def test_a_host_with_another_key_is_named(gossip: Gossip):
    """It is alive, and nobody's member: it can read nobody."""
    (before,) = gossip.installed()
    kept: dict[Path, bytes] = {}
    stop(gossip, HOST)
    for file in gossip.lab.disk(HOST, f"{DATA_DIR}/serf").glob("*.keyring"):
        kept[file] = file.read_bytes()
        file.write_text(json.dumps([key()]))
    start(gossip, HOST)

    ran = gossip.rotate()

    changes.ends(ran, 3, "refused")
    assert ran.mutating_calls == 0
    assert f"the agent of {HOST} is not there (failed), and its keyring has no key" in str(
        ran.problem["error"]
    )
    assert gossip.installed() == {before}
    stop(gossip, HOST)
    for file, content in kept.items():
        file.write_bytes(content)
    start(gossip, HOST)
    gossip.all_alive()


def test_a_key_installed_by_hand_is_not_touched(gossip: Gossip):
    other = key()
    assert gossip.ask("POST", other).status_code == 200
    try:
        before = gossip.installed()

        ran = gossip.rotate()

        changes.ends(ran, 3, "refused")
        assert ran.mutating_calls == 0
        said = f"{ran.problem['error']} {ran.problem['details']}"
        assert "which Vault does not hold" in said or "different keys" in said
        assert gossip.installed() == before
        assert other not in ran.out + ran.err
    finally:
        assert gossip.ask("DELETE", other).status_code == 200


def test_a_host_that_loses_power_between_install_and_use(gossip: Gossip, tmp_path: Path):
    """Nobody uses the new key then; when it is back, the next run carries on."""
    (before,) = gossip.installed()
    cut = {"after": "POST /v1/operator/keyring", "do": gossip.power_cut(HOST)}

    ran = gossip.rotate_watched(tmp_path / "calls", cut)

    changes.ends(ran, 1, "failed")
    assert f"not there: {HOST} (failed)" in ran.problem["details"][0]
    assert "every key that was installed stays" in ran.problem["details"][0]
    pools = gossip.pools()
    assert [set(pool["PrimaryKeys"]) for pool in pools] == [{before}] * 3
    assert [len(pool["Keys"]) for pool in pools] == [2, 2, 2]
    assert frozen(gossip)

    refused = gossip.rotate()
    changes.ends(refused, 3, "refused")
    assert f"the agent of {HOST} is not there" in refused.problem["error"]

    gossip.lab.power_on(HOST)
    changes.ends(gossip.lab.run("cold-boot"), 0, "verified")
    gossip.all_alive()
    changes.ends(gossip.rotate(), 0, "verified")
    assert gossip.one_key() != before
    assert not frozen(gossip)


def test_a_member_that_the_topology_does_not_know_gets_the_key_too(gossip: Gossip):
    """Its configuration is nobody's business here, and is put right once it is declared."""
    (before,) = gossip.installed()

    def forget(document: dict[str, Any]) -> None:
        document["services"] = [s for s in document["services"] if s["host"] != HOST]
        names = {s["name"] for s in document["services"]}
        document["intentions"] = [i for i in document["intentions"] if i["source"] in names]
        document["tokens"] = [t for t in document["tokens"] if t["role"] == ROLE]

    mesh = changes.variant(gossip.lab, forget, "gossip")
    words = gossip.lab.arguments("token-rotation", OPTIONS)

    ran = gossip.lab.mesh(*words, "--mesh", str(mesh))

    changes.ends(ran, 0, "verified")
    said = f"{HOST} is a member that the topology does not know"
    assert any(notice.startswith(said) for notice in ran.report["notices"])
    (new,) = gossip.installed()
    assert gossip.files() == dict.fromkeys(gossip.hosts, new) | {HOST: before}
    mended = gossip.rotate(older_than=1)
    changes.ends(mended, 0, "verified")
    assert [row["action"] for row in mended.report["plan"]] == ["write"]
    assert gossip.one_key() == new


def test_joins_are_frozen_while_the_mark_stands_and_no_longer(gossip: Gossip):
    server = gossip.seen.layout.host(gossip.seen.servers(PRIMARY)[0])
    url = f"https://{server.address}:8501/v1/kv/{MARK}"
    headers = {"X-Consul-Token": gossip.management}
    now = datetime.now(UTC)
    try:
        for hours, wanted in ((1, True), (-1, False)):
            expires = now + timedelta(hours=hours)
            mark = {"since": now.isoformat(), "expires": expires.isoformat()}
            gossip.seen.http.put(url, json=mark, headers=headers)
            assert frozen(gossip) is wanted
    finally:
        gossip.seen.http.delete(url, headers=headers)
    assert not frozen(gossip)


def frozen(gossip: Gossip) -> bool:
    with gossip.lab.connections() as connections:
        found = gossip_freeze.joins_frozen(connections, SecretStr(gossip.management))
    return found is not None and "being rotated" in found.error


def key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


def stop(gossip: Gossip, host: str) -> None:
    gossip.seen.clouds.run(host, "systemctl stop consul")
    until(lambda: 4 in gossip.members().values(), "it to count as failed", 30)


def start(gossip: Gossip, host: str) -> None:
    gossip.seen.clouds.run(host, "systemctl start consul")
