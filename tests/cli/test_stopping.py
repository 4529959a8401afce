"""A run that is stopped or killed, and the next one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cli.conftest import Command

Eventually = Callable[[Callable[[], Any], str], Any]


@pytest.fixture(autouse=True)
def _as_from_a_terminal() -> Iterator[None]:
    """Under `nohup` a hang-up is ignored, and by every process started there."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def hanging(mesh: Command, eventually: Eventually, **options: Any) -> subprocess.Popen[str]:
    """A run in the middle of its work: it has changed something, and waits."""
    marker = mesh.directory / "marker"
    marker.unlink(missing_ok=True)
    process = mesh.start(
        "run", "sample", "--mesh", "acme.yaml",
        "--set", "behaviour=hang", "--set", f"marker={marker}", **options,
    )  # fmt: skip
    eventually(marker.exists, "the run hangs")
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_it_cleanly_and_the_rest_is_told(
    mesh: Command, eventually: Eventually, number: signal.Signals
):
    process = hanging(mesh, eventually)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)

    assert (process.returncode, err) == (1, "")
    assert f"{number.name}: stopping at the next step boundary" in out
    assert f"failed at step 2 of 2: stopped by {number.name}\n" in out
    assert "  stands   a-1 a-2 up\n" in out
    assert "  safe     yes: run it again" in out
    line = json.loads(mesh.journal.read_text())
    assert (line["outcome"], line["problem"]["safe_to_rerun"]) == ("failed", True)
    assert mesh("run", "sample", "--mesh", "acme.yaml").status == 0


def test_with_json_a_stopped_run_still_gives_its_report(mesh: Command, eventually: Eventually):
    marker = mesh.directory / "marker"
    process = mesh.start(
        "run", "sample", "--mesh", "acme.yaml", "--json",
        "--set", "behaviour=hang", "--set", f"marker={marker}",
    )  # fmt: skip
    eventually(marker.exists, "the run hangs")
    process.terminate()
    out, _ = process.communicate(timeout=20)

    assert json.loads(out)["problem"]["error"] == "stopped by SIGTERM"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, -signal.SIGTERM)]
)
def test_a_second_signal_cuts_it_off(
    mesh: Command, eventually: Eventually, number: signal.Signals, status: int
):
    marker = mesh.directory / "marker"
    process = mesh.start(
        "run", "sample", "--mesh", "acme.yaml",
        "--set", "behaviour=stubborn", "--set", f"marker={marker}",
    )  # fmt: skip
    eventually(marker.exists, "the run is busy")
    process.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1.0)
    process.send_signal(number)

    assert process.wait(10) == status
    assert "it was killed: sample" in mesh("run", "sample", "--mesh", "acme.yaml").out


def test_after_kill_9_the_lock_is_free_and_the_next_run_writes_the_line_of_the_dead(
    mesh: Command, eventually: Eventually
):
    process = hanging(mesh, eventually)
    process.kill()
    process.communicate()
    assert not mesh.journal.read_text()

    ran = mesh("run", "sample", "--mesh", "acme.yaml")

    assert ran.status == 0
    assert "! the run before did not end by itself, it was killed: sample " in ran.out
    lines = [json.loads(line) for line in mesh.journal.read_text().splitlines()]
    assert [line["outcome"] for line in lines] == ["failed", "verified"]
    assert lines[0]["problem"]["error"] == "killed: it left no report of its own"
    assert mesh("run", "sample", "--mesh", "acme.yaml").out.count("killed") == 0


def test_a_second_run_is_refused_with_the_holders_name_and_since_when(
    mesh: Command, eventually: Eventually
):
    process = hanging(mesh, eventually)
    try:
        ran = mesh("run", "sample", "--mesh", "acme.yaml")
        plan = mesh("run", "sample", "--mesh", "acme.yaml", "--plan")
    finally:
        process.terminate()
        process.communicate(timeout=20)

    assert ran.status == 3
    assert "refused: another runbook holds the mesh: sample " in ran.out
    assert f"(pid {process.pid}), since 2" in ran.out
    assert plan.status == 0
    assert "held at this moment by sample " in plan.out
    outcomes = [json.loads(line)["outcome"] for line in mesh.journal.read_text().splitlines()]
    assert outcomes == ["refused", "planned", "failed"]


def test_a_closed_terminal_does_not_end_the_work(mesh: Command):
    """Whoever reads the output goes away in the middle; the run goes on to its end."""
    reader, writer = os.pipe()
    os.close(reader)
    process = mesh.start("run", "sample", "--mesh", "acme.yaml", stdout=writer)
    os.close(writer)
    process.communicate(timeout=30)

    assert json.loads(mesh.journal.read_text())["outcome"] == "verified"
    assert process.returncode == 0
