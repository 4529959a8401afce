"""A lab of one's own for a test: a free network, small disks, and clients of its clouds."""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

import boto3
import paramiko
import yaml
from botocore.config import Config
from proxmoxer import ProxmoxAPI

from deployments.lab import control, hosts, processes
from deployments.lab.layout import AWS_PORT, PRIMARY, SSH_PORT, LabHost, Layout

T = TypeVar("T")

UNIT = """[Unit]
Description={name}
[Service]
Type=simple
ExecStart=/bin/sh -c 'echo {name} of {host} is here; exec sleep 1000'
StandardOutput=append:{root}/var/log/{name}.log
StandardError=inherit
[Install]
WantedBy=multi-user.target
"""


@contextmanager
def free_network() -> Iterator[str]:
    """A loopback network that no other test of this machine uses now."""
    for number in range(110, 250):
        with socket.socket(socket.AF_UNIX) as claim:
            try:
                claim.bind(f"\0mesh-lab-test-127.{number}")  # no file, and gone with this process
            except OSError:
                continue
            if listens(f"127.{number}.0.10", AWS_PORT):
                continue  # somebody's lab that is no test's
            yield f"127.{number}"
            return
    raise AssertionError("all networks are in use")


def small_disks() -> ModuleType:
    """Stands for `deployments.lab.disks`: units that only say their name and sleep."""
    module = ModuleType("deployments.lab.disks")

    def render(layout: Layout) -> None:
        for host in layout.hosts:
            root = layout.root(host.name)
            for name in host.units:
                text = UNIT.format(name=name, host=host.name, root=root)
                (root / f"etc/systemd/system/{name}.service").write_text(text)
                if name == "vault":
                    hosts.enable(root, name)

    module.render = render  # type: ignore[attr-defined]
    return module


class Lab:
    """What a test sees of a lab that runs."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.mesh = yaml.safe_load((layout.directory / "mesh.yaml").read_text())
        self.credentials = yaml.safe_load((layout.directory / "credentials.yaml").read_text())

    def do(self, what: str, *names: str) -> dict[str, Any]:
        return control.request(self.layout.directory, what, hosts=list(names))

    def power(self) -> dict[str, str]:
        return {h["name"]: h["power"] for h in self.do("status")["hosts"]}

    def running(self, host: str | None = "*") -> list[int]:
        return processes.find(self.layout.id, host)

    def aws(self, service: str = "ec2", region: str = PRIMARY, **other: str) -> Any:
        known = self.credentials["aws"]
        return boto3.client(
            service,  # type: ignore[call-overload]
            region_name=region,
            endpoint_url=self.layout.aws_url,
            aws_access_key_id=other.get("key", known["access_key_id"]),
            aws_secret_access_key=known["secret_access_key"],
            config=Config(retries={"total_max_attempts": 1}, read_timeout=10, proxies={}),
        )

    def instance(self, name: str) -> dict[str, Any]:
        filters = [{"Name": "tag:Name", "Values": [name]}, {"Name": "tag:mesh", "Values": ["lab"]}]
        found = self.aws().describe_instances(Filters=filters)["Reservations"]
        (instance,) = [i for r in found for i in r["Instances"]]
        return dict(instance)

    def proxmox(self, token: str | None = None) -> Any:
        known = self.credentials["proxmox"]
        cloud = self.mesh["datacenters"][1]["cloud"]
        return ProxmoxAPI(
            cloud["address"].removeprefix("https://"),
            user=known["user"],
            token_name=known["token_name"],
            token_value=token or known["token_value"],
            verify_ssl=cloud["ca_file"],
            timeout=10,
        )

    def vm(self, name: str) -> Any:
        """The API below one VM."""
        api = self.proxmox()
        (found,) = [v for v in api.cluster.resources.get(type="vm") if v["name"] == name]
        return api.nodes(found["node"]).qemu(found["vmid"])

    def task(self, upid: str) -> str:
        """How a task ends."""
        status = self.proxmox().nodes(upid.split(":")[1]).tasks(upid).status
        return str(until(lambda: status.get().get("exitstatus"), f"end of {upid}"))

    def start(self, name: str) -> None:
        """Switch a host on through its cloud's API and wait as a client does."""
        if self.layout.host(name).cloud == "aws":
            self.aws().start_instances(InstanceIds=[self.instance(name)["InstanceId"]])
            until(lambda: self.instance(name)["State"]["Name"] == "running", f"{name} running")
        else:
            assert self.task(self.vm(name).status.start.post()) == "OK"

    def stop(self, name: str) -> None:
        """Switch a host off through its cloud's API and wait as a client does."""
        if self.layout.host(name).cloud == "aws":
            self.aws().stop_instances(InstanceIds=[self.instance(name)["InstanceId"]])
            until(lambda: self.instance(name)["State"]["Name"] == "stopped", f"{name} stopped")
        else:
            assert self.task(self.vm(name).status.stop.post()) == "OK"

    @contextmanager
    def ssh(self, name: str, key: paramiko.PKey | None = None) -> Iterator[paramiko.SSHClient]:
        """A session on a host, whose key must be the one that the topology pins."""
        host = self.layout.host(name)
        kind, data = self._pinned(host).split()[:2]
        with paramiko.SSHClient() as client:
            pin = paramiko.Ed25519Key(data=base64.b64decode(data))
            client.get_host_keys().add(f"[{host.address}]:{SSH_PORT}", kind, pin)
            client.connect(
                host.address,
                SSH_PORT,
                username=self.credentials["hosts"]["user"],
                pkey=key
                or paramiko.Ed25519Key.from_private_key_file(self.credentials["hosts"]["key_file"]),
                look_for_keys=False,
                allow_agent=False,
                timeout=10,
            )
            transport = client.get_transport()
            assert transport is not None
            assert isinstance(transport.sock, socket.socket)
            transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            yield client

    def run(self, name: str, command: str) -> tuple[int, str]:
        """A command on a host: its exit status and what it said."""
        with self.ssh(name) as client:
            return run(client, command)

    def _pinned(self, host: LabHost) -> str:
        return next(
            str(h["host_key"])
            for dc in self.mesh["datacenters"]
            for h in dc["hosts"]
            if h["name"] == host.name
        )


def run(client: paramiko.SSHClient, command: str) -> tuple[int, str]:
    """A command in a session that is open."""
    _, out, _ = client.exec_command(command, timeout=30)
    said = out.read().decode()
    return out.channel.recv_exit_status(), said.strip()


def until(probe: Callable[[], T], what: str, deadline: float = 20.0) -> T:
    """Ask until the answer is true."""
    end = time.monotonic() + deadline
    while not (answer := probe()):
        assert time.monotonic() < end, f"{what}: not within {deadline:g} s"
        time.sleep(0.02)
    return answer


def listens(address: str, port: int) -> bool:
    """Whether anything accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((address, port)) == 0
