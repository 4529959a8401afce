"""All runbooks by name; a module is imported when its runbook is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from blocks.errors import BadInput
from blocks.nearest import unknown

if TYPE_CHECKING:
    from flows.runbook import Runbook

RUNBOOKS: dict[str, str] = {
    "cold-boot": "flows.cold_boot:cold_boot",
    "boot-readiness": "flows.boot_readiness:boot_readiness",
    "vault-maintenance": "flows.vault_maintenance:vault_maintenance",
    "snapshot": "flows.snapshot:snapshot",
    "token-rotation": "flows.token_rotation:token_rotation",
    "token-audit": "flows.token_audit:token_audit",
}


def load(name: str) -> Runbook:
    """
    One runbook by its name.

    Raises:
        BadInput: there is none such.
    """
    if name not in RUNBOOKS:
        raise BadInput(unknown("runbook", name, RUNBOOKS))
    from flows.runbook import as_runbook

    module, _, attribute = RUNBOOKS[name].partition(":")
    return as_runbook(getattr(importlib.import_module(module), attribute))
