"""
Where secrets are kept that must exist before Vault serves, such as its key shares.

All kinds of store do the same four things, so a runbook does not know whether
a share lies in a file, a cloud, a block or a person's safe.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field, HttpUrl

from blocks.engine import Block
from blocks.errors import BadInput, Invalid, NotConverged, Refused
from blocks.files import read_secret, write_secret

DOCUMENTATION = HttpUrl("https://developer.hashicorp.com/vault/docs/concepts/seal")


class SecretStore(Protocol):
    """One document of secrets in one place."""

    @property
    def where(self) -> str:
        """The place, as an operator would call it; no secret."""

    def probe(self, *, write: bool = False) -> None:
        """Return if it can be read now, and written if `write`; a `MeshError` says why not."""

    def read(self) -> dict[str, Any] | None:
        """The document, `None` if nothing is there yet."""

    def write(self, value: dict[str, Any]) -> None:
        """
        Make `value` the document, and read it back.

        Raises:
            NotConverged: what was read back differs.
        """


class FileStore(Block):
    """
    A file of mode 0400 on the machine that runs the runbook.

    Example:
        ```python
        from blocks import FileStore

        store = FileStore.load("BLOCK_NAME")
        store.probe(write=True)
        ```
    """

    _block_type_name = "Mesh File Store"
    _block_type_slug = "mesh-file-store"
    _documentation_url = DOCUMENTATION

    path: str = Field(
        default="", description="The file; modes other than 0400 and 0600 are refused."
    )

    @property
    def where(self) -> str:
        """The place."""
        return f"file {self.path}"

    def probe(self, *, write: bool = False) -> None:
        """Read it; with `write`, also create, read and remove a file beside it."""
        self.read()
        if not write:
            return
        file = self._file()
        probe = file.with_name(f".{file.name}.probe")
        self._folder()
        try:
            write_secret(probe, b"{}")
            if self._bytes(probe) != b"{}":
                raise NotConverged("a file written beside it is not read back", where=self.where)
        finally:
            with suppress(OSError):
                probe.unlink()

    def read(self) -> dict[str, Any] | None:
        """The document."""
        data = self._bytes(self._file())
        return None if data is None else parsed(data, self.where)

    def write(self, value: dict[str, Any]) -> None:
        """Replace the file at once and read it back."""
        self._folder()
        write_secret(self._file(), json.dumps(value).encode())
        same(self.read(), value, self.where)

    def _file(self) -> Path:
        if not self.path:
            raise BadInput("file store: it names no path")
        return Path(self.path).expanduser()

    def _folder(self) -> None:
        try:
            self._file().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Invalid(
                f"its folder cannot be made: {(error.strerror or '').lower()}", where=self.where
            ) from None

    def _bytes(self, file: Path) -> bytes | None:
        try:
            return read_secret(file)
        except BadInput as error:
            raise Refused(
                error.message.removeprefix(f"{file}: "),
                where=self.where,
                remedy=f"chmod 0400 {file}, if nobody else could have read it",
            ) from None


def parsed(data: bytes, where: str) -> dict[str, Any]:
    """A store's document; `Invalid` if it is something else than a JSON object."""
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise Invalid(
            "it holds something else than a JSON object",
            where=where,
            remedy="restore it, or move it away if it is none of this mesh's",
        )
    return value


def same(found: dict[str, Any] | None, value: dict[str, Any], where: str) -> None:
    """Return if what was read back is what was written; `NotConverged` if not."""
    if found != value:
        raise NotConverged("what was written is not read back", where=where)
