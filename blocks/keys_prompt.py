"""
A secret document kept by a person, and asked for at the terminal.

What is typed is never shown, and goes to nobody but the caller: not through
stdin or stdout, which may be a pipe or a log, but over the terminal itself.
"""

from __future__ import annotations

import copy
import json
import os
import select
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import Field, PrivateAttr

from blocks.engine import Block
from blocks.errors import BadInput, NotConverged, Refused
from blocks.keys import DOCUMENTATION, parsed
from blocks.wire import reason

PATIENCE_SECONDS = 600.0
TRIES = 3

_one_at_a_time = threading.Lock()  # there is one terminal and one person before it


class PromptStore(Block):
    """
    A person who keeps shares, and types them in when they are needed.

    What was typed is kept in memory as long as this object lives, so that a
    run asks once.

    Example:
        ```python
        from blocks import PromptStore

        store = PromptStore.load("BLOCK_NAME")
        store.probe()
        ```
    """

    _block_type_name = "Mesh Prompt Store"
    _block_type_slug = "mesh-prompt-store"
    _documentation_url = DOCUMENTATION

    holder: str = Field(default="", description="The person or role, as the prompt calls them.")
    shares: int = Field(
        default=1, ge=0, description="How many shares to ask for; 0: a document of other fields."
    )
    fields: list[str] = Field(
        default=[], description="Fields to ask for when there are no shares; a JSON line if none."
    )
    patience_seconds: float = Field(
        default=PATIENCE_SECONDS, gt=0, description="How long to wait for each answer, in seconds."
    )

    _held: dict[str, Any] | None = PrivateAttr(default=None)

    @property
    def where(self) -> str:
        """The place."""
        return f"{self.holder or 'somebody'} at this terminal"

    def probe(self, *, write: bool = False) -> None:
        """Return if this process has a terminal; nobody is asked."""
        del write  # the same terminal serves for both
        with _Terminal(self.where, self.patience_seconds):
            pass

    def read(self) -> dict[str, Any] | None:
        """
        Ask for the document; Enter alone at the first question means there is none yet.

        Raises:
            Refused: there is no terminal, or nobody answered in time.
        """
        with _one_at_a_time:
            if self._held is None:
                with _Terminal(self.where, self.patience_seconds) as terminal:
                    self._held = self._ask(terminal)
            return copy.deepcopy(self._held)

    def write(self, value: dict[str, Any]) -> None:
        """
        Show the secrets of `value` on the terminal once, and have them typed back.

        A document without secrets, such as an intent, is only kept in memory.

        Raises:
            NotConverged: what was typed back differs, three times; nothing of
                it is kept, and the screen is clear again.
            Refused: there is no terminal, or nobody answered in time.
        """
        with _one_at_a_time:
            if shown := self._secrets(value):
                with _Terminal(self.where, self.patience_seconds) as terminal, terminal.aside():
                    self._hand_over(terminal, shown)
            self._held = copy.deepcopy(value)

    def _ask(self, terminal: _Terminal) -> dict[str, Any] | None:
        if not self.shares and not self.fields:
            line = terminal.ask(f"{self.holder}: the document as one line of JSON (not shown): ")
            return parsed(line.encode(), self.where) if line else None
        labels = self.fields or [f"share {n} of {self.shares}" for n in range(1, self.shares + 1)]
        answers: list[str] = []
        for label in labels:
            answer = terminal.ask(f"{self.holder}: {label} (not shown): ")
            while not answer and answers:
                answer = terminal.ask(f"{self.holder}: {label}, still missing (not shown): ")
            if not answer:
                return None
            answers.append(answer)
        if self.fields:
            return dict(zip(self.fields, answers, strict=True))
        return {"state": "held", "shares": answers}

    def _secrets(self, value: dict[str, Any]) -> dict[str, str]:
        """What a person must note, by label."""
        if self.shares:
            shares = value.get("shares") or []
            return {f"share {n} of {len(shares)}": str(s) for n, s in enumerate(shares, 1)}
        if self.fields:
            return {field: str(value[field]) for field in self.fields if value.get(field)}
        return {"the document": json.dumps(value)} if value else {}

    def _hand_over(self, terminal: _Terminal, shown: dict[str, str]) -> None:
        for attempt in range(1, TRIES + 1):
            terminal.clear()
            terminal.say(
                f"For {self.holder}. Note this where only you can find it; it is shown this once.\n\n"
            )
            for label, secret in shown.items():
                terminal.say(f"  {label}:\n  {secret}\n\n")
            terminal.ask("Press Enter when you have it. ")
            terminal.clear()
            wrong = [
                label
                for label, secret in shown.items()
                if terminal.ask(f"Type back {label} from what you noted (not shown): ") != secret
            ]
            if not wrong:
                return
            left = TRIES - attempt
            if left:
                terminal.ask(f"{', '.join(wrong)}: not the same. Press Enter to see it again. ")
        raise NotConverged(
            "what was typed back differs from what was shown",
            where=self.where,
            remedy="write it down again, character by character",
        )


class _Terminal:
    """The terminal of this process, without echo."""

    def __init__(self, where: str, patience: float) -> None:
        self._where = where
        self._patience = patience
        self._descriptor = -1

    def __enter__(self) -> _Terminal:
        try:
            self._descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            self._before = termios.tcgetattr(self._descriptor)
        except (OSError, termios.error) as error:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            why = reason(error) if isinstance(error, OSError) else "it is none"
            raise Refused(
                f"there is no terminal to ask at ({why})",
                where=self._where,
                remedy="run this from a terminal, or use another holder",
            ) from None
        # Line by line the kernel would cut what is longer than 4095 bytes.
        quiet = [*self._before]
        quiet[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON)
        quiet[6] = [*quiet[6]]
        quiet[6][termios.VMIN], quiet[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._descriptor, termios.TCSAFLUSH, quiet)
        return self

    def __exit__(self, *_error: object) -> None:
        termios.tcsetattr(self._descriptor, termios.TCSAFLUSH, self._before)
        os.close(self._descriptor)

    def say(self, text: str) -> None:
        """Write to the terminal."""
        data = text.encode()
        while data:
            data = data[os.write(self._descriptor, data) :]

    def clear(self) -> None:
        """Clear the screen, and what could be scrolled back to."""
        self.say("\x1b[2J\x1b[3J\x1b[H")

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Use the terminal's other screen, which leaves nothing behind."""
        self.say("\x1b[?1049h")
        try:
            yield
        finally:
            self.clear()
            self.say("\x1b[?1049l")

    def ask(self, question: str) -> str:
        """What is typed up to Enter, without blanks around it."""
        self.say(question)
        ends = time.monotonic() + self._patience
        typed = bytearray()
        while True:
            left = ends - time.monotonic()
            if left <= 0 or not select.select([self._descriptor], [], [], left)[0]:
                raise Refused(
                    f"nobody answered within {self._patience:g} s",
                    where=self._where,
                    remedy="run it again with the holder present",
                )
            key = os.read(self._descriptor, 1)
            if key in {b"\r", b"\n"}:
                break
            if key in {b"", b"\x04"}:  # hung up, or Ctrl-D
                raise Refused("the terminal was closed", where=self._where)
            if key in {b"\x7f", b"\x08"}:
                del typed[-1:]
            elif key == b"\x15":  # Ctrl-U
                typed.clear()
            else:
                typed += key
        self.say("\n")
        try:
            return typed.decode().strip()
        except UnicodeDecodeError:
            raise BadInput(f"{self._where}: what was typed is no text") from None
