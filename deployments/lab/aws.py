"""
us-east-1: moto, in this process, whose instances are the lab's hosts.

An instance is `running` when the sshd of its host accepts connections, and
`stopped` when no process of the host is left; between them it is `pending` and
`stopping`, as in EC2 and unlike in moto. What dies on a host by itself changes
nothing: the machine is still on. Made true as well: a repeated `ClientToken`
returns the instances of the first call, and a request that does not fit the
instance's state is refused.

Instances that are not hosts of the lab change state in the same way, with
nothing behind them.
"""

from __future__ import annotations

import copy
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # 1,301 images, a second to load

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import ec2_backends
from moto.ec2.models.instances import Instance, InstanceBackend, StateReason
from werkzeug.serving import BaseWSGIServer, make_server

from deployments.lab.aws_front import Front, RequestHandler
from deployments.lab.layout import AWS_PORT, MESH, PRIMARY, LabHost, Layout
from deployments.lab.power import BOOT_SECONDS, Cut, HostFailed, Power

HALT_SECONDS = 0.3
IMAGE = "ami-0000000000000001a"
CODES = {
    "pending": 0,
    "running": 16,
    "shutting-down": 32,
    "terminated": 48,
    "stopping": 64,
    "stopped": 80,
}


class Aws:
    """The AWS API of a lab; one in a process, because moto's state is the process's."""

    def __init__(self, layout: Layout, power: Power, front: Front) -> None:
        self._layout = layout
        self._power = power
        self._front = front
        self._lock = threading.RLock()
        self._by_address = {h.address: h for h in layout.in_datacenter(PRIMARY)}
        self._tokens: dict[str, tuple[Any, Any]] = {}
        self._server: BaseWSGIServer | None = None
        self._creating = False

    def start(self) -> None:
        """Answer requests; every host is there as a stopped instance."""
        for name, value in self._patches().items():
            owner = InstanceBackend if name == "run_instances" else Instance
            setattr(owner, name, value)
        self._create_instances()
        address = self._layout.aws_address
        # Opened here, because where that fails werkzeug ends the process.
        with socket.create_server((address, AWS_PORT), backlog=128) as listening:
            self._server = make_server(
                address,
                AWS_PORT,
                self._front,
                threaded=True,
                request_handler=RequestHandler,
                fd=listening.fileno(),
            )
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def stop(self) -> None:
        """Answer no more."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()

    def states(self) -> dict[str, str]:
        """The state of every host's instance, as EC2 calls it."""
        return {host.name: str(instance.state) for host, instance in self._instances()}

    def is_up(self, name: str) -> bool:
        """Whether a host's instance has booted."""
        return self.states().get(name) == "running"

    def power_on(self, names: Iterable[str]) -> None:
        """Start the instances of hosts, as `StartInstances` does."""
        for host, instance in self._instances():
            if host.name in names:
                instance.start()

    def cut(self, names: Iterable[str]) -> None:
        """Show the instances of hosts that lost their power as stopped."""
        with self._lock:
            for host, instance in self._instances():
                if host.name in names:
                    _put(instance, "stopped", "Server.InternalError", "The power failed")

    def _instances(self) -> Iterator[tuple[LabHost, Any]]:
        # A terminated instance may share its host with the one that replaced it.
        newest: dict[str, Any] = {}
        for instance in ec2_backends[DEFAULT_ACCOUNT_ID][PRIMARY].all_instances():
            if instance.private_ip in self._by_address and instance.state != "terminated":
                newest[instance.private_ip] = instance
        for address, instance in newest.items():
            yield self._by_address[address], instance

    def _host(self, instance: Any) -> LabHost | None:
        return self._by_address.get(instance.private_ip) if instance.nics else None

    def _create_instances(self) -> None:
        backend = ec2_backends[DEFAULT_ACCOUNT_ID][PRIMARY]
        network = self._layout.network
        vpc = backend.create_vpc(f"{network}.0.0/16")
        vpc.add_tags({"Name": MESH, "mesh": MESH})
        subnet = backend.create_subnet(vpc.id, f"{network}.1.0/24", f"{PRIMARY}a")
        with self._created_stopped():
            for host in self._by_address.values():
                backend.run_instances(
                    IMAGE,
                    1,
                    None,
                    [],
                    subnet_id=subnet.id,
                    private_ip=host.address,
                    instance_type="m6i.large",
                    is_instance_type_default=False,
                    region_name=PRIMARY,
                    tags={"instance": {"Name": host.name, "mesh": MESH}},
                )

    @contextmanager
    def _created_stopped(self) -> Iterator[None]:
        self._creating = True
        try:
            yield
        finally:
            self._creating = False

    # What an instance does

    def _boot(self, instance: Any) -> None:
        """From `pending` to `running`, unless something else happens to it meanwhile."""
        time.sleep(BOOT_SECONDS)
        host = self._host(instance)
        try:
            if host:
                self._power.on(host.name, lambda: bool(instance.state == "pending"))
        except Cut:
            return  # whoever switched it off has said what it is now
        except HostFailed as error:
            with self._lock:
                _put(instance, "stopped", "Server.InternalError", str(error))
            return
        with self._lock:
            if instance.state == "pending":
                _put(instance, "running")

    def _halt(self, instance: Any, host: LabHost | None, end: str) -> None:
        if host:
            self._power.off([host.name])
        time.sleep(HALT_SECONDS)
        with self._lock:
            if instance.state in {"stopping", "shutting-down"}:
                user = "Client.UserInitiatedShutdown"
                _put(instance, end, user, f"{user}: User initiated shutdown")

    def _reboot(self, instance: Any, host: LabHost | None) -> None:
        if host:
            self._power.off([host.name])
            try:
                self._power.on(host.name, lambda: bool(instance.state == "running"))
            except HostFailed:
                return  # the machine is on and does not answer, which EC2 calls running

    def _patches(self) -> dict[str, Callable[..., Any]]:
        """What takes the place of moto's methods of `Instance` and `InstanceBackend`."""
        original_init, original_run = Instance.__init__, InstanceBackend.run_instances
        original_start, original_stop = Instance.start, Instance.stop
        original_terminate = Instance.terminate

        def begin(state: str, instance: Any, then: Callable[..., None], *args: Any) -> None:
            _put(instance, state)
            threading.Thread(target=then, args=(instance, *args), daemon=True).start()

        def init(instance: Any, *args: Any, **kwargs: Any) -> None:
            original_init(instance, *args, **kwargs)
            if self._creating:
                _put(instance, "stopped")
            else:
                begin("pending", instance, self._boot)

        def start(instance: Any) -> Any:
            with self._lock:
                before = _require(instance, "started", "stopped", "pending", "running")
                if before.name == "stopped":
                    original_start(instance)
                    begin("pending", instance, self._boot)
                return before

        def stop(instance: Any, *_args: Any, **_kwargs: Any) -> Any:
            with self._lock:
                before = _require(instance, "stopped", "pending", "running", "stopping", "stopped")
                if before.name in {"pending", "running"}:
                    original_stop(instance)
                    begin("stopping", instance, self._halt, self._host(instance), "stopped")
                return before

        def terminate(instance: Any) -> Any:
            with self._lock:
                before = copy.copy(instance.instance_state)
                if before.name not in {"shutting-down", "terminated"}:
                    host = self._host(instance)  # known by the address it is about to lose
                    original_terminate(instance)
                    begin("shutting-down", instance, self._halt, host, "terminated")
                return before

        def reboot(instance: Any) -> None:
            with self._lock:
                _require(instance, "rebooted", "running")
                host = self._host(instance)
            threading.Thread(target=self._reboot, args=(instance, host), daemon=True).start()

        def run_instances(backend: Any, *args: Any, **kwargs: Any) -> Any:
            token = kwargs.get("client_token", "ABCDE")  # moto's stand-in for none
            asked = repr((args, sorted((k, v) for k, v in kwargs.items() if k != "client_token")))
            with self._lock:
                if token != "ABCDE" and token in self._tokens:
                    before, reservation = self._tokens[token]
                    if before != asked:
                        raise EC2ClientError(
                            "IdempotentParameterMismatch",
                            "Arguments on this idempotent request are inconsistent with "
                            "arguments used in previous request(s).",
                        )
                    return reservation
                reservation = original_run(backend, *args, **kwargs)
                if token != "ABCDE":
                    self._tokens[token] = asked, reservation
                return reservation

        return {
            "__init__": init,
            "start": start,
            "stop": stop,
            "terminate": terminate,
            "reboot": reboot,
            "run_instances": run_instances,
        }


def _put(instance: Any, state: str, code: str = "", message: str = "") -> None:
    instance.instance_state.name, instance.instance_state.code = state, CODES[state]
    instance.state_reason = StateReason(message, code)


def _require(instance: Any, be: str, *states: str) -> Any:
    before = copy.copy(instance.instance_state)
    if before.name not in states:
        raise EC2ClientError(
            "IncorrectInstanceState",
            f"The instance '{instance.id}' is not in a state from which it can be {be}.",
        )
    return before
