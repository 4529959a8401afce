"""What the operator allows a cold boot to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fallback = Literal["wait", "break-glass", "restore-vault"]


@dataclass(frozen=True)
class Options:
    """Approvals, the policy against the boot lock, and how long to wait (seconds)."""

    initialise: bool = False  # a cluster that never ran may be initialised
    fallback: Fallback = "wait"
    allow_reset_unseal_progress: bool = False
    unseal_incident: bool = False  # a seal marked as an incident may be undone
    discard_lost_init: bool = False  # data under keys that nobody has may be set aside
    break_glass_hours: float = 8.0  # after this a fallback counts as forgotten
    host_deadline: float = 300.0  # from power on to SSH
    vault_deadline: float = 900.0  # how long Consul's start is held for Vault
    consul_deadline: float = 120.0
    service_deadline: float = 60.0
