"""Proxmox VE against fakepve: tasks and their ends, tokens, nodes that are offline."""

from __future__ import annotations

import ssl
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from fakepve import FakePve
from fakepve.certs import make_cert
from fakepve.pytest_plugin import _Serving
from pydantic import SecretStr

from blocks import calls
from blocks.errors import (
    Absent,
    BadAnswer,
    BadInput,
    Forbidden,
    Invalid,
    MeshError,
    NoLeader,
    NotConverged,
    Transient,
    Unreachable,
    Untrusted,
)
from blocks.proxmox import ProxmoxCluster
from blocks.proxmox_api import Pve
from tests.blocks import faults
from tests.blocks.faults import FaultServer
from tests.blocks.test_http import within

TOKEN = "c4nary-0123-4567-89ab-cdef01234567"
PASSWORD = "c4nary-password"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    certificate, key, _ = make_cert(str(tmp_path_factory.mktemp("pve")), hosts=("127.0.0.1",))
    return certificate, key


@pytest.fixture
def fake(pki: tuple[str, str]) -> Iterator[Any]:
    """Two nodes; vault-1 on pve1, vault-2 on pve2, a template and a container."""
    pve = FakePve(user="root@pam", password=PASSWORD, host="127.0.0.1", port=0)
    pve.time_scale = 0
    pve.apitokens["root@pam!runbooks"] = TOKEN
    for node in ("pve1", "pve2"):
        pve.add_node(node)
    pve.add_vm(100, "vault-1", node="pve1")
    pve.add_vm(101, "vault-2", node="pve2")
    pve.add_vm(900, "template", node="pve1", template=True)
    serving = _Serving(pve, *pki)
    yield pve
    serving.stop()


@pytest.fixture
def cluster(fake: Any, pki: tuple[str, str]) -> ProxmoxCluster:
    return ProxmoxCluster(
        address=fake.url,
        user="root@pam",
        token_name="runbooks",
        token_value=SecretStr(TOKEN),
        ca_file=pki[0],
    )


@pytest.fixture
def pve(cluster: ProxmoxCluster) -> Iterator[Pve]:
    with cluster.api() as pve:
        yield pve


# Machines and tasks


def test_machines_by_name_without_templates(pve: Pve):
    vms = pve.vms()

    assert {name: (vm.vmid, vm.node, vm.status) for name, vm in vms.items()} == {
        "vault-1": (100, "pve1", "stopped"),
        "vault-2": (101, "pve2", "stopped"),
    }
    assert list(pve.vms(["vault-2", "nobody"])) == ["vault-2"]


def test_start_and_stop_end_well(pve: Pve, ledger: calls.Ledger):
    vm = pve.vms()["vault-1"]

    assert pve.wait_task(pve.start(vm), deadline=10).exitstatus == "OK"
    assert pve.vms()["vault-1"].status == "running"
    assert pve.wait_task(pve.stop(vm, hard=True), deadline=10).exitstatus == "OK"
    assert pve.vms()["vault-1"].status == "stopped"
    assert [c.what.rpartition("/")[2] for c in ledger.mutating] == ["start", "stop"]


def test_a_guest_is_asked_to_shut_down(pve: Pve, fake: Any):
    vm = pve.vms()["vault-1"]
    pve.wait_task(pve.start(vm), deadline=10)

    assert pve.wait_task(pve.stop(vm, hard=False, timeout=5), deadline=10).exitstatus == "OK"
    assert pve.vms()["vault-1"].status == "stopped"


def test_a_guest_that_does_not_shut_down_is_a_failed_task(pve: Pve, fake: Any):
    vm = pve.vms()["vault-1"]
    pve.wait_task(pve.start(vm), deadline=10)
    fake.vm(100).acpi = False

    with pytest.raises(MeshError, match="qmshutdown"):
        pve.wait_task(pve.stop(vm, hard=False, timeout=1), deadline=10)


