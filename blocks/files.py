"""Files on this machine that hold secrets: readable by their owner alone, or refused."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

from blocks.errors import BadInput, Invalid
from blocks.wire import reason


def read_secret(path: Path) -> bytes | None:
    """
    What a secret file holds, `None` if there is none.

    Raises:
        BadInput: its mode is none of 0400 and 0600, or it belongs to another user.
    """
    try:
        # Opened first and looked at then, so that what is checked is what is read.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"{path}: {reason(error)}") from None
    try:
        state = os.fstat(descriptor)
        mode = stat.S_IMODE(state.st_mode)
        if not stat.S_ISREG(state.st_mode):
            raise BadInput(f"{path}: not a regular file")
        if mode not in {0o400, 0o600}:
            raise BadInput(f"{path}: mode {mode:04o}, must be 0400 or 0600")
        if state.st_uid != os.geteuid():
            raise BadInput(f"{path}: belongs to uid {state.st_uid}, must be {os.geteuid()}")
        # Not before: a folder can be opened, but not as a file.
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    except OSError as error:
        raise BadInput(f"{path}: {reason(error)}") from None
    finally:
        os.close(descriptor)


def write_secret(path: Path, data: bytes) -> None:
    """
    Write a secret file: after a crash or power cut it is whole, or as it was before.

    Its mode is 0400. Raises `Invalid` if the folder does not take it.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise Invalid(f"{path}: {reason(error)}", remedy="check the folder and the disk") from None
