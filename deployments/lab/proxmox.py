"""
eu-west-1: fakepve, in this process, whose VMs are the lab's hosts.

A VM's start task ends with `OK` when the sshd of its host accepts connections,
its stop and shutdown tasks when no process of the host is left, and its guest
agent answers in between. What dies on a host by itself changes nothing: QEMU
still runs. Made true as well: pausing a VM pauses its processes, disks really
grow, and a VM really moves to another node.

fakepve is AGPL-3.0: it belongs to the lab alone, and nothing but this module
imports it.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fakepve import FakePve
from fakepve.lxc import SIZE_UNITS, format_size
from fakepve.model import TaskError
from fakepve.qemu import join_drive, split_drive
from fakepve.routing import die

from deployments.lab.layout import MESH, PROXMOX_PORT, SECONDARY, LabHost, Layout
from deployments.lab.pki import Authority, Names
from deployments.lab.power import BOOT_SECONDS, HostFailed, Power

FIRST_VMID = 101
NODES = ("pve1", "pve2", "pve3")
USER, TOKEN_NAME = "runbooks@pve", "mesh"
GIB = 1 << 30


class Proxmox(FakePve):  # type: ignore[misc]
    """The Proxmox API of a lab, in an event loop and thread of its own."""

    def __init__(self, layout: Layout, power: Power, token: str) -> None:
        super().__init__(
            password=secrets.token_urlsafe(24), host=layout.proxmox_address, port=PROXMOX_PORT
        )
        self.cluster_name = SECONDARY
        self.apitokens[f"{USER}!{TOKEN_NAME}"] = token
        # Ten times as quick as a real cluster; with 0 no task would ever be seen running.
        self.time_scale = 0.1
        self._layout = layout
        self._power = power
        # By id, not by address: a clone has its original's address until it is given one.
        self._hosts = dict(enumerate(layout.in_datacenter(SECONDARY), start=FIRST_VMID))
        self._loop = asyncio.new_event_loop()
        for name in NODES:
            self.add_node(name)
        self._create_vms()

    def serve(self) -> None:
        """Answer requests, in a thread; every host is there as a stopped VM."""
        certificate, key = _certificate(self._layout)
        threading.Thread(target=self._loop.run_forever, name="proxmox", daemon=True).start()
        self.wait(self.start(str(certificate), str(key)))

    def close(self) -> None:
        """Answer no more."""
        self.wait(self.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def wait(self, work: Awaitable[Any], timeout: float = 30.0) -> Any:
        """Carry something out in the API's own thread."""

        async def carry_out() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(carry_out(), self._loop).result(timeout)

    def states(self) -> dict[str, str]:
        """The state of every host's VM, as Proxmox calls it."""
        return {host.name: str(vm.qmpstatus) for host, vm in self._guests()}

    def power_on(self, names: Iterable[str]) -> None:
        """Start the VMs of hosts, as `POST .../status/start` does."""
        for host, vm in self._guests():
            if host.name in names and vm.status == "stopped":
                self.wait(self._do_start(vm, self.user, {}))

    def is_up(self, name: str) -> bool:
        """Whether a host's VM has booted."""
        return any(
            vm.status == "running" and vm.agent is not None
            for host, vm in self._guests()
            if host.name == name
        )

    def cut(self, names: Iterable[str]) -> None:
        """Show the VMs of hosts that lost their power as stopped."""

        async def cut() -> None:
            for host, vm in self._guests():
                if host.name in names:
                    vm.status = vm.qmpstatus = "stopped"
                    vm.agent = None

        self.wait(cut())

    def _guests(self) -> Iterator[tuple[LabHost, Any]]:
        for vm in list(self.vms):
            if host := self._hosts.get(vm.vmid):
                yield host, vm

    def _create_vms(self) -> None:
        network = self._layout.network
        volumes: dict[str, dict[str, Any]] = {}
        for vmid, host in self._hosts.items():
            volumes[f"vm-{vmid}-disk-0"] = {
                "content": "images",
                "format": "raw",
                "size": 16 * GIB,
                "vmid": vmid,
                "ctime": 0,
            }
            config = {
                "name": host.name,
                "tags": MESH,
                "cores": 2,
                "memory": 4096,
                "agent": "1",
                "onboot": 0,
                "scsi0": f"local-lvm:vm-{vmid}-disk-0,size=16G",
                "net0": f"virtio=BC:24:11:00:01:{vmid:02X},bridge=vmbr0",
                "ipconfig0": f"ip={host.address}/16,gw={network}.2.1",
            }
            self.add_vm(vmid, host.name, node=NODES[vmid % len(NODES)], config=config)
        self.storages["local-lvm"]["volumes"] = volumes

    # What a VM does

    async def task(
        self,
        node: str,
        ttype: str,
        tid: Any,
        user: str,
        body: Callable[[], Awaitable[Any]],
        vm: Any = None,
        **more: Any,
    ) -> Any:
        """Run a task: first Proxmox's own checks and changes, then what they do to the host."""
        host = self._hosts.get(vm.vmid) if vm is not None else None

        async def with_host() -> Any:
            note = await body()
            if host:
                await self._follow(ttype, vm, host)
            return note

        return await super().task(node, ttype, tid, user, with_host, vm=vm, **more)

    async def _follow(self, ttype: str, vm: Any, host: LabHost) -> None:
        off = ttype in {"qmsuspend", "qmrollback"} and vm.status == "stopped"
        if off or ttype in {"qmstop", "qmshutdown", "qmreboot", "qmreset"}:
            vm.agent, vm.agent_hangs = None, False
            await asyncio.to_thread(self._power.off, [host.name])
        if ttype in {"qmstart", "qmreboot", "qmreset"}:
            await self._boot(vm, host)
        elif ttype == "qmsuspend" and vm.status == "running":
            vm.agent_hangs = True
            await asyncio.to_thread(self._power.signal, host.name, signal.SIGSTOP)
        elif ttype == "qmresume":
            await asyncio.to_thread(self._power.signal, host.name, signal.SIGCONT)
            vm.agent_hangs = False

    async def _boot(self, vm: Any, host: LabHost) -> None:
        await asyncio.sleep(BOOT_SECONDS)
        try:
            await asyncio.to_thread(self._power.on, host.name, lambda: bool(vm.status == "running"))
        except HostFailed as error:
            vm.status = vm.qmpstatus = "stopped"
            raise TaskError(f"start failed: {error}") from error
        if vm.status != "running":
            raise TaskError("start failed: the power failed")
        mac = str(vm.config["net0"]).partition("=")[2].partition(",")[0].lower()
        address = {"ip-address": host.address, "ip-address-type": "ipv4", "prefix": 16}
        loopback = {"ip-address": "127.0.0.1", "ip-address-type": "ipv4", "prefix": 8}
        vm.agent = {
            "get-host-name": {"host-name": host.name},
            "interfaces": [
                {
                    "name": "lo",
                    "hardware-address": "00:00:00:00:00:00",
                    "ip-addresses": [loopback],
                },
                {"name": "eth0", "hardware-address": mac, "ip-addresses": [address]},
            ],
        }

    # What fakepve answers without doing it

    def _routes_lab(self) -> list[tuple[str, str, Callable[..., Awaitable[Any]]]]:
        one = "/nodes/{node}/qemu/{vmid}"
        return [
            ("PUT", f"{one}/resize", self._resize),
            ("POST", f"{one}/migrate", self._move),
        ]

    async def _resize(self, values: dict[str, Any], user: str) -> Any:
        vm = self.find(values["node"], values["vmid"])
        self._check_lock(vm)
        disk, size = values["disk"], values["size"]
        if disk not in vm.config:
            raise die(f"disk '{disk}' does not exist")

        async def body() -> None:
            volume, options = split_drive(vm.config[disk])
            old = _bytes(options["size"])
            new = old + _bytes(size[1:]) if size.startswith("+") else _bytes(size)
            if new < old:
                raise TaskError("shrinking disks is not supported")
            vm.config[disk] = join_drive(volume, {**options, "size": format_size(new)})

        return await self.task(vm.node, "resize", vm.vmid, user, body, vm=vm)

    async def _move(self, values: dict[str, Any], user: str) -> Any:
        vm = self.find(values["node"], values["vmid"])
        self._check_lock(vm)
        target = values["target"]
        if target == vm.node:
            raise die("target is local node.")
        if target not in self.nodes:
            raise die(f"no such cluster node '{target}'")
        if vm.status == "running" and not values.get("online"):
            raise die("can't migrate running VM without --online")
        return await self.migrate(vm.vmid, target, secs=5, user=user)


def _bytes(size: str) -> int:
    return int(float(size[:-1]) * SIZE_UNITS[size[-1]]) if size[-1].isalpha() else int(size)


def _certificate(layout: Layout) -> tuple[Path, Path]:
    """The API's certificate and key, signed by the cluster's own CA."""
    folder = layout.proxmox_ca_file.parent
    known = layout.proxmox_ca_file.exists()
    authority = (
        Authority.load(folder) if known else Authority.create(folder, "Proxmox Virtual Environment")
    )
    pair = authority.issue(Names("pve", ("pve", *NODES), (layout.proxmox_address,)))
    certificate, key = folder / "pve-ssl.pem", folder / "pve-ssl.key"
    for path, data in ((certificate, pair.certificate), (key, pair.key)):
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_bytes(data)
    return certificate, key
