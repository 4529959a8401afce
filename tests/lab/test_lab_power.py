"""Hosts go on and off as their clouds say, completely, and come back with their disks."""

from __future__ import annotations

import signal
import time

import paramiko
import pytest
from botocore.exceptions import ClientError
from proxmoxer import ResourceException

from deployments.lab import hosts, processes
from deployments.lab.layout import PRIMARY, SECONDARY
from tests.lab.machine import Lab, listens, run, until

pytestmark = pytest.mark.integration

ONE_OF_EACH = pytest.mark.parametrize("name", ["vault-1", "eu-app-1"])


def test_a_lab_starts_with_every_host_off(lab: Lab):
    assert {"stopped"} == set(lab.power().values())
    assert lab.running() == []


@ONE_OF_EACH
def test_its_cloud_boots_a_host_into_a_real_sshd(lab: Lab, name: str):
    """The pinned key is the host's, and only the operator's key gets in."""
    lab.start(name)

    assert (0, name) == lab.run(name, f"cat {lab.layout.root(name)}/etc/hostname")
    stranger = paramiko.ECDSAKey.generate()
    with pytest.raises(paramiko.AuthenticationException), lab.ssh(name, stranger):
        pass
    others = set(lab.power().items()) - {(name, "running")}
    assert {"stopped"} == {power for _, power in others}


def test_an_instance_is_pending_until_its_host_answers(lab: Lab):
    name = "us-app-1"
    identity = lab.instance(name)["InstanceId"]

    answer = lab.aws().start_instances(InstanceIds=[identity])["StartingInstances"][0]
    seen = lab.instance(name)["State"]["Name"], listens(lab.layout.host(name).address, 2222)

    assert (
        answer["PreviousState"]["Name"],
        answer["CurrentState"]["Name"],
    ) == ("stopped", "pending")
    assert seen == ("pending", False)
    until(lambda: lab.instance(name)["State"]["Name"] == "running", "running")
    assert listens(lab.layout.host(name).address, 2222)


def test_the_guest_agent_knows_the_address_while_the_vm_is_on(lab: Lab):
    vm = lab.vm("eu-consul-1")
    with pytest.raises(ResourceException, match="not running"):
        vm.agent("network-get-interfaces").get()

    lab.start("eu-consul-1")

    interfaces = vm.agent("network-get-interfaces").get()["result"]
    addresses = [a["ip-address"] for i in interfaces for a in i["ip-addresses"]]
    assert lab.layout.host("eu-consul-1").address in addresses


@ONE_OF_EACH
def test_systemctl_starts_units_and_tells_the_truth(lab: Lab, name: str):
    lab.start(name)
    unit = lab.layout.host(name).units[-1]
    with lab.ssh(name) as client:
        run(client, f"systemctl stop {unit}")
        before = run(client, f"systemctl is-active {unit}")
        started = run(client, f"systemctl start {unit}")
        after = run(client, f"systemctl is-active {unit}")
        pid = hosts.main_pid(lab.layout.root(name), unit)
        assert pid is not None
        processes.send([pid], signal.SIGKILL)
        killed = until(
            lambda: r if (r := run(client, f"systemctl is-active {unit}")) != after else None,
            "noticed",
        )
        run(client, f"systemctl restart {unit}")
        again = run(client, f"systemctl is-active {unit}")
        run(client, f"systemctl stop {unit}")
        stopped = run(client, f"systemctl is-active {unit}")

    assert (before, started, after) == ((3, "inactive"), (0, ""), (0, "active"))
    assert (killed, again, stopped) == ((3, "failed"), (0, "active"), (3, "inactive"))


def test_a_pid_that_is_another_process_s_by_now_is_no_unit(lab: Lab):
    lab.start("us-app-1")
    root = lab.layout.root("us-app-1")
    lab.run("us-app-1", "systemctl start consul")
    status = root / "run/consul.service.status"
    pid = hosts.main_pid(root, "consul")

    status.write_text(status.read_text().replace(str(pid), "1"))

    assert lab.run("us-app-1", "systemctl is-active consul") == (3, "failed")
    assert "consul" not in _active(lab, "us-app-1")


