"""One Prefect server for all tests here, with one mesh deployed to it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.deploy import server as servers
from tests.deploy.server import PrefectServer


class Deployed(NamedTuple):
    """What `mesh deploy` said, the first time and the second."""

    topology: Path
    first: subprocess.CompletedProcess[str]
    second: subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    running = servers.start(tmp_path_factory.mktemp("prefect"))
    try:
        yield running
    finally:
        servers.end(running.process)


@pytest.fixture(scope="session")
def deployed(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    topology = servers.write_topology(tmp_path_factory.mktemp("topology"))
    command = ["deploy", "--mesh", str(topology)]
    first = servers.mesh(command, prefect_server.environ)
    assert first.returncode == 0, first.stdout + first.stderr
    return Deployed(topology, first, servers.mesh(command, prefect_server.environ))
