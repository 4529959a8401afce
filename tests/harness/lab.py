"""
A lab of a test's own, and `mesh` run on it the way an operator runs it.

Fixtures (in every test, by `tests/conftest.py`):

    fresh_lab    a small lab of this test alone: new disks, every host off
    fresh_full   the same of size full (three servers a role)
    small_lab    a small lab shared by the session, booted and healthy at first;
                 a test that changes it leaves it so that a cold boot heals it
    full_lab     the same of size full
    new_lab      a function `new_lab("small")` for further labs in one test
    session_lab  the same for fixtures of a wider scope

All have a loopback network and a directory of their own, and nothing of them
runs any more when their scope ends. If a test fails, the last lines of every
unit's log on the labs it used are part of its report.

    def test_comes_back(small_lab: Lab) -> None:
        small_lab.power_cut()
        ran = small_lab.run("cold-boot")
        assert ran.status == 0, ran
        assert ran.outcome == "verified"
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from blocks.mesh import Connections, connect, load_mesh
from blocks.topology import Mesh
from deployments.lab import hosts, processes, state
from deployments.lab.layout import Layout, Size
from tests.harness.forks import Forks
from tests.lab.machine import free_network

CHECKOUT = Path(__file__).parents[2]
CLI = "deployments.cli"
LONGEST = 300.0  # seconds for one command; a cold boot of the full lab takes 20 to 60
SHOWN_LINES = 12


@dataclass(frozen=True)
class Ran:
    """A command that has ended: its exit status (-9: killed), what it said, and its report."""

    arguments: tuple[str, ...]
    status: int
    out: str = field(repr=False)
    err: str = field(repr=False)
    seconds: float

    @property
    def report(self) -> dict[str, Any]:
        """The report of `--json`; empty if the run was killed before it could write one."""
        lines = self.out.splitlines()
        try:
            found = json.loads(lines[-1])
        except (IndexError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def outcome(self) -> str:
        """`verified`, `nothing`, `planned`, `refused`, `failed`, or "" without a report."""
        return str(self.report.get("outcome", ""))

    @property
    def problem(self) -> dict[str, Any]:
        """Why it was refused or failed: `error`, `where`, `do`, `details` ...; empty if it was not."""
        return dict(self.report.get("problem") or {})

    @property
    def mutating_calls(self) -> int:
        """How many calls it made that may change something."""
        return int(self.report["measures"]["mutating_calls"])

    def __str__(self) -> str:
        told = self.problem or self.outcome or self.err[-2000:]
        words = " ".join(self.arguments)
        return f"mesh {words}: status {self.status} after {self.seconds:.1f} s: {told}"


class Lab:
    """A lab that runs in a directory and on a network of its own."""

    def __init__(self, directory: Path, network: str, size: Size) -> None:
        self.directory, self.network, self.size = directory, network, size
        self._forks: Forks | None = None
        scratch = directory.parent
        # Nothing of this machine's own settings reaches a command.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MESH_", "PREFECT_"))}
        kept |= {k: v for k, v in os.environ.items() if k in {"MESH_CONSUL", "MESH_LAB_BIN"}}
        self.environ: dict[str, str] = kept | {
            state.DIRECTORY_VARIABLE: str(directory),
            state.NETWORK_VARIABLE: network,
            "MESH_STATE_DIR": str(scratch / "state"),
            "HOME": str(scratch),
            "PYTHONPATH": str(CHECKOUT),
        }

    # Commands.

    def start(self, *arguments: str, module: str = CLI, **environ: str) -> subprocess.Popen[str]:
        """Begin `mesh ARGUMENTS` in a process of its own; output and errors are pipes."""
        return subprocess.Popen(
            [sys.executable, "-m", *module.split(), *arguments],
            cwd=self.directory.parent,
            env={**self.environ, **environ},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def mesh(
        self, *arguments: str, module: str = CLI, timeout: float = LONGEST, **environ: str
    ) -> Ran:
        """
        Run `mesh ARGUMENTS` to its end; `environ` are further variables.

        `module` is run instead of the command, with words before its arguments
        if it holds blanks.

        Raises:
            AssertionError: it did not end within `timeout` seconds; it is killed.
        """
        began = time.monotonic()
        process = self.start(*arguments, module=module, **environ)
        return self.ended(process, arguments, timeout=timeout, began=began)

    def ended(
        self,
        process: subprocess.Popen[str],
        arguments: Sequence[str] = (),
        *,
        timeout: float = LONGEST,
        began: float | None = None,
    ) -> Ran:
        """Wait for a command that was begun with `start`."""
        began = time.monotonic() if began is None else began
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            words = " ".join(arguments)
            raise AssertionError(
                f"mesh {words}: not ended after {timeout:g} s\n{out[-3000:]}\n{err[-3000:]}"
            ) from None
        return Ran(tuple(arguments), process.returncode, out, err, time.monotonic() - began)

    def run(
        self,
        runbook: str,
        options: Mapping[str, object] | None = None,
        *,
        plan: bool = False,
        module: str = CLI,
        timeout: float = LONGEST,
        **environ: str,
    ) -> Ran:
        """
        `mesh run RUNBOOK --mesh lab --json`, each of `options` as `--set key=value`.

        Booleans are written as `true` and `false`, lists with commas.
        """
        return self.mesh(
            *self.arguments(runbook, options, plan=plan), module=module, timeout=timeout, **environ
        )

    def forked(self, module: str, *words: str, timeout: float = LONGEST) -> Ran:
        """
        `python -m MODULE WORDS`, forked off a process that has imported all of it before.

        For hundreds of runs; `module` has a `main` that takes the words.
        """
        if self._forks is None:
            self._forks = Forks(self.directory.parent, self.environ)
        began = time.monotonic()
        try:
            ended = self._forks.run(module, words, timeout=timeout)
        except AssertionError:
            self._forks = None
            raise
        return Ran(tuple(words), ended.status, ended.out, ended.err, time.monotonic() - began)

    @staticmethod
    def arguments(
        runbook: str, options: Mapping[str, object] | None = None, *, plan: bool = False
    ) -> list[str]:
        """The words of a `mesh run`, as `run` uses them; for `start`."""
        words = ["run", runbook, "--mesh", "lab", "--json", "--engine", "none"]
        for name, value in (options or {}).items():
            words += ["--set", f"{name}={_written(value)}"]
        return [*words, "--plan"] if plan else words

    def boot(self, **options: object) -> Ran:
        """Cold-boot it, from nothing if need be; fails the test if it is not verified."""
        ran = self.run("cold-boot", {"initialise": True, **options})
        assert ran.status == 0, f"{ran}\n{self.logs()}"
        return ran

    # Power.

    def up(self) -> None:
        """Start the clouds; every host is off."""
        self._lab("up", "--size", self.size)

    def down(self, *, wipe: bool = False) -> None:
        """End it; with `wipe` its disks go too."""
        if self._forks is not None:
            self._forks.close()
            self._forks = None
        self._lab("down", *(["--wipe"] if wipe else []))

    def power_cut(self, datacenter: str = "") -> None:
        """Kill every process of every host at once."""
        self._lab("power-cut", *(["--datacenter", datacenter] if datacenter else []))

    def power_on(self, *names: str) -> None:
        """Switch hosts on, all if none is named, and wait until they have booted."""
        self._lab("power-on", *names)

    def _lab(self, *arguments: str) -> None:
        ran = self.mesh("lab", *arguments, timeout=120)
        assert ran.status == 0, f"{ran}\n{ran.out}\n{ran.err}"

    # What stands on it.

    @property
    def layout(self) -> Layout:
        """Its hosts, addresses and units."""
        found = state.read(self.directory)
        assert found is not None
        return found

    @property
    def topology(self) -> Mesh:
        """Its topology, as a runbook loads it."""
        return load_mesh(str(self.directory / "mesh.yaml"), environ=self.environ, use_prefect=False)

    def connections(self) -> Connections:
        """Clients of all its servers, in this process; close them (`with`)."""
        return connect(self.topology, environ=self.environ)

    def disk(self, host: str, path: str) -> Path:
        """A path of a host's disk, which can be read and changed also while it is off."""
        return self.layout.root(host) / path.lstrip("/")

    def enable(self, host: str, unit: str) -> None:
        """Make a unit start by itself when its host is switched on."""
        hosts.enable(self.layout.root(host), unit)

    def disable(self, host: str, unit: str) -> None:
        """Take that back."""
        link = self.layout.root(host) / hosts.ENABLED_DIR[1:] / f"{unit}.service"
        link.unlink(missing_ok=True)

    # Processes.

    def pid(self, host: str, unit: str) -> int | None:
        """The main process of a unit, if it runs."""
        pid = hosts.main_pid(self.layout.root(host), unit)
        # The note outlives a power cut, and the number may be another's by then.
        return pid if pid in self.processes_of(host) else None

    def processes_of(self, host: str) -> list[int]:
        """Every process of a host."""
        return processes.find(self.layout.id, host)

    @contextmanager
    def frozen(self, host: str, unit: str, *, within: float = 60.0) -> Iterator[int]:
        """
        Stop a unit's process by SIGSTOP as soon as it runs, and let it go on at the end.

        Its listener accepts connections all the while and never answers.
        """
        end = time.monotonic() + within
        while (pid := self.pid(host, unit)) is None:
            assert time.monotonic() < end, f"{unit} on {host} does not run within {within:g} s"
            time.sleep(0.01)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield pid
        finally:
            processes.send([pid], signal.SIGCONT)

    # Logs.

    def log(self, host: str, unit: str, lines: int = SHOWN_LINES) -> str:
        """The last lines that a unit has written."""
        file = hosts.log_file(self.layout.root(host), unit)
        if not file.exists():
            return ""
        with file.open(errors="replace") as stream:
            return "".join(deque(stream, lines))

    def logs(self, lines: int = SHOWN_LINES) -> str:
        """The last lines of every unit's log on every host, and of the supervisor's."""
        if state.read(self.directory) is None:
            return ""
        parts = []
        for host in self.layout.hosts:
            for unit in hosts.logs(self.layout.root(host.name)):
                if text := self.log(host.name, unit, lines):
                    parts.append(f"--- {host.name} {unit}\n{text.rstrip()}")
        own = self.directory / "supervisor.log"
        if own.exists() and (text := own.read_text(errors="replace")):
            parts.append(f"--- supervisor\n{text[-2000:].rstrip()}")
        return "\n".join(parts)


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