def test_a_unit_outlives_the_session_that_started_it(lab: Lab):
    lab.start("us-app-2")
    with lab.ssh("us-app-2") as client:
        assert run(client, "systemctl start consul payment-processor") == (0, "")
    pid = hosts.main_pid(lab.layout.root("us-app-2"), "payment-processor")
    assert pid is not None
    time.sleep(0.3)

    assert lab.run("us-app-2", "systemctl is-active consul payment-processor") == (
        0,
        "active\nactive",
    )
    assert pid in processes.by_host(lab.layout.id, ["vault-1", "us-app-2"])["us-app-2"]
    assert _active(lab, "us-app-2") == ["consul", "payment-processor"]
    log = hosts.log_file(lab.layout.root("us-app-2"), "payment-processor").read_text()
    assert log.endswith("payment-processor of us-app-2 is here\n")


def test_enabled_units_start_with_their_host_and_others_do_not(lab: Lab):
    for name in ("vault-1", "us-consul-1"):
        lab.start(name)
    until(lambda: _active(lab, "vault-1"), "vault active")

    assert (_active(lab, "vault-1"), _active(lab, "us-consul-1")) == (["vault"], [])
    lab.run("us-consul-1", "systemctl enable consul")
    for name in ("us-consul-1",):
        lab.stop(name)
        lab.start(name)
    until(lambda: _active(lab, "us-consul-1"), "consul active")
    lab.run("us-consul-1", "systemctl disable consul")


@pytest.mark.parametrize(("name", "other"), [("vault-1", "eu-app-1"), ("eu-app-1", "vault-1")])
def test_stopping_a_host_kills_all_of_it_and_nothing_else(lab: Lab, name: str, other: str):
    """Also a session that only waits, and what hides its environment."""
    for each in (name, other):
        lab.start(each)
        lab.run(each, "systemctl start " + lab.layout.host(each).units[0])
    until(lambda: len(lab.running(other)) == 2, "sshd and one unit")
    survivors = sorted(lab.running(other))
    with lab.ssh(name) as client, client.open_sftp() as sftp:
        sftp.listdir("/")
        run(client, "env -i setsid sleep 1000 >/dev/null 2>&1 &")
        assert len(lab.running(name)) >= 5

        lab.stop(name)

        assert lab.running(name) == []
        transport = client.get_transport()
        assert transport is not None
        until(lambda: not transport.is_active(), "the session has ended")
    assert survivors == sorted(lab.running(other))
    assert not listens(lab.layout.host(name).address, 2222)


def test_a_power_cut_kills_everything_at_once_and_the_disks_stay(lab: Lab):
    lab.do("power-on")
    root = lab.layout.root("eu-app-1")
    with lab.ssh("eu-app-1") as client, client.open_sftp() as sftp:
        with sftp.open(f"{root}/opt/kept", "w") as file:
            file.write("still here")
        run(client, "systemctl start consul")

    cut = lab.do("power-cut")

    assert cut["killed"] >= len(lab.layout.hosts)
    assert cut["seconds"] < 2
    assert lab.running() == []
    assert {"stopped"} == set(lab.power().values())
    assert lab.instance("vault-1")["State"]["Name"] == "stopped"
    assert lab.vm("eu-app-1").status.current.get()["status"] == "stopped"
    lab.start("eu-app-1")
    assert lab.run("eu-app-1", f"cat {root}/opt/kept") == (0, "still here")
    assert lab.run("eu-app-1", "systemctl is-active consul") == (3, "inactive")


@pytest.mark.parametrize("datacenter", [PRIMARY, SECONDARY])
def test_a_power_cut_of_one_datacenter_leaves_the_other(lab: Lab, datacenter: str):
    lab.do("power-on")
    gone = [h.name for h in lab.layout.in_datacenter(datacenter)]

    lab.do("power-cut", *gone)

    assert gone == [name for name, power in lab.power().items() if power == "stopped"]
    assert [p for name in gone for p in lab.running(name)] == []
    assert all(lab.running(h.name) for h in lab.layout.hosts if h.name not in gone)


