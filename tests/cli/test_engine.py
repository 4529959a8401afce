"""Which engine carries a run out, and what is not started or imported for it."""

from __future__ import annotations

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest
from prefect.client.orchestration import get_client

from deployments import engine
from tests.cli.conftest import MODULE, Command

Eventually = Callable[[Callable[[], Any], str], Any]


def test_without_prefect_no_server_is_started_and_no_home_is_made(
    mesh: Command, eventually: Eventually
):
    marker = mesh.directory / "marker"
    process = mesh.start(
        "run", "sample", "--mesh", "acme.yaml",
        "--set", "behaviour=hang", "--set", f"marker={marker}",
    )  # fmt: skip
    eventually(marker.exists, "the run hangs")
    this = psutil.Process(process.pid)
    children = [child.cmdline() for child in this.children(recursive=True)]
    listening = [c for c in this.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    process.terminate()
    out, _ = process.communicate(timeout=20)

    assert (children, listening) == ([], [])
    assert "failed at step 2 of 2: stopped by SIGTERM" in out
    assert not (mesh.directory / "home").exists()
    assert not list(mesh.directory.rglob("*.db"))


def imported(mesh: Command, *arguments: str) -> set[str]:
    """The modules that a `mesh` with these arguments imports."""
    ran = subprocess.run(
        [MODULE[0], "-X", "importtime", *MODULE[1:], *arguments],
        cwd=mesh.directory, env=mesh.environ, text=True, capture_output=True, check=False,
    )  # fmt: skip
    return {
        line.rpartition("|")[2].strip()
        for line in ran.stderr.splitlines()
        if line.startswith("import time:")
    }


def test_help_and_a_typing_error_import_nothing_heavy(mesh: Command):
    heavy = {"pydantic", "prefect", "httpx", "rich", "boto3", "paramiko", "asyncio", "yaml"}

    assert not heavy & imported(mesh, "--help")
    assert not heavy & imported(mesh, "rn")
    assert not heavy & imported(mesh, "run", "cold-bot")


def test_a_run_without_prefect_does_not_import_it(mesh: Command):
    modules = imported(mesh, "run", "sample", "--mesh", "acme.yaml")

    assert {"flows.execution", "blocks.mesh", "pydantic"} <= modules
    assert not {"prefect", "rich", "fastapi", "sqlalchemy"} & modules


def test_help_takes_less_than_a_third_of_a_second_of_processor(mesh: Command):
    before = resource_usage()
    subprocess.run(
        [sys.executable, "-m", "deployments.cli", "--help"],
        env=mesh.environ, check=True, capture_output=True,
    )  # fmt: skip

    assert resource_usage() - before < 0.3


def resource_usage() -> float:
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class Api(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def api() -> Iterator[str]:
    """Something that answers as a Prefect API's health page does."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/api"
    server.shutdown()
    server.server_close()


def test_auto_is_prefect_only_where_it_answers(api: str):
    assert engine.choose("auto", {}) == ("none", "")
    assert engine.choose("auto", {"PREFECT_API_URL": api})[0] == "prefect"
    assert engine.choose("none", {"PREFECT_API_URL": api}) == ("none", "")
    assert engine.choose("prefect", {"PREFECT_API_URL": api})[0] == "prefect"


def test_a_server_that_does_not_answer_in_time_is_said_and_done_without():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        began = time.monotonic()
        chosen, why = engine.choose("auto", {"PREFECT_API_URL": url})

    assert time.monotonic() - began < 4
    assert (chosen, why) == ("none", f"engine: none (Prefect at {url} does not answer within 2 s)")


def test_a_drip_of_bytes_is_no_answer():
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                while not stop.wait(0.2):
                    try:
                        connection.sendall(b"H")
                    except OSError:
                        return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        began = time.monotonic()
        reason = engine.unanswered(f"http://127.0.0.1:{server.getsockname()[1]}/api")
        stop.set()
        thread.join()

    assert reason == "does not answer within 2 s"
    assert time.monotonic() - began < 4


def test_a_run_with_a_dead_server_goes_on_without_it_and_says_so(mesh: Command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ran = mesh(
        "run", "sample", "--mesh", "acme.yaml", PREFECT_API_URL=f"http://127.0.0.1:{port}/api"
    )

    assert ran.status == 0
    assert f"engine: none (Prefect at http://127.0.0.1:{port}/api does not answer" in ran.out


def test_a_server_that_answers_and_then_fails_costs_a_line_not_the_run(mesh: Command, api: str):
    ran = mesh("run", "sample", "--mesh", "acme.yaml", PREFECT_API_URL=api)

    assert ran.status == 0, ran.err
    assert "engine: none (Prefect answered, but could not begin the run" in ran.out
    assert json.loads(mesh.journal.read_text())["outcome"] == "verified"


def test_the_command_runs_as_a_flow_where_prefect_answers(mesh: Command, prefect_api: str):
    ran = mesh(
        "run", "sample", "--mesh", "acme.yaml", "--json", PREFECT_API_URL=prefect_api,
        PREFECT_HOME=str(mesh.directory / "prefect"),
    )  # fmt: skip

    assert ran.status == 0, ran.err
    report = json.loads(ran.out)
    assert report["measures"]["under_prefect"]
    assert report["outcome"] == "verified"
    assert f"Run: {report['links']['run']}" in ran.err
    assert "Task run" not in ran.err


def test_a_flow_that_is_stopped_leaves_its_report_and_no_running_run(
    mesh: Command, prefect_api: str, eventually: Eventually
):
    marker = mesh.directory / "marker"
    mesh.environ |= {
        "PREFECT_API_URL": prefect_api,
        "PREFECT_HOME": str(mesh.directory / "prefect"),
    }
    process = mesh.start(
        "run", "sample", "--mesh", "acme.yaml", "--json",
        "--set", "behaviour=hang", "--set", f"marker={marker}",
    )  # fmt: skip
    eventually(marker.exists, "the run hangs")
    process.terminate()
    out, err = process.communicate(timeout=60)

    assert process.returncode == 1, err
    report = json.loads(out)
    assert report["problem"]["error"] == "stopped by SIGTERM"
    assert json.loads(mesh.journal.read_text()) == report
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(UUID(report["run_id"])).state_type in {"CRASHED", "FAILED"}


SCRIPT = """
import sys
from flows.runbook import execute
from tests.runbook.sample import sample

report = execute(sample, mesh="acme.yaml")
import psutil
assert "prefect" in sys.modules
print(report.outcome, len(psutil.Process().children()))
"""


def test_called_from_code_it_starts_no_server_though_prefect_is_imported(mesh: Command):
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=mesh.directory, env=mesh.environ, text=True,
        capture_output=True, check=True,
    )  # fmt: skip

    assert ran.stdout == "verified 0\n"
    assert "server" not in ran.stderr
    assert not list(mesh.directory.rglob("*.db"))


def test_a_worker_that_ends_its_run_by_sigterm_finds_the_report_written(
    mesh: Command, prefect_api: str, eventually: Eventually
):
    marker = mesh.directory / "marker"
    flow = (
        "from tests.runbook.sample import sample\n"
        f"sample(mesh='acme.yaml', mode='apply', behaviour='hang', marker={str(marker)!r})"
    )
    home = {"PREFECT_API_URL": prefect_api, "PREFECT_HOME": str(mesh.directory / "prefect")}
    process = subprocess.Popen(
        [sys.executable, "-c", flow], cwd=mesh.directory, env=mesh.environ | home, text=True,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    eventually(marker.exists, "the run hangs")
    process.terminate()
    process.communicate(timeout=60)

    line = json.loads(mesh.journal.read_text())
    assert (line["outcome"], line["problem"]["error"]) == ("failed", "stopped by SIGTERM")
    assert line["problem"]["stands"] == "a-1 a-2 up"
    with get_client(sync_client=True) as client:
        # Prefect's own word for a process that was told to end.
        assert client.read_flow_run(UUID(line["run_id"])).state_type == "CRASHED"


def test_a_lab_that_is_not_installed_is_one_line(mesh: Command, tmp_path: Path):
    (tmp_path / "moto.py").write_text("raise ModuleNotFoundError('no', name='moto')")
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in {'deployments.lab.commands'}:\n"
        "            raise ModuleNotFoundError('No module named moto', name='moto')\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    path = f"{tmp_path}:{mesh.environ['PYTHONPATH']}"
    ran = mesh("lab", "up", PYTHONPATH=path)

    assert ran.status == 2
    assert ran.err == (
        "mesh: the lab's parts are not installed (moto): "
        "make setup, or pip install 'mesh-runbooks[lab]'\n"
    )
