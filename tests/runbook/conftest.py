from __future__ import annotations

from pathlib import Path

import pytest

from tests.runbook.acme import write_topology


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state directory of the test's own, with what a run leaves there."""
    directory = tmp_path / "state"
    monkeypatch.setenv("MESH_STATE_DIR", str(directory))
    return directory


@pytest.fixture
def acme(tmp_path: Path, state: Path) -> str:
    """The topology of a mesh that no server is behind: the frame is tried, not the clients."""
    return str(write_topology(tmp_path / "acme.yaml"))