def test_what_boots_during_a_power_cut_stays_off(lab: Lab):
    vm = lab.vm("eu-app-1")
    instance = lab.instance("us-app-1")["InstanceId"]
    for delay in (0.0, 0.29, 0.31, 0.33):
        upid = vm.status.start.post()
        lab.aws().start_instances(InstanceIds=[instance])
        time.sleep(delay)

        lab.do("power-cut")

        lab.task(upid)
        time.sleep(0.5)
        assert {"stopped"} == set(lab.power().values())
        assert lab.running() == []


def test_ec2_refuses_what_does_not_fit_the_instance_s_state(lab: Lab):
    ec2 = lab.aws()
    identity = lab.instance("us-app-1")["InstanceId"]
    with pytest.raises(ClientError, match="IncorrectInstanceState"):
        ec2.reboot_instances(InstanceIds=[identity])

    lab.start("us-app-1")
    (server,) = lab.running("us-app-1")
    ec2.start_instances(InstanceIds=[identity])
    time.sleep(0.5)

    assert [server] == lab.running("us-app-1")  # starting what runs changes nothing
    ec2.reboot_instances(InstanceIds=[identity])
    until(lambda: lab.running("us-app-1") not in ([], [server]), "rebooted")


def test_ec2_starts_nothing_that_is_still_stopping(lab: Lab):
    ec2, identity = lab.aws(), lab.instance("us-app-1")["InstanceId"]

    def refused() -> bool:
        lab.start("us-app-1")
        ec2.stop_instances(InstanceIds=[identity])
        try:
            ec2.start_instances(InstanceIds=[identity])
        except ClientError as error:
            return error.response["Error"]["Code"] == "IncorrectInstanceState"
        return False  # on a busy machine the request may come when it has stopped

    assert any(refused() for _ in range(5))


def test_a_repeated_client_token_launches_once(lab: Lab):
    ec2 = lab.aws()
    request = {
        "ImageId": "ami-0000000000000001a",
        "MinCount": 1,
        "MaxCount": 1,
        "InstanceType": "t3.micro",
        "ClientToken": "join-eu-central-1-consul-1",
    }
    first, second = ec2.run_instances(**request), ec2.run_instances(**request)
    (launched,), (again,) = first["Instances"], second["Instances"]

    assert launched["InstanceId"] == again["InstanceId"]
    with pytest.raises(ClientError, match="IdempotentParameterMismatch"):
        ec2.run_instances(**{**request, "InstanceType": "t3.small"})
    ec2.terminate_instances(InstanceIds=[launched["InstanceId"]])
    ec2.get_waiter("instance_terminated").wait(
        InstanceIds=[launched["InstanceId"]], WaiterConfig={"Delay": 1}
    )


def test_a_dead_sshd_is_not_a_stopped_machine(lab: Lab):
    for name in ("us-app-1", "eu-app-1"):
        lab.start(name)
        processes.send(lab.running(name), signal.SIGKILL)

    until(lambda: not lab.running(), "all dead")

    power = lab.power()
    assert (power["us-app-1"], power["eu-app-1"]) == ("running", "running")


@ONE_OF_EACH
def test_a_host_that_does_not_come_up_is_off_and_its_cloud_says_so(lab: Lab, name: str):
    config = hosts.sshd_config(lab.layout, name)
    whole = config.read_text()
    config.write_text("NoSuchOption yes\n")
    try:
        if name == "vault-1":
            identity = lab.instance(name)["InstanceId"]
            lab.aws().start_instances(InstanceIds=[identity])
            until(lambda: lab.instance(name)["State"]["Name"] == "stopped", "stopped")
            assert "sshd ended at once" in lab.instance(name)["StateReason"]["Message"]
        else:
            ended = lab.task(lab.vm(name).status.start.post())
            assert ended.startswith("start failed: eu-app-1: sshd ended at once")
            assert lab.vm(name).status.current.get()["status"] == "stopped"
        assert lab.running(name) == []
    finally:
        config.write_text(whole)


