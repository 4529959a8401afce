"""Bringing a lab up and taking it down again, whatever state it was left in."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from blocks import topology
from blocks.errors import BadInput
from deployments.lab import binaries, control, document, hosts, layout, processes, state
from deployments.lab.layout import Layout, Size

READY_SECONDS = 60.0
END_SECONDS = 15.0
SHOWN_PROBLEMS = 5


# Those that this process started, which it must take leave of when they end.
_supervisors: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Up:
    """A lab that was brought up; `reused` if its disks were there before."""

    layout: Layout
    reused: bool
    seconds: float


class LabFailed(RuntimeError):
    """The lab could not be started or ended; the message says why."""


def up(size: Size | None = None, environ: Mapping[str, str] = os.environ) -> Up:
    """
    Start the clouds of a lab, with every host off.

    A lab whose disks are in the directory is taken up again as it is.

    Raises:
        BadInput: a lab runs there, its size or network is another, a program
            is missing, a port is in use.
        LabFailed: the supervisor did not start.
    """
    began = time.monotonic()
    directory = state.directory(environ)
    try:
        lock = state.lock(directory, patience=0.5)
    except BlockingIOError:
        raise BadInput(
            f"a lab runs in {directory} already (pid {state.holder(directory)}): "
            "`mesh lab status` shows it, `mesh lab down` ends it"
        ) from None
    try:
        lab, reused = _choose(directory, size, state.network(environ))
        programs = _programs()
        if reused:
            processes.kill_lab(lab.id)  # what a killed supervisor and watchdog left
        if problems := list(_ports_in_use(lab)):
            raise BadInput(_shortened(problems))
        if not reused:
            state.wipe(directory)
        with _supervisor(lab, lock):
            _write(lab, programs, render=not reused)
    finally:
        os.close(lock)
    return Up(lab, reused, time.monotonic() - began)


def down(*, wipe: bool = False, environ: Mapping[str, str] = os.environ) -> bool:
    """
    End the lab of the directory; whether one was running.

    Afterwards no process of it is left and its ports are free. Its disks stay,
    unless they are to be wiped.

    Raises:
        LabFailed: it does not end.
    """
    directory = state.directory(environ)
    running = state.holder(directory) is not None
    try:
        lab = state.read(directory)
    except BadInput:
        if running or not wipe:
            raise
        lab = None
    if running:
        _end_supervisor(directory, lab)
    if lab:
        try:
            processes.kill_lab(lab.id)
        except TimeoutError as error:
            raise LabFailed(str(error)) from error
    if wipe:
        state.wipe(directory)
    return running


def _choose(directory: Path, size: Size | None, network: str | None) -> tuple[Layout, bool]:
    kept = state.read(directory)
    if kept is None:
        chosen = size or "small"
        return Layout(chosen, network or state.DEFAULT_NETWORK, directory, state.new_id()), False
    remedy = "`mesh lab down --wipe` removes it"
    if size and size != kept.size:
        raise BadInput(f"the lab in {directory} is of size {kept.size}, not {size}: {remedy}")
    if network and network != kept.network:
        raise BadInput(
            f"the lab in {directory} is on network {kept.network}, not {network}: {remedy}, "
            f"or set {state.NETWORK_VARIABLE}={kept.network}"
        )
    return kept, True


def _programs() -> hosts.Programs:
    missing = []
    for find in binaries.ALL.values():
        try:
            find()
        except binaries.MissingBinary as error:
            missing.append(str(error))
    if missing:
        raise BadInput(missing)
    return hosts.programs()


def _write(lab: Layout, programs: hosts.Programs, *, render: bool) -> None:
    user = hosts.user()
    keys = hosts.prepare(lab, programs)
    if render:
        importlib.import_module("deployments.lab.disks").render(lab)
    mesh = document.topology(lab, keys, ssh_user=user)
    topology.parse(mesh)
    (lab.directory / "holders").mkdir(mode=0o700, exist_ok=True)
    credentials = state.read_credentials(lab.directory) or _new_credentials(lab, user)
    state.write_documents(lab, mesh, credentials)
    state.write(lab)


def _new_credentials(lab: Layout, user: str) -> dict[str, Any]:
    from deployments.lab.proxmox import TOKEN_NAME, USER

    return {
        "aws": {
            "access_key_id": f"AKIA{secrets.token_hex(8).upper()}",
            "secret_access_key": secrets.token_urlsafe(30),
            "region": layout.PRIMARY,
        },
        "proxmox": {
            "user": USER,
            "token_name": TOKEN_NAME,
            "token_value": secrets.token_hex(16),
        },
        "hosts": {"user": user, "key_file": str(lab.operator_key)},
    }


def _ports_in_use(lab: Layout) -> Iterator[str]:
    for address, port in _ports(lab):
        with socket.socket() as probe:
            # As servers do; what listens is seen all the same, what only ended just now is not.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                yield (
                    f"{address}:{port} is in use: stop what listens there, or choose another "
                    f"network with {state.NETWORK_VARIABLE}"
                )


def _ports(lab: Layout) -> Iterator[tuple[str, int]]:
    yield lab.aws_address, layout.AWS_PORT
    yield lab.proxmox_address, layout.PROXMOX_PORT
    yield lab.vault_balancer, layout.VAULT_PORT
    yield lab.facade_address, layout.VAULT_PORT
    for host in lab.hosts:
        ports = {layout.SSH_PORT, *(p for s in host.services for p in (s.port, s.sidecar_port))}
        if "vault" in host.roles:
            ports |= {layout.VAULT_PORT, layout.VAULT_CLUSTER_PORT}
        else:
            ports |= {
                layout.CONSUL_HTTPS_PORT,
                layout.CONSUL_RPC_PORT,
                layout.CONSUL_SERF_LAN_PORT,
            }
        if "gateway" in host.roles:
            ports.add(layout.GATEWAY_PORT)
            yield host.wan_address, layout.GATEWAY_PORT
        for port in sorted(ports):
            yield host.address, port


def _shortened(problems: list[str]) -> list[str]:
    more = len(problems) - SHOWN_PROBLEMS
    return problems if more <= 0 else [*problems[:SHOWN_PROBLEMS], f"and {more} more ports"]


@contextmanager
def _supervisor(lab: Layout, lock: int) -> Iterator[None]:
    """Start the supervisor, which loads its modules meanwhile and begins when the block ends."""
    lab.directory.mkdir(parents=True, exist_ok=True)
    log = lab.directory / "supervisor.log"
    log.unlink(missing_ok=True)
    log.touch(mode=0o600)
    read, write = os.pipe()
    arguments = [str(lab.directory), str(lock), str(write)]
    with log.open("ab") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "deployments.lab.supervisor", *arguments],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            pass_fds=(lock, write),
            start_new_session=True,
            env=_environment() | processes.environment(lab.id),
        )
    os.close(write)
    assert supervisor.stdin is not None
    with os.fdopen(read, "rb", buffering=0) as answers:
        try:
            yield
            with contextlib.suppress(BrokenPipeError):
                supervisor.stdin.write(b"begin\n")
                supervisor.stdin.close()
            said = _first_line(answers, READY_SECONDS)
            if said != "ready":
                raise LabFailed(f"{said or 'the supervisor ended or hung'} (see {log})")
        except BaseException:
            supervisor.kill()
            supervisor.communicate()
            raise
    _supervisors.append(supervisor)


def _environment() -> dict[str, str]:
    """The environment, but for a wish not to keep compiled modules: a start takes half the time."""
    environ = dict(os.environ)
    if environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        environ["PYTHONPYCACHEPREFIX"] = str(hosts.bytecode())
    return environ


def _first_line(pipe: FileIO, timeout: float) -> str:
    text = b""
    end = time.monotonic() + timeout
    while not text.endswith(b"\n") and (left := end - time.monotonic()) > 0:
        if select.select([pipe], [], [], left)[0]:
            data = pipe.read(4096)
            if not data:
                break
            text += data
    return text.decode(errors="replace").strip()


def _end_supervisor(directory: Path, lab: Layout | None) -> None:
    try:
        control.request(directory, "down", timeout=5.0)
    except control.ControlFailed:
        _kill_supervisor(directory, lab)
    for _ in range(2):
        end = time.monotonic() + END_SECONDS
        while time.monotonic() < end:
            if state.holder(directory) is None:
                for child in list(_supervisors):
                    if child.poll() is not None:
                        _supervisors.remove(child)
                return
            time.sleep(0.02)
        _kill_supervisor(directory, lab)
    raise LabFailed(f"the supervisor of the lab in {directory} does not end")


def _kill_supervisor(directory: Path, lab: Layout | None) -> None:
    # It is stuck, or not up yet. Its watchdog ends everything else.
    if lab and (pid := state.holder(directory)) in processes.find(lab.id):
        processes.send([pid], signal.SIGKILL)
