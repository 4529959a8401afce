"""
What the facade of the Consul secrets engine keeps: one file, replaced as a whole.

It lies with the data of Vault's first node (0600), and goes when that goes.
Nothing is kept in memory, so a facade that was killed lost nothing.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Store:
    """The file of one facade."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()

    def read(self) -> dict[str, Any]:
        """What is kept: `config`, `roles` and `leases`."""
        try:
            found: dict[str, Any] = json.loads(self._file.read_text())
        except FileNotFoundError:
            found = {}
        return {"config": {}, "roles": {}, "leases": {}} | found

    @contextmanager
    def change(self) -> Iterator[dict[str, Any]]:
        """What is kept, to be changed in the `with`; on the disk before it ends."""
        with self._lock:
            kept = self.read()
            yield kept
            self._file.parent.mkdir(parents=True, exist_ok=True)
            new = self._file.with_suffix(".new")
            new.unlink(missing_ok=True)
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT, 0o600), "w") as out:
                json.dump(kept, out)
                out.flush()
                os.fsync(out.fileno())
            new.replace(self._file)