def test_a_task_that_fails_says_why(pve: Pve, fake: Any):
    """The call itself answered 200."""
    fake.vm(100).start_error = "volume 'local-lvm:vm-100-disk-0' does not exist"
    upid = pve.start(pve.vms()["vault-1"])

    with pytest.raises(Invalid, match="vm-100-disk-0' does not exist") as caught:
        pve.wait_task(upid, deadline=10)

    assert upid in caught.value.remedy


def test_work_that_is_done_already_is_no_failure(pve: Pve):
    """A start whose answer was lost is asked for again."""
    vm = pve.vms()["vault-1"]
    pve.wait_task(pve.start(vm), deadline=10)

    assert "already running" in pve.wait_task(pve.start(vm), deadline=10).exitstatus


def test_a_task_that_does_not_end_is_not_converged(pve: Pve, fake: Any):
    fake.time_scale = 1
    fake.vm(100).start_secs = 30
    upid = pve.start(pve.vms()["vault-1"])

    assert pve.task(upid).status == "running"
    with within(0.6), pytest.raises(NotConverged, match="still runs"):
        pve.wait_task(upid, deadline=0.6)
    fake.time_scale = 0


def test_two_machines_of_one_name_are_invalid_where_the_name_matters(pve: Pve, fake: Any):
    fake.add_vm(102, "vault-1", node="pve2")

    with pytest.raises(Invalid, match="two machines are called vault-1: 100 and 102"):
        pve.vms()
    assert list(pve.vms(["vault-2"])) == ["vault-2"]


def test_addresses_the_guest_agent_names(pve: Pve, fake: Any):
    vm = pve.vms()["vault-1"]
    assert pve.agent_addresses(vm) == []
    pve.wait_task(pve.start(vm), deadline=10)
    assert pve.agent_addresses(vm) == []

    fake.vm(100).config["agent"] = "1"
    fake.vm(100).agent = {}

    assert pve.agent_addresses(vm) == ["192.0.2.10"]


def test_proxmoxers_own_paths_work_through_it(pve: Pve):
    assert pve.resource.nodes("pve1").qemu(100).config.get()["name"] == "vault-1"
    with pytest.raises(Invalid):
        pve.resource.nodes("pve1").qemu(100).config.put(cores="many")
    with pytest.raises(MeshError):
        pve.resource.nodes("pve1").qemu(12345).config.get()


# Who may


def test_a_password_works_for_reading_and_changing(cluster: ProxmoxCluster):
    by_password = cluster.model_copy(
        update={"token_name": None, "token_value": None, "password": SecretStr(PASSWORD)}
    )
    with by_password.api() as pve:
        pve.wait_task(pve.start(pve.vms()["vault-1"]), deadline=10)


def test_a_wrong_token_is_forbidden(cluster: ProxmoxCluster):
    wrong = cluster.model_copy(update={"token_value": SecretStr(TOKEN[::-1])})

    with wrong.api() as pve, pytest.raises(Forbidden) as caught:
        pve.vms()

    assert TOKEN[::-1] not in f"{caught.value!r} {caught.value}"
    assert caught.value.where == "proxmox 127.0.0.1"


def test_a_wrong_password_is_forbidden(cluster: ProxmoxCluster):
    wrong = cluster.model_copy(
        update={"token_name": None, "token_value": None, "password": SecretStr(PASSWORD[::-1])}
    )

    with pytest.raises(Forbidden) as caught:
        wrong.api()

    assert PASSWORD[::-1] not in f"{caught.value!r} {caught.value}"


def test_no_credential_is_bad_input(fake: Any):
    with pytest.raises(BadInput, match="neither an API token nor a password"):
        ProxmoxCluster(address=fake.url).api()


def test_the_certificate_is_verified(cluster: ProxmoxCluster):
    with cluster.model_copy(update={"ca_file": None}).api() as pve, pytest.raises(Untrusted):
        pve.vms()


# Faults


def test_a_node_that_is_offline_is_unreachable(pve: Pve, fake: Any):
    vm = pve.vms()["vault-2"]
    fake.nodes["pve2"]["online"] = False

    with pytest.raises(Unreachable, match="595"):
        pve.start(vm)
    assert pve.vms()["vault-2"].status in {"unknown", "stopped"}


