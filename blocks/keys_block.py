"""A secret document kept as a Prefect block."""

from __future__ import annotations

import json
import uuid
from typing import Any

from pydantic import Field, SecretStr

from blocks import documents
from blocks.engine import Block
from blocks.errors import BadInput, NotConverged
from blocks.keys import DOCUMENTATION, parsed, same


class ShareHolder(Block):
    """
    A secret document kept as a Prefect block.

    It is encrypted in Prefect's database with a key that lies in the same
    database, unless `PREFECT_SERVER_ENCRYPTION_KEY` is set on the server.

    Example:
        ```python
        from blocks import ShareHolder

        holder = ShareHolder.load("BLOCK_NAME")
        ```
    """

    _block_type_name = "Mesh Share Holder"
    _block_type_slug = "mesh-share-holder"
    _documentation_url = DOCUMENTATION

    payload: SecretStr | None = Field(default=None, description="The document, as JSON.")


class BlockStore(Block):
    """
    A `ShareHolder` block of the Prefect API.

    Example:
        ```python
        from blocks import BlockStore

        store = BlockStore.load("BLOCK_NAME")
        store.probe(write=True)
        ```
    """

    _block_type_name = "Mesh Block Store"
    _block_type_slug = "mesh-block-store"
    _documentation_url = DOCUMENTATION

    document: str = Field(default="", description="Name of the ShareHolder document.")

    @property
    def where(self) -> str:
        """The place."""
        return f"Prefect block {self.document}"

    def probe(self, *, write: bool = False) -> None:
        """Read it; with `write`, also store, read and delete a document beside it."""
        self.read()
        if not write:
            return
        name = f"{self.document}-probe"
        probe = f'{{"probe": "{uuid.uuid4()}"}}'
        documents.save(ShareHolder(payload=SecretStr(probe)), name)
        try:
            found = documents.load(ShareHolder, name)
            if not found or not found.payload or found.payload.get_secret_value() != probe:
                raise NotConverged("a probe document is not read back", where=self.where)
        finally:
            documents.delete(ShareHolder, name)

    def read(self) -> dict[str, Any] | None:
        """The document."""
        if not self.document:
            raise BadInput("block store: it names no document")
        found = documents.load(ShareHolder, self.document)
        if found is None or found.payload is None:
            return None
        return parsed(found.payload.get_secret_value().encode(), self.where)

    def write(self, value: dict[str, Any]) -> None:
        """Replace the document and read it back."""
        if self.read() == value:
            return
        documents.save(ShareHolder(payload=SecretStr(json.dumps(value))), self.document)
        same(self.read(), value, self.where)
