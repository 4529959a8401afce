"""
Where runs leave their traces: the journal, the reports, the lock.

The journal is append-only JSON lines, one line a run. A line is written with
one call and synced, so a crash can cut off at most the last one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocks.errors import BadInput
from blocks.topology import Mesh
from flows.report import Report


def home(environ: Mapping[str, str] = os.environ) -> Path:
    """
    The state directory of meshes that name no journal of their own.

    Not the working directory: a Prefect worker gives each run a fresh one.
    """
    return Path(environ.get("MESH_STATE_DIR") or "~/.mesh").expanduser()


def journal_of(mesh: Mesh) -> Path:
    """
    The journal of a mesh: its own, or the one in the state directory.

    A relative path starts where the topology lies, as all its paths do.
    """
    if not mesh.journal:
        return home() / "journal.jsonl"
    file = Path(mesh.journal).expanduser()
    return mesh.origin.parent / file if mesh.origin else file


def state_dir(mesh: Mesh) -> Path:
    """The directory of a mesh's lock and reports, where its journal is; made with mode 0700."""
    directory = journal_of(mesh).resolve().parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"journal: {directory}: {error.strerror}") from None
    return directory


def require_writable(file: Path) -> None:
    """
    Prove that a run can be recorded before it changes anything.

    Raises:
        BadInput: the journal cannot be appended to.
    """
    try:
        os.close(_open(file))
    except OSError as error:
        raise BadInput(f"journal {file}: {error.strerror}") from None


def append(file: Path, report: Report) -> None:
    """
    Add one run to the journal; on disk when this returns.

    Raises:
        OSError: it is not; the journal holds what it held before.
    """
    descriptor = _open(file)
    try:
        # A run that was killed while it wrote may have left half a line.
        torn = not _ends_a_line(descriptor)
        line = ("\n" if torn else "") + report.model_dump_json() + "\n"
        os.write(descriptor, line.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(file: Path) -> list[dict[str, Any]]:
    """All runs of a journal, oldest first; a torn line is left out."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    runs = []
    for line in text.splitlines():
        try:
            runs.append(json.loads(line))
        except ValueError:
            continue
    return [run for run in runs if isinstance(run, dict)]


def _open(file: Path) -> int:
    return os.open(file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)


def _ends_a_line(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
