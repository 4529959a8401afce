"""
A lab's directory: whose it is, what is in it, and what goes when it is wiped.

The directory is `$MESH_LAB_DIR`, else `.lab` where the command runs; the lab's
network is `$MESH_LAB_NETWORK`, else that of the lab which is there already.
Whoever holds the lock on `lab.lock` runs the lab; the kernel lets go of it
however its holder ends.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml

from blocks.errors import BadInput
from deployments.lab.layout import Layout, Size

DIRECTORY_VARIABLE, NETWORK_VARIABLE = "MESH_LAB_DIR", "MESH_LAB_NETWORK"
DEFAULT_DIRECTORY, DEFAULT_NETWORK = ".lab", "127.77"

_DESCRIPTION, _LOCK = "lab.json", "lab.lock"
# What a lab keeps in its directory; programs fetched by `make setup` lie there too.
_OURS = (
    "aws",
    "control.sock",
    "credentials.yaml",
    "holders",
    "hosts",
    "journal.jsonl",
    _DESCRIPTION,
    "mesh.yaml",
    "pki",
    "snapshots",
    "supervisor.log",
)
# A unit file takes these for something else.
_PLAIN = re.compile(r"[^\s\"'\\$%`;&|<>()*?#]+")
_NETWORK = re.compile(r"127\.(\d{1,3})")


def directory(environ: Mapping[str, str] = os.environ) -> Path:
    """
    The lab's directory, absolute.

    Raises:
        BadInput: its path has white space or signs that unit files do not take.
    """
    path = Path(environ.get(DIRECTORY_VARIABLE) or DEFAULT_DIRECTORY).absolute()
    if not _PLAIN.fullmatch(str(path)):
        raise BadInput(
            f"{DIRECTORY_VARIABLE}: {path} has spaces or signs that unit files do not take; "
            f"set {DIRECTORY_VARIABLE} to a plain path"
        )
    return path


def network(environ: Mapping[str, str] = os.environ) -> str | None:
    """
    The /16 that the environment asks for, such as `127.77`; None if it asks for none.

    Raises:
        BadInput: it is none of 127.1 to 127.255.
    """
    asked = environ.get(NETWORK_VARIABLE) or None
    if asked is not None:
        match = _NETWORK.fullmatch(asked)
        if not match or not 1 <= int(match[1]) <= 255:
            raise BadInput(f"{NETWORK_VARIABLE}: {asked} is none of 127.1, 127.2 ... 127.255")
    return asked


def read(path: Path) -> Layout | None:
    """The lab whose disks are in a directory; None if there is none."""
    try:
        kept = json.loads((path / _DESCRIPTION).read_text())
        return Layout(cast(Size, kept["size"]), kept["network"], path, kept["id"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        raise BadInput(
            f"{path / _DESCRIPTION} is damaged: `mesh lab down --wipe` removes that lab"
        ) from None


def write(layout: Layout) -> None:
    """Make `layout` the lab of its directory: its disks are complete."""
    kept = {"size": layout.size, "network": layout.network, "id": layout.id}
    replace(layout.directory / _DESCRIPTION, json.dumps(kept) + "\n", 0o644)


def new_id() -> str:
    """An id that no other lab has."""
    return secrets.token_hex(8)


def lock(path: Path, *, patience: float = 0.0) -> int:
    """
    Take the right to run the lab of a directory: a file descriptor that holds it.

    Raises:
        BlockingIOError: somebody else has it, for longer than `patience` seconds.
    """
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < end:
                time.sleep(0.05)
                continue
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)  # who held it before has ended
        return descriptor


def note_holder(descriptor: int, pid: int) -> None:
    """Write into the lock's file who holds it, for people and messages."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{pid}\n".encode(), 0)


def holder(path: Path) -> int | None:
    """
    The pid of the supervisor that runs the lab of a directory; None if none does.

    0 if one is only just starting.
    """
    if not path.is_dir():
        return None
    try:
        descriptor = lock(path)
    except BlockingIOError:
        noted = (path / _LOCK).read_text().strip()
        return int(noted) if noted.isdigit() else 0
    os.close(descriptor)
    return None


def wipe(path: Path) -> None:
    """Remove what a lab has in its directory, and leave what else is there."""
    for name in _OURS:
        target = path / name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)


def write_documents(
    layout: Layout, mesh: Mapping[str, Any], credentials: Mapping[str, Any]
) -> None:
    """Write `mesh.yaml` and `credentials.yaml` (0400) for the runbooks."""
    header = "# Written by `mesh lab up`.\n"
    for name, content, mode in (
        ("mesh.yaml", mesh, 0o644),
        ("credentials.yaml", credentials, 0o400),
    ):
        text = header + yaml.safe_dump(dict(content), sort_keys=False)
        replace(layout.directory / name, text, mode)


def read_credentials(path: Path) -> dict[str, Any]:
    """The credentials that the clouds of a lab accept; empty if there are none yet."""
    try:
        return dict(yaml.safe_load((path / "credentials.yaml").read_text()))
    except FileNotFoundError:
        return {}


def replace(path: Path, text: str, mode: int) -> None:
    """Write a file so that it is there whole or not at all, and never readable to more."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(text)
    new.chmod(mode)
    new.replace(path)
