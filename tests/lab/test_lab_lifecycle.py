"""A lab comes up, goes down, and is cleared up after whatever happens to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from blocks import topology
from deployments.lab import binaries, control, lifecycle, processes, state
from deployments.lab.commands import main
from deployments.lab.layout import AWS_PORT, PROXMOX_PORT, SSH_PORT, VAULT_PORT, Layout
from tests.lab.machine import Lab, free_network, listens, until

pytestmark = pytest.mark.integration


def test_down_leaves_no_process_and_no_port(place: Path):
    lab = Lab(lifecycle.up().layout)
    lab.do("power-on", "us-app-1", "eu-app-1")
    lab.run("us-app-1", "systemctl start consul")
    assert all(listens(*port) for port in _ports(lab.layout))

    assert lifecycle.down()

    assert _marked(lab.layout.id) == []
    assert [port for port in _ports(lab.layout) if listens(*port)] == []
    assert not (place / "control.sock").exists()
    assert not lifecycle.down()  # a second time there is nothing to do


def test_nothing_outlives_a_killed_supervisor_and_up_takes_the_disks_up_again(place: Path):
    lab = Lab(lifecycle.up().layout)
    lab.do("power-on", "us-app-1", "eu-app-1")
    lab.run("us-app-1", "systemctl start consul")
    kept = lab.layout.root("eu-app-1") / "opt/kept"
    kept.write_text("still here")
    secrets = lab.aws("secretsmanager", "us-west-2")
    secrets.create_secret(Name="mesh/unseal/ops-b", SecretString="a share")
    began = time.monotonic()

    os.kill(lab.do("status")["pid"], signal.SIGKILL)

    until(lambda: not _marked(lab.layout.id), "nothing left", deadline=5.0)
    assert time.monotonic() - began < 5.0
    until(lambda: not any(listens(*p) for p in _ports(lab.layout)), "ports free")

    again = lifecycle.up()

    assert (again.reused, again.layout) == (True, lab.layout)
    assert kept.read_text() == "still here"
    assert Lab(again.layout).mesh == lab.mesh
    assert {"stopped"} == set(lab.power().values())
    share = lab.aws("secretsmanager", "us-west-2").get_secret_value(SecretId="mesh/unseal/ops-b")
    assert share["SecretString"] == "a share"
    lab.start("eu-app-1")


def test_what_both_supervisor_and_watchdog_left_is_gone_after_up(place: Path):
    lab = Lab(lifecycle.up().layout)
    lab.do("power-on", "us-app-1", "eu-app-1")
    own = sorted(set(lab.running(None)) - set(lab.running()))
    assert len(own) == 3  # supervisor, watchdog and facade

    # At once, so that none can do anything about it.
    processes.send(own, signal.SIGSTOP)
    processes.send(own, signal.SIGKILL)
    until(lambda: state.holder(place) is None, "the lock is free")
    assert lab.running()

    lifecycle.up()

    assert lab.running() == []
    assert {"stopped"} == set(lab.power().values())


def test_a_lab_without_its_watchdog_ends(place: Path):
    lab = Lab(lifecycle.up().layout)
    lab.do("power-on", "us-app-1", "eu-app-1")
    own = set(lab.running(None)) - set(lab.running()) - {lab.do("status")["pid"]}
    (watchdog,) = [pid for pid in own if b"facade" not in Path(f"/proc/{pid}/cmdline").read_bytes()]

    os.kill(watchdog, signal.SIGKILL)

    until(lambda: not _marked(lab.layout.id), "nothing left", deadline=5.0)
    assert "the watchdog is gone" in (place / "supervisor.log").read_text()


def test_down_ends_a_lab_that_is_stuck(place: Path, monkeypatch: pytest.MonkeyPatch):
    lab = Lab(lifecycle.up().layout)
    lab.do("power-on", "us-app-1", "eu-app-1")
    pid = lab.do("status")["pid"]
    real = control.request
    monkeypatch.setattr(control, "request", lambda *a, **k: real(*a, **{**k, "timeout": 0.2}))

    os.kill(pid, signal.SIGSTOP)
    assert lifecycle.down()

    assert _marked(lab.layout.id) == []


def test_two_labs_do_not_touch_each_other(place: Path, tmp_path: Path):
    first = Lab(lifecycle.up().layout)
    with free_network() as network:
        environ = {
            state.DIRECTORY_VARIABLE: str(tmp_path / "second"),
            state.NETWORK_VARIABLE: network,
        }
        second = Lab(lifecycle.up(environ=environ).layout)
        try:
            for lab in (first, second):
                lab.do("power-on", "us-app-1", "eu-app-1")
                lab.run("us-app-1", "systemctl start consul")
            until(lambda: len(second.running("us-app-1")) == 2, "its session has ended")
            survivors = sorted(second.running(None))

            first.do("power-cut")
            assert (len(first.running()), sorted(second.running(None))) == (0, survivors)
            os.kill(first.do("status")["pid"], signal.SIGTERM)  # the other way to end a lab
            until(lambda: not _marked(first.layout.id), "nothing left", deadline=5.0)

            assert sorted(second.running(None)) == survivors
            assert second.run("us-app-1", "systemctl is-active consul") == (0, "active")
        finally:
            lifecycle.down(environ=environ)


def test_a_lab_whose_disks_could_not_be_made_is_none(place: Path, monkeypatch: pytest.MonkeyPatch):
    broken = ModuleType("deployments.lab.disks")

    def render(_layout: Layout) -> None:
        raise RuntimeError("the disk is full")

    broken.render = render  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deployments.lab.disks", broken)

    with pytest.raises(RuntimeError, match="the disk is full"):
        lifecycle.up()

    assert (state.read(place), state.holder(place)) == (None, None)


def test_wiping_leaves_what_is_not_the_lab_s(place: Path):
    lab = Layout("small", "127.77", place, "id")
    for folder in (place / "bin", lab.root("vault-1"), lab.pki):
        folder.mkdir(parents=True)
    state.write(lab)

    lifecycle.down(wipe=True)

    assert {p.name for p in place.iterdir()} == {"bin", "lab.lock"}


# The commands


def test_the_commands_tell_what_they_did(place: Path, capsys: pytest.CaptureFixture[str]):
    def said(*command: str) -> str:
        assert main(command) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "8 hosts, all off, new disks" in said("up", "--size", "small")
    assert "8 of 8 hosts switched on" in said("power-on")
    until(lambda: "1 of 1 active: vault" in said("status"), "vault active")
    assert "power cut in eu-west-1: 3 hosts off" in said("power-cut", "--datacenter", "eu-west-1")
    seen = json.loads(said("status", "--json"))
    power = {h["name"]: h["power"] for h in seen["hosts"]}
    assert (power["vault-1"], power["eu-app-1"]) == ("running", "stopped")
    assert "vault of vault-1 is here" in said("logs", "vault-1", "vault")
    assert "listening on" in said("logs", "vault-1", "sshd", "-n", "5")
    assert "1 of 1 hosts switched on" in said("power-on", "eu-app-1")
    assert said("down") == "lab is down\n"
    assert said("down") == "no lab was running\n"
    assert json.loads(said("status", "--json")) == {"running": False, "directory": str(place)}
    assert "disks as they were left" in said("up")
    assert "disks are wiped" in said("down", "--wipe")


def test_a_lab_that_is_waited_for_goes_down_on_ctrl_c(place: Path):
    command = [sys.executable, "-m", "deployments.lab", "up", "--wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        until(lambda: "Ctrl-C" in waiting.stdout.readline(), "up", deadline=60.0)  # type: ignore[union-attr]
        lab = state.read(place)
        assert lab is not None

        waiting.send_signal(signal.SIGINT)

        assert waiting.wait(20) == 0
        assert waiting.stdout.read() == "lab is down\n"
    assert _marked(lab.id) == []


def test_mesh_and_credentials_are_written_for_the_runbooks(shared: Lab):
    place = shared.layout.directory
    mesh = topology.parse(yaml.safe_load((place / "mesh.yaml").read_text()))
    assert all(h.host_key for _, h in mesh.hosts())
    assert (place / "credentials.yaml").stat().st_mode & 0o777 == 0o400
    credentials = yaml.safe_load((place / "credentials.yaml").read_text())
    assert set(credentials) == {"aws", "proxmox", "hosts"}
    for path in (credentials["hosts"]["key_file"], place / "supervisor.log"):
        assert Path(path).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["status"], "no lab runs in"),
        (["power-on"], "no lab runs in"),
        (["power-cut"], "no lab runs in"),
        (["logs", "vault-1", "vault"], "there is no lab in"),
    ],
)
def test_without_a_lab_a_command_says_so(
    place: Path, capsys: pytest.CaptureFixture[str], command: list[str], problem: str
):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {problem}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["up"], "a lab runs in {place} already (pid {pid}): "),
        (["logs", "nobody", "vault"], "nobody: no host of this lab (vault-1, us-consul-1, "),
        (["logs", "vault-1", "consul"], "consul has written nothing on vault-1 (written have: "),
        (["power-on", "nobody"], "nobody: no host of this lab (vault-1, us-consul-1, "),
        (
            ["power-on", "vault-1", "--datacenter", "eu-west-1"],
            "vault-1: no host of eu-west-1 (eu-consul-1, ",
        ),
    ],
)
def test_what_does_not_fit_the_lab_that_runs_is_refused_in_one_line(
    shared: Lab, capsys: pytest.CaptureFixture[str], command: list[str], problem: str
):
    pid = shared.do("status")["pid"]

    assert main(command) == 2

    error = capsys.readouterr().err
    assert error.startswith("error: " + problem.format(place=shared.layout.directory, pid=pid))
    assert error.count("\n") == 1


def test_a_lab_of_another_size_or_network_is_not_taken_up(
    place: Path, capsys: pytest.CaptureFixture[str]
):
    place.mkdir()
    state.write(Layout("small", "127.77", place, "id"))

    assert (main(["up"]), main(["up", "--size", "full"])) == (2, 2)

    network, size = capsys.readouterr().err.splitlines()
    assert f"{place} is on network 127.77, not {os.environ[state.NETWORK_VARIABLE]}" in network
    assert f"{place} is of size small, not full" in size


def test_a_port_in_use_is_refused_before_anything_is_written(
    place: Path, capsys: pytest.CaptureFixture[str]
):
    network = os.environ[state.NETWORK_VARIABLE]
    with socket.create_server((f"{network}.1.11", VAULT_PORT)):
        assert main(["up"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {network}.1.11:8200 is in use: ")
    assert error.count("\n") == 1
    assert not (place / "hosts").exists()


def test_a_missing_program_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MESH_CONSUL", "/nonexistent/consul")

    assert main(["up"]) == 2

    assert capsys.readouterr().err == f"error: {_missing_consul()}\n"


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        (state.NETWORK_VARIABLE, "10.0", "10.0 is none of 127.1"),
        (state.NETWORK_VARIABLE, "127.256", "127.256 is none of 127.1"),
        (state.DIRECTORY_VARIABLE, "/tmp/a b", "/tmp/a b has spaces"),
    ],
)
def test_a_bad_setting_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    variable: str,
    value: str,
    problem: str,
):
    monkeypatch.setenv(state.DIRECTORY_VARIABLE, str(tmp_path))
    monkeypatch.setenv(variable, value)

    assert main(["up"]) == 2

    assert capsys.readouterr().err.startswith(f"error: {variable}: {problem}")


def _marked(lab: str) -> list[int]:
    """Everything that carries a lab's mark, by a scan of its own."""
    found = processes.find(lab)
    for path in Path("/proc").iterdir():
        try:
            environ = (path / "environ").read_bytes()
            zombie = ") Z" in (path / "stat").read_text()
        except OSError:
            continue
        if f"MESH_LAB_ID={lab}".encode() in environ and not zombie:
            found.append(int(path.name))
    return found


def _ports(lab: Layout) -> list[tuple[str, int]]:
    """Those of the clouds and of the two hosts that these tests switch on."""
    return [
        (lab.aws_address, AWS_PORT),
        (lab.proxmox_address, PROXMOX_PORT),
        (lab.vault_balancer, VAULT_PORT),
        *((lab.host(name).address, SSH_PORT) for name in ("us-app-1", "eu-app-1")),
    ]


def _missing_consul() -> str:
    try:
        binaries.consul()
    except binaries.MissingBinary as error:
        return str(error)
    raise AssertionError