@contextmanager
def running_lab(directory: Path, size: Size) -> Iterator[Lab]:
    """A new lab for the length of a `with`, every host off; its disks are gone afterwards."""
    with free_network() as network:
        lab = Lab(directory / "lab", network, size)
        try:
            lab.up()
            yield lab
        finally:
            lab.down(wipe=True)
            shutil.rmtree(directory, ignore_errors=True)


class NewLab:
    """Gives new labs of a size, every host off, in directories of their own."""

    def __init__(self, stack: ExitStack, factory: pytest.TempPathFactory) -> None:
        self._stack, self._factory = stack, factory
        self.labs: list[Lab] = []

    def __call__(self, size: Size = "small") -> Lab:
        """One more; it ends with the scope of the fixture."""
        lab = self._stack.enter_context(running_lab(self._factory.mktemp("lab"), size))
        self.labs.append(lab)
        return lab


@pytest.fixture
def new_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewLab]:
    """A function that gives a further lab of this test: new disks, every host off."""
    with ExitStack() as stack:
        yield NewLab(stack, tmp_path_factory)


@pytest.fixture
def fresh_lab(new_lab: NewLab) -> Lab:
    """A small lab of this test alone: new disks, every host off."""
    return new_lab("small")


@pytest.fixture
def fresh_full(new_lab: NewLab) -> Lab:
    """A full lab of this test alone: new disks, every host off."""
    return new_lab("full")


@pytest.fixture(scope="session")
def session_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewLab]:
    """`new_lab` for fixtures of a session or module: its labs end with the session."""
    with ExitStack() as stack:
        yield NewLab(stack, tmp_path_factory)


@pytest.fixture(scope="session")
def small_lab(session_lab: NewLab) -> Lab:
    """A small lab shared by the session: booted and healthy at first."""
    lab = session_lab("small")
    lab.boot()
    return lab


@pytest.fixture(scope="session")
def full_lab(session_lab: NewLab) -> Lab:
    """A full lab shared by the session: booted and healthy at first."""
    lab = session_lab("full")
    lab.boot()
    return lab


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the logs of the labs that a failed test used to its report."""
    report = yield
    if report.failed:
        given = getattr(item, "funcargs", {}).values()
        used = {id(v): v for v in given if isinstance(v, Lab)}
        used |= {id(v): v for new in given if isinstance(new, NewLab) for v in new.labs}
        for lab in used.values():
            report.sections.append((f"logs of the lab on {lab.network}", lab.logs()))
    return report
