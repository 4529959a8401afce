"""The prompt, in a process of its own at a real terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

SHARE = "c4nary+share/0123456789ABCDEF=="

PROGRAM = """
import json, sys
from blocks.engine import do_without_prefect
do_without_prefect()
from blocks.errors import MeshError
from blocks.keys_prompt import PromptStore
todo = json.loads(sys.argv[1])
store = PromptStore(**todo["store"])
said = []
for name, *given in todo["calls"]:
    try:
        said.append(getattr(store, name)(*given))
    except MeshError as error:
        said.append([type(error).__name__, str(error)])
open(sys.argv[2], "w").write(json.dumps(said))
"""


class Person:
    """Somebody at a terminal, before whom the program runs."""

    def __init__(self, file: Path, *calls: list[Any], **store: Any) -> None:
        self.file = file
        self.seen = ""
        todo = json.dumps({"store": {"holder": "ops-a", **store}, "calls": calls})
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", PROGRAM, todo, str(file)])

    def sees(self, text: str, seconds: float = 20) -> None:
        ends = time.monotonic() + seconds
        while text not in self.seen:
            left = ends - time.monotonic()
            assert left > 0, f"{text!r} is not in {self.seen!r}"
            if select.select([self.terminal], [], [], left)[0]:
                self.seen += os.read(self.terminal, 65536).decode()

    def forgets(self) -> None:
        self.seen = ""

    def types(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def ends(self) -> Any:
        """What the program was given; the rest of the screen is in `seen`."""
        while True:
            try:
                data = os.read(self.terminal, 65536)
            except OSError:
                break
            if not data:
                break
            self.seen += data.decode()
        _, status = os.waitpid(self.pid, 0)
        os.close(self.terminal)
        assert status == 0, self.seen
        return json.loads(self.file.read_text())


def test_shares_are_asked_for_once_and_never_shown(tmp_path: Path):
    person = Person(tmp_path / "out", ["read"], ["read"], shares=2)
    person.sees("ops-a: share 1 of 2")
    person.types(f"{SHARE}\r")
    person.sees("ops-a: share 2 of 2")
    person.types(f"  {SHARE[::-1]} \r")

    document = {"state": "held", "shares": [SHARE, SHARE[::-1]]}
    assert person.ends() == [document, document]
    assert SHARE not in person.seen
    assert SHARE[::-1] not in person.seen


def test_enter_alone_means_there_is_none(tmp_path: Path):
    person = Person(tmp_path / "out", ["read"])
    person.sees("share 1 of 1")
    person.types("\r")

    assert person.ends() == [None]


def test_other_fields_and_corrections_while_typing(tmp_path: Path):
    person = Person(tmp_path / "out", ["read"], shares=0, fields=["role_id", "secret_id"])
    person.sees("role_id")
    person.types("wrong\x15role\r")
    person.sees("secret_id")
    person.types("\r")
    person.sees("still missing")
    person.types("secrex\x7ft\r")

    assert person.ends() == [{"role_id": "role", "secret_id": "secret"}]


def test_a_long_document_is_not_cut(tmp_path: Path):
    """In the terminal's line mode the kernel takes 4095 bytes."""
    document = {"private_key": "x" * 9000}
    person = Person(tmp_path / "out", ["read"], shares=0)
    person.sees("one line of JSON")
    text = json.dumps(document) + "\r"
    for start in range(0, len(text), 1000):
        person.types(text[start : start + 1000])
        time.sleep(0.02)

    assert person.ends() == [document]


def test_new_shares_are_shown_once_and_typed_back(tmp_path: Path):
    document = {"state": "held", "shares": [SHARE], "threshold": 2}
    person = Person(tmp_path / "out", ["write", document], ["read"])
    person.sees(SHARE)
    person.types("\r")
    person.sees("Type back share 1 of 1")
    person.types(f"{SHARE}\r")

    assert person.ends() == [None, document]
    shown, _, after = person.seen.partition(SHARE)
    assert "\x1b[?1049h" in shown, "not on the screen that leaves nothing behind"
    assert SHARE not in after
    assert after.index("\x1b[2J") < after.index("Type back")
    assert after.rstrip().endswith("\x1b[?1049l")


def test_a_share_noted_wrongly_is_shown_again_and_then_an_error(tmp_path: Path):
    person = Person(tmp_path / "out", ["write", {"shares": [SHARE]}], ["probe"])
    for attempt in range(3):
        person.sees(SHARE)
        person.types("\r")
        person.sees("Type back")
        person.types("something else\r")
        if attempt < 2:
            person.sees("not the same")
            person.forgets()
            person.types("\r")

    said = person.ends()
    assert said[0][0] == "NotConverged"
    assert SHARE not in said[0][1]
    assert said[1] is None


def test_a_document_without_shares_is_only_remembered(tmp_path: Path):
    intent = {"state": "intended", "shares": []}
    person = Person(tmp_path / "out", ["write", intent], ["read"])

    assert person.ends() == [None, intent]
    assert "intended" not in person.seen


def test_nobody_answers(tmp_path: Path):
    person = Person(tmp_path / "out", ["read"], patience_seconds=0.3)

    assert person.ends()[0][0] == "Refused"


def test_the_terminal_echoes_again_afterwards(tmp_path: Path):
    person = Person(tmp_path / "out", ["read"], patience_seconds=5)
    person.sees("share 1 of 1")
    assert not termios.tcgetattr(person.terminal)[3] & termios.ECHO
    person.types("\x04")
    person.sees("share 1 of 1")
    ends = time.monotonic() + 5
    while not termios.tcgetattr(person.terminal)[3] & termios.ECHO:
        assert time.monotonic() < ends
        time.sleep(0.01)

    assert person.ends()[0][0] == "Refused"


@pytest.mark.parametrize("name", ["probe", "read"])
def test_without_a_terminal_it_is_refused(tmp_path: Path, name: str):
    """In a worker, a container, a cron job."""
    todo = json.dumps({"store": {"holder": "ops-a"}, "calls": [[name]]})
    subprocess.run(
        [sys.executable, "-c", PROGRAM, todo, str(tmp_path / "out")],
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )

    assert "no terminal" in json.loads((tmp_path / "out").read_text())[0][1]
