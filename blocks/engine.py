"""
Whether Prefect is the engine of this process, said once, before it is imported.

Importing Prefect costs well over a second and 60 MB. A runbook that runs in
its own process with no server needs none of it, so `mesh run` says so here
first; everybody else (a worker, a test, a shell) gets Prefect as usual.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

__all__ = ["Block", "PlainBlock", "do_without_prefect", "has_prefect"]

_wanted = True

if TYPE_CHECKING:
    from prefect.blocks.core import Block


def do_without_prefect() -> None:
    """From now on blocks are plain models and runbooks plain callables, for the process's life."""
    global _wanted  # noqa: PLW0603 - a process has one engine
    _wanted = False


def has_prefect() -> bool:
    """Whether Prefect is to be imported; true as well where somebody did already."""
    return _wanted or "prefect" in sys.modules


class PlainBlock(BaseModel):
    """What is left of a Prefect block without Prefect: its fields, and nothing to load it from."""

    model_config = ConfigDict(extra="allow")

    def model_post_init(self, _context: Any) -> None:
        """Give the block its own chance to set itself up, as Prefect does."""
        self.block_initialization()

    def block_initialization(self) -> None:
        """Run after the fields are set; for a block to override."""


def __getattr__(name: str) -> Any:
    if name != "Block":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if has_prefect():
        from prefect.blocks.core import Block

        return Block
    return PlainBlock