def test_wrong_credentials_get_nowhere(lab: Lab):
    with pytest.raises(ClientError, match="AuthFailure"):
        lab.aws(key="AKIAWRONG").describe_instances()
    with pytest.raises(ClientError, match="UnrecognizedClientException"):
        lab.aws("secretsmanager", key="AKIAWRONG").list_secrets()
    with pytest.raises(ClientError, match="InvalidClientTokenId"):
        lab.aws("sts", key="AKIAWRONG").get_caller_identity()
    with pytest.raises(ResourceException, match="401"):
        lab.proxmox(token="wrong").cluster.resources.get()


def test_a_proxmox_task_says_why_it_failed(lab: Lab):
    lab.start("eu-app-1")

    assert lab.task(lab.vm("eu-app-1").status.start.post()) == "VM 103 already running"


def test_proxmox_really_pauses_grows_and_moves_a_vm(lab: Lab):
    lab.start("eu-app-1")
    (server,) = lab.running("eu-app-1")

    assert lab.task(lab.vm("eu-app-1").status.suspend.post()) == "OK"
    paused = _state(server)
    assert lab.task(lab.vm("eu-app-1").status.resume.post()) == "OK"
    assert lab.task(lab.vm("eu-app-1").resize.put(disk="scsi0", size="+4G")) == "OK"
    home = _node(lab, "eu-app-1")
    target = next(n for n in ("pve1", "pve2") if n != home)
    assert lab.task(lab.vm("eu-app-1").migrate.post(target=target, online=1)) == "OK"

    assert (paused, _state(server)) == ("T", "S")
    assert "size=20G" in lab.vm("eu-app-1").config.get()["scsi0"]
    assert target == _node(lab, "eu-app-1")
    assert [server] == lab.running("eu-app-1")


def test_a_shutdown_ends_the_host_too(lab: Lab):
    lab.start("eu-app-1")

    assert lab.task(lab.vm("eu-app-1").status.shutdown.post()) == "OK"

    assert lab.running("eu-app-1") == []


def test_a_clone_does_not_touch_the_host_it_was_made_from(lab: Lab):
    lab.start("eu-app-1")
    api = lab.proxmox()
    new = int(api.cluster.nextid.get())

    assert lab.task(lab.vm("eu-app-1").clone.post(newid=new, name="copy", full=1)) == "OK"
    assert lab.task(lab.vm("copy").status.start.post()) == "OK"
    assert lab.task(lab.vm("copy").status.stop.post()) == "OK"
    assert lab.task(lab.vm("copy").delete()) == "OK"

    assert lab.running("eu-app-1")


def test_no_zombie_stays_behind(lab: Lab):
    lab.start("us-app-1")
    lab.run("us-app-1", "systemctl start consul; systemctl stop consul")
    supervisor = lab.do("status")["pid"]

    lab.stop("us-app-1")

    until(lambda: not _zombies_of(supervisor), "all reaped")


def test_power_on_switches_on_what_is_off(lab: Lab):
    lab.start("vault-1")

    assert len(lab.layout.hosts) - 1 == lab.do("power-on")["started"]
    assert {"running"} == set(lab.power().values())
    assert lab.do("power-on")["started"] == 0


def _active(lab: Lab, name: str) -> list[str]:
    return next(list(h["active"]) for h in lab.do("status")["hosts"] if h["name"] == name)


def _node(lab: Lab, name: str) -> str:
    found = lab.proxmox().cluster.resources.get(type="vm")
    return next(str(v["node"]) for v in found if v["name"] == name)


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
        return stat.read().rpartition(")")[2].split()[0]


def _zombies_of(parent: int) -> list[int]:
    import psutil

    children = psutil.Process(parent).children()
    return [c.pid for c in children if c.status() == psutil.STATUS_ZOMBIE]
