"""What the matrices share: a booted lab, what was done to boot it, and figures at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import chain, inject
from tests.harness.inject import Identity
from tests.harness.lab import Lab, NewLab

FIGURES = "figures of the matrix"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Booted:
    """A small lab that is up, and every mutating call of its day 0."""

    lab: Lab
    day_0: Counter[Identity]


@pytest.fixture(scope="session")
def booted(session_lab: NewLab, tmp_path_factory: pytest.TempPathFactory) -> Booted:
    """A small lab, booted from nothing with nothing going wrong."""
    lab = session_lab("small")
    folder = tmp_path_factory.mktemp("day-0")
    done = chain.reference(lab, folder, "cold-boot", {"initialise": True})
    return Booted(lab, inject.answered(done.trace, mutating=True))


@pytest.fixture
def healthy(booted: Booted) -> Lab:
    """The booted lab, healthy again whatever a test before did to it."""
    ran = booted.lab.run("cold-boot")
    assert ran.status == 0, ran
    return booted.lab


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test's chains keep what has gone wrong; short, not named after the test."""
    return tmp_path


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Tell:
    """Say a line of figures, shown when all tests are done."""
    return lambda line: record_property(FIGURES, line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show the figures, also of tests that ran in other processes."""
    reports = [r for group in ("passed", "failed") for r in terminalreporter.getreports(group)]
    lines = [
        line
        for report in reports
        for name, line in getattr(report, "user_properties", [])
        if name == FIGURES and getattr(report, "when", "") == "call"
    ]
    if lines:
        terminalreporter.section(FIGURES)
        for line in lines:
            terminalreporter.write_line(line)
