"""A custodian types their shares at the terminal, and nothing of them is left anywhere."""

from __future__ import annotations

import os
import pty
import select
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.harness.lab import CLI, LONGEST, Lab
from tests.integration import changes
from tests.integration.outside import Outside

pytestmark = pytest.mark.integration


def test_a_custodians_shares_open_vault_and_show_nowhere(dark: Lab):
    """Asked on the terminal, typed unseen; not in its output, a log, the report or the journal."""
    shares = Outside(dark).shares("ops-b")

    def custodian(mesh: dict[str, Any]) -> None:
        mesh["vault"]["holders"][1] = {"name": "ops-b", "store": "prompt", "shares": 2}

    mesh = changes.variant(dark, custodian)
    words = ["run", "cold-boot", f"--mesh={mesh}", "--engine=none", "--set=without_holders=ops-c"]

    status, shown = at_a_terminal(dark, words, shares)

    assert status == 0, shown[-4000:]
    changes.HEALTHY.add(dark.directory)
    assert "ops-b: share 1 of 2 (not shown):" in shown
    assert "ops-b: share 2 of 2 (not shown):" in shown
    assert shown.count("verified in") == 1
    for share in shares:
        assert share not in shown
        assert found(dark.directory.parent, share) == ["aws/secrets.json"]


def at_a_terminal(lab: Lab, words: list[str], answers: list[str]) -> tuple[int, str]:
    """Run `mesh` at a terminal of its own, answer its questions, and give what it showed."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(lab.directory.parent)
        os.execve(
            sys.executable, [sys.executable, "-m", CLI, *words], {**lab.environ, "TERM": "xterm"}
        )
    shown, end = b"", time.monotonic() + LONGEST
    waiting = list(answers)
    while time.monotonic() < end:
        if not select.select([terminal], [], [], 1.0)[0]:
            continue
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        shown += data
        if waiting and shown.count(b"(not shown): ") > len(answers) - len(waiting):
            os.write(terminal, waiting.pop(0).encode() + b"\r")
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), shown.decode(errors="replace")


def found(folder: Path, text: str) -> list[str]:
    """The files below a folder that hold a text, by their last two names."""
    return [
        "/".join(file.parts[-2:])
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not file.is_symlink() and text.encode() in file.read_bytes()
    ]
