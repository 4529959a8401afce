"""
`mesh` with every call to a server written down, and things done at some of them.

    python -m tests.integration.watched FILE run cold-boot ...

FILE gets a line of JSON a call. `WATCH` holds a JSON list of
`{"after": "PUT /v1/sys/init", "nth": 1, "do": "shell command"}`; `after` runs
the command when the server has carried the call out, `before` when it has not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blocks import calls
from deployments import cli

VARIABLE = "WATCH"


class Watch:
    """Writes the calls down and does what is asked for."""

    def __init__(self, file: Path, asked: list[dict[str, Any]]) -> None:
        self._file, self._asked = file, asked
        self._lock = threading.Lock()

    def before(self, call: calls.Call) -> None:
        """Note the call."""
        with self._lock, self._file.open("a") as stream:
            stream.write(json.dumps(asdict(call)) + "\n")
        self._do("before", call)

    def after(self, call: calls.Call) -> None:
        """The server has carried it out."""
        self._do("after", call)

    def _do(self, when: str, call: calls.Call) -> None:
        with self._lock:
            for entry in self._asked:
                if when in entry and entry[when] in call.what:
                    entry["seen"] = entry.get("seen", 0) + 1
                    if entry["seen"] == entry.get("nth", 1):
                        subprocess.run(["/bin/sh", "-c", entry["do"]], check=True)


def read(file: Path) -> list[calls.Call]:
    """The calls that a watched run made."""
    return [calls.Call(**json.loads(line)) for line in file.read_text().splitlines()]


if __name__ == "__main__":
    calls.observe(Watch(Path(sys.argv[1]), json.loads(os.environ.get(VARIABLE) or "[]")))
    sys.exit(cli.main(sys.argv[2:]))
