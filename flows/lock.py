"""
One runbook at a time on a mesh.

On one machine the lock is the kernel's: it falls with its holder, however the
holder dies. The file's content only says who holds it and since when, and
after a kill which run ended without a report.
"""

from __future__ import annotations

import fcntl
import getpass
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from blocks.errors import BadInput, Unsafe


class Holder(BaseModel):
    """Who holds a mesh, and since when."""

    model_config = ConfigDict(extra="ignore")

    runbook: str
    run_id: str
    user: str
    host: str
    pid: int
    since: datetime

    def __str__(self) -> str:
        since = self.since.astimezone()
        return (
            f"{self.runbook} {self.run_id[:8]}, started by {self.user} on {self.host} "
            f"(pid {self.pid}), since {since:%Y-%m-%d %H:%M:%S}"
        )


def file_of(state_dir: Path, mesh: str) -> Path:
    """The lock file of a mesh, not to be taken for any lock of what it is made of."""
    return state_dir / f"{mesh}.run.lock"


def me(runbook: str, run_id: str) -> Holder:
    """This process, as a holder."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"uid {os.getuid()}"
    return Holder(
        runbook=runbook,
        run_id=run_id,
        user=user,
        host=socket.gethostname(),
        pid=os.getpid(),
        since=datetime.now(UTC),
    )


@contextmanager
def holding(file: Path, holder: Holder) -> Iterator[Holder | None]:
    """
    Hold the lock of one mesh; gives the holder before, if it died without letting go.

    Raises:
        Unsafe: somebody else holds it, named with since when.
        BadInput: the file cannot be opened.
    """
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise BadInput(f"lock {file}: {error.strerror}") from None
    try:
        if not _taken(descriptor):
            raise held_by(_settled(descriptor))
        before = _read(descriptor)
        _write(descriptor, holder.model_dump_json())
        try:
            yield before
        finally:
            _write(descriptor, "")
    finally:
        os.close(descriptor)


def held_by(holder: object) -> Unsafe:
    """The refusal that names who holds the mesh."""
    return Unsafe(
        f"another runbook holds the mesh: {holder or 'its name is not known yet'}",
        remedy="wait until it has ended, or stop it (Ctrl-C or SIGTERM) and look at its report",
    )


def holder_of(file: Path) -> Holder | None:
    """Who holds the lock at this moment; nobody if the file is free or absent."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _settled(descriptor)
    finally:
        os.close(descriptor)
    return None


def _taken(descriptor: int) -> bool:
    # Somebody who asks `holder_of` shares a free lock for an instant.
    for _ in range(3):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
        else:
            return True
    return False


def _settled(descriptor: int) -> Holder | None:
    # The winner writes its name just after it has won.
    for _ in range(20):
        if (holder := _read(descriptor)) is not None:
            return holder
        time.sleep(0.01)
    return None


def _read(descriptor: int) -> Holder | None:
    try:
        return Holder.model_validate_json(os.pread(descriptor, 65536, 0))
    except ValidationError:
        return None


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
