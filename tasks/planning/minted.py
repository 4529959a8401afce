"""
Tokens that Vault's Consul secrets engine made: known by their description, and by their leases.

Vault tells no one which Consul token a lease is of. But the engine writes role,
display name and the time in nanoseconds into the description (`Vault ROLE NAME
NANOSECONDS`), and a lease is registered right after its token was made, by the
same clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from blocks.dynamic_tokens import engine_roles
from blocks.topology import Mesh

_MINTED = re.compile(r"^Vault (\S+) (?:.* )?(\d{16,19})$", re.DOTALL)
# A request to Vault ends after 90 s, so no lease is registered later than that.
REGISTERED = timedelta(seconds=120)
YOUNG = timedelta(minutes=10)  # its lease may be about to be registered


@dataclass(frozen=True)
class Lease:
    """A lease of the engine, as Vault shows it."""

    id: str
    issued: datetime


def minted_for(mesh: Mesh, description: str) -> str:
    """The declared role that the engine made a token for; empty if it made it for none of them."""
    if (match := _MINTED.match(description)) is None:
        return ""
    return match[1] if any(token.role == match[1] for token in engine_roles(mesh)) else ""


def minted_at(description: str) -> datetime | None:
    """When the engine made a token, by Vault's clock; None if it did not make it."""
    match = _MINTED.match(description)
    if match is None:
        return None
    return datetime.fromtimestamp(int(match[2]) / 1e9, UTC)


def without_lease(description: str, leases: Iterable[Lease], now: datetime) -> bool:
    """
    Whether no lease can be that of a token, so that nothing will ever end it.

    With a lease issued just after it the token is taken for that lease's: rather
    one too many is left than one revoked that is in use.
    """
    made = minted_at(description)
    if made is None or now - made < YOUNG:
        return False
    return not any(made - timedelta(seconds=1) <= x.issued <= made + REGISTERED for x in leases)