def test_a_cluster_without_quorum_has_no_leader(pve: Pve, fake: Any):
    vm = pve.vms()["vault-1"]
    fake.fail("POST", "/nodes/{node}/qemu/{vmid}/status/start", error="no_quorum", times=1)

    with pytest.raises(NoLeader, match="no quorum"):
        pve.start(vm)


def test_a_lock_passes(pve: Pve, fake: Any):
    vm = pve.vms()["vault-1"]
    fake.fail(
        "POST", "/nodes/{node}/qemu/{vmid}/status/start", error="config_lock_timeout", times=1
    )

    with pytest.raises(Transient, match="got timeout"):
        pve.start(vm)
    pve.wait_task(pve.start(vm), deadline=10)


def test_a_machine_that_is_not_there(pve: Pve, fake: Any):
    vm = pve.vms()["vault-1"]
    fake.vms[:] = [kept for kept in fake.vms if kept.vmid != 100]

    with pytest.raises((Absent, Invalid)):
        pve.start(vm)


def test_polls_that_fail_do_not_end_the_wait(pve: Pve, fake: Any):
    upid = pve.start(pve.vms()["vault-1"])
    fake.fail("GET", "/nodes/{node}/tasks/{upid}/status", 503, "busy", times=2)

    assert pve.wait_task(upid, deadline=10).exitstatus == "OK"


def test_a_lost_answer_to_a_start_is_found_by_looking(fake: Any, pki: tuple[str, str], ledger):
    """The machine runs; the call is not repeated by itself."""
    trusted = ssl.create_default_context(cafile=pki[0])

    def pass_on(connection: Any, request: bytes) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        verb, path, _ = head.split(b"\r\n")[0].decode().split(" ")
        onward = urllib.request.Request(fake.url + path, data=body or None, method=verb)
        onward.add_header("Authorization", f"PVEAPIToken=root@pam!runbooks={TOKEN}")
        with urllib.request.urlopen(onward, context=trusted) as answer:
            if verb == "POST":
                connection.close()
            else:
                faults.answer(200, answer.read())(connection, request)

    with FaultServer(pass_on) as between:
        cluster = ProxmoxCluster(
            address=between.url, token_name="runbooks", token_value=SecretStr(TOKEN)
        )
        with cluster.api() as pve:
            with pytest.raises(Unreachable):
                pve.start(pve.vms()["vault-1"])
            assert pve.vms()["vault-1"].status == "running"

    assert len(ledger.mutating) == 1
    assert sum(r.startswith(b"POST") for r in between.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Sign in</html>",
        b"{}",
        b'{"data": null}',
        b'{"data": {"errors": "x"}}',
        b'{"data": ["x"]}',
        b'{"data": [{"type": "qemu", "name": "a"}]}',
    ],
)
def test_a_page_is_never_taken_for_an_answer(body: bytes):
    with FaultServer(faults.answer(200, body)) as server:
        cluster = ProxmoxCluster(
            address=server.url, token_name="runbooks", token_value=SecretStr(TOKEN)
        )
        with cluster.api() as pve, pytest.raises(BadAnswer):
            pve.vms()


def test_what_is_no_upid_is_a_bad_answer():
    with FaultServer(faults.answer(200, b'{"data": null}')) as server:
        cluster = ProxmoxCluster(
            address=server.url, token_name="runbooks", token_value=SecretStr(TOKEN)
        )
        with cluster.api() as pve, pytest.raises(BadAnswer, match="UPID"):
            pve._upid(pve.resource.nodes("pve1").qemu(100).status.start.post())


def test_a_drip_ends_at_the_deadline():
    with FaultServer(faults.drip_body) as server:
        cluster = ProxmoxCluster(
            address=server.url, token_name="runbooks", token_value=SecretStr(TOKEN)
        )
        with cluster.api(deadline=0.8) as pve, within(0.8), pytest.raises(Unreachable):
            pve.vms()
