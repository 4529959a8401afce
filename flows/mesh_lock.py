"""One rotation at a time on a mesh, from whichever machine: the lock in the mesh's own Consul."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from blocks.errors import Unsafe
from flows import lock
from flows.run import Run
from tasks import mesh_lock

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class MeshLock:
    """
    The lock as one run sees it.

    This machine's own lock (`flows.lock`) is held already, so whoever took
    Consul's under that same file lives no more, however he died.
    """

    def __init__(self, run: Run, management: SecretStr) -> None:
        self._run, self._management = run, management
        self._place = _place(lock.file_of(run.state_dir, run.mesh.name))
        self._seen = mesh_lock.Standing()

    def look(self) -> None:
        """
        See who holds it, before anything is surveyed.

        Raises:
            Unsafe: somebody who may live does; a mere plan only says so.
        """
        self._seen = mesh_lock.look(self._run.connections, self._management)
        if not self._seen.session or self._dead():
            return
        if self._run.mode != "plan":
            raise _held_by(self._seen.holder)
        self._run.notices.append(
            f"the mesh is held at this moment by {_name(self._seen.holder) or 'somebody'}"
        )

    @contextmanager
    def held(self) -> Iterator[None]:
        """
        Hold it, if nobody has since it was looked at.

        Raises:
            Unsafe: somebody has, or does.
        """
        me = lock.me(self._run.runbook, self._run.run_id).model_dump(mode="json")
        try:
            with mesh_lock.holding(
                self._run.connections,
                self._management,
                me | {"place": self._place},
                self._seen,
                dead=self._dead(),
            ):
                yield
        except mesh_lock.Taken as error:
            raise _held_by(error.holder) from None

    def _dead(self) -> bool:
        return bool(self._place) and self._seen.holder.get("place") == self._place


def _held_by(holder: Mapping[str, Any]) -> Unsafe:
    error = lock.held_by(_name(holder))
    error.remedy += f"; one that was killed holds it for {mesh_lock.FREE_SECONDS} s at most"
    return error


def _name(holder: Mapping[str, Any]) -> lock.Holder | None:
    try:
        return lock.Holder.model_validate(holder)
    except ValidationError:
        return None


def _place(file: Path) -> str:
    """Where this lock file is: on which running machine, and which file; empty if that is unknown."""
    try:
        found = file.stat()
        return f"{BOOT_ID.read_text().strip()}/{os.major(found.st_dev)}.{os.minor(found.st_dev)}/{found.st_ino}"
    except OSError:
        return ""
