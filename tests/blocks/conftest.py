"""Real servers for the connections, each started once and only when a test asks for it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from blocks import calls
from blocks.aws import AwsAccount
from tests.blocks.pki import Authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def ledger() -> Iterator[calls.Ledger]:
    """All calls made during the test."""
    seen = calls.Ledger()
    calls.observe(seen)
    yield seen
    calls.forget(seen)


def free_address() -> str:
    """A loopback address of our own, so that servers can use their usual ports."""
    block = os.getpid() % 200 + 20
    for last in range(1, 250):
        address = f"127.{block}.66.{last}"
        with socket.socket() as probe:
            try:
                probe.bind((address, 8300))
            except OSError:
                continue
            return address
    raise RuntimeError("no loopback address is free")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def running(
    command: list[str | Path], log: Path, ready: Callable[[], object], *, seconds: float = 30.0
) -> Iterator[None]:
    """Run a server until the generator is closed; its log is shown if it never gets ready."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=log.parent
        )
    try:
        ends = time.monotonic() + seconds
        while not _is(ready):
            if process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"{command[0]} did not come up:\n{log.read_text()[-4000:]}")
            time.sleep(0.05)
        yield
    finally:
        process.kill()
        process.wait()


def _is(ready: Callable[[], object]) -> bool:
    try:
        return bool(ready())
    except Exception:  # noqa: BLE001 - it is not up yet, whatever it says
        return False


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    """URL of a moto server in this process, for EC2 and Secrets Manager."""
    os.environ.setdefault("MOTO_EC2_LOAD_DEFAULT_AMIS", "false")  # else the first call takes 1 s
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def aws(moto: str) -> AwsAccount:
    return AwsAccount(
        access_key_id="AKIAIOSFODNN7EXAMPLE",
        secret_access_key=SecretStr("c4nary-aws-secret-key-0123456789"),
        region="us-east-1",
        endpoint_url=moto,
    )
