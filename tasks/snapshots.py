"""
Raft snapshots of Vault and Consul: saved, checked and found again.

A snapshot is a gzipped tar with its own SHA256SUMS, for both servers; one
that is complete and whose sums are right can be restored. Certificates are
not inside either.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import SecretStr

from blocks.errors import Absent, BadAnswer, Invalid
from blocks.topology import Datacenter, Mesh
from tasks import consul, record, vault
from tasks.step import step

if TYPE_CHECKING:
    from blocks.mesh import Connections

Kind = Literal["vault", "consul"]
LARGEST = 4 * 2**30
SAVE_DEADLINE = 600.0
_NAME = re.compile(r"^(?P<what>[a-z0-9-]+)-(?P<at>\d{8}T\d{6}Z)\.snap$")


class Snapshot(NamedTuple):
    """One snapshot on disk."""

    path: Path
    taken: datetime
    error: str = ""

    @property
    def restorable(self) -> bool:
        """Whether it is complete and its checksums are right."""
        return not self.error


def directory(mesh: Mesh) -> Path:
    """
    Where this mesh's snapshots are kept.

    Raises:
        Absent: the topology names no directory.
    """
    if not mesh.vault.snapshots.directory:
        raise Absent(
            "no place for snapshots", where=mesh.name, remedy="declare vault.snapshots.directory"
        )
    return Path(mesh.vault.snapshots.directory)


def newest(mesh: Mesh, what: str) -> Snapshot | None:
    """The newest snapshot of `vault` or `consul-DATACENTER`, checked; None if there is none."""
    if not mesh.vault.snapshots.directory:
        return None
    found: list[tuple[str, Path]] = []
    folder = directory(mesh)
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.match(path.name)
        if match and match["what"] == f"{mesh.name}-{what}":
            found.append((match["at"], path))
    if not found:
        return None
    at, path = max(found)
    taken = datetime.strptime(at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return Snapshot(path, taken, problem(path))


def problem(path: Path) -> str:
    """What is wrong with a snapshot file, empty if nothing is."""
    try:
        with gzip.open(path) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
            sums: dict[str, str] = {}
            declared = ""
            for member in archive:
                content = archive.extractfile(member)
                if content is None:
                    continue
                if member.name.startswith("SHA256SUMS"):
                    text = content.read()
                    declared = text.decode() if member.name == "SHA256SUMS" else declared
                    continue
                digest = hashlib.sha256()
                while chunk := content.read(2**20):
                    digest.update(chunk)
                sums[member.name] = digest.hexdigest()
    except (OSError, tarfile.TarError, EOFError, zlib.error, UnicodeDecodeError) as error:
        return f"cannot be read: {type(error).__name__}"
    lines = [line.split() for line in declared.splitlines() if line.strip()]
    if not lines:
        return "holds no checksums"
    for digest_text, name in lines:
        if sums.get(name) != digest_text:
            return f"{name} is cut or altered"
    return ""


def _keep(mesh: Mesh, what: str, data: bytes) -> Path:
    folder = directory(mesh)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    path = folder / f"{mesh.name}-{what}-{stamp}.snap"
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o400)
    with io.FileIO(descriptor, "w") as file:
        file.write(data)
        os.fsync(file.fileno())
    if error := problem(temporary):
        temporary.unlink()
        raise BadAnswer(f"the snapshot of {what} {error}", where=mesh.name)
    temporary.replace(path)
    return path


@step("snapshot of vault")
def save_vault(connections: Connections, token: SecretStr) -> Path:
    """
    Save a raft snapshot of Vault; its file, complete and with right checksums.

    It is encrypted by Vault's own keys: restoring it needs the unseal shares of now.
    """
    host = vault.await_active(connections)
    with connections.vault().node(host, token=token, deadline=SAVE_DEADLINE) as api:
        answer = api.get("/v1/sys/storage/raft/snapshot", absent_ok=False, largest=LARGEST)
    path = _keep(connections.topology, "vault", answer.body)
    record.current().change(
        "snapshots", f"vault saved as {path.name}", after=f"{len(answer.body)} bytes"
    )
    return path


@step("snapshot of consul {datacenter.name}")
def save_consul(connections: Connections, datacenter: Datacenter, token: SecretStr) -> Path:
    """
    Save a snapshot of a datacenter's Consul; its file, complete and with right checksums.

    It holds ACL secrets in clear: the file is for its owner only, and belongs
    on encrypted storage.
    """
    leader = consul.await_quorum(connections, datacenter)
    block = connections.consul(datacenter.name)
    with block.client(
        consul.url(connections, leader), token=token, dc="", deadline=SAVE_DEADLINE
    ) as api:
        answer = api.get("/v1/snapshot", absent_ok=False, largest=LARGEST)
    path = _keep(connections.topology, f"consul-{datacenter.name}", answer.body)
    record.current().change(
        "snapshots", f"consul saved as {path.name}", after=f"{len(answer.body)} bytes"
    )
    return path


def load(snapshot: Snapshot) -> bytes:
    """
    A snapshot's content.

    Raises:
        Invalid: it is not restorable.
    """
    if snapshot.error:
        raise Invalid(f"{snapshot.path.name}: {snapshot.error}", where="snapshots")
    return snapshot.path.read_bytes()
