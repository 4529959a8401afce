"""Labs for tests, each with its own directory and network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.lab import lifecycle, state
from tests.lab.machine import Lab, free_network, small_disks


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory and network that `mesh lab` uses in this test; nothing runs there after it."""
    directory = tmp_path / "lab"
    with free_network() as network:
        monkeypatch.setenv(state.DIRECTORY_VARIABLE, str(directory))
        monkeypatch.setenv(state.NETWORK_VARIABLE, network)
        monkeypatch.setitem(sys.modules, "deployments.lab.disks", small_disks())
        try:
            yield directory
        finally:
            lifecycle.down()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """One lab for the tests of a module."""
    with pytest.MonkeyPatch.context() as patch, free_network() as network:
        patch.setenv(state.DIRECTORY_VARIABLE, str(tmp_path_factory.mktemp("shared") / "lab"))
        patch.setenv(state.NETWORK_VARIABLE, network)
        patch.setitem(sys.modules, "deployments.lab.disks", small_disks())
        lab = Lab(lifecycle.up("small").layout)
        try:
            yield lab
        finally:
            said = (lab.layout.directory / "supervisor.log").read_text()
            lifecycle.down()
            assert not said, said


@pytest.fixture
def lab(shared: Lab) -> Lab:
    """The module's lab with every host off."""
    shared.do("power-cut")
    return shared
