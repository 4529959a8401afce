"""
What is known of the gossip key: in Vault, in every agent's keyring, on every disk.

Plain data and no secret: a key is its fingerprint here.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from tasks.planning.tokens_seen import Slots


def fingerprint(key: str) -> str:
    """By which a key may be told from others in a plan or a log; it gives nothing of it away."""
    try:
        raw = base64.b64decode(key, validate=True)
    except (ValueError, binascii.Error):
        raw = key.encode()
    return hashlib.sha256(raw).hexdigest()[:12]


@dataclass(frozen=True)
class Pool:
    """
    One pool of gossip, LAN of a datacenter or the WAN, as its agents answered.

    `nodes` are those that live only: on Consul 1.8.7 a failed one is simply
    not counted, and every call says 200 without it.
    """

    name: str
    nodes: int
    keys: Mapping[str, int]  # how many have it
    primary: Mapping[str, int]  # how many encrypt with it

    def all_have(self, key: str | None) -> bool:
        """Whether every agent can read what is encrypted with a key."""
        return self.keys.get(key or "", 0) == self.nodes

    def all_use(self, key: str | None) -> bool:
        """Whether every agent encrypts with a key."""
        return self.primary.get(key or "", 0) == self.nodes


@dataclass(frozen=True)
class DiskSeen:
    """What a host would start with: its keyrings, first key in use, else its configuration."""

    keyrings: tuple[tuple[str, ...], ...] = ()
    file: str = ""
    error: str = ""

    def starts_with(self, key: str | None) -> bool:
        """Whether it does with this key, however it starts."""
        rings = all(ring[:1] == (key,) for ring in self.keyrings)
        return bool(self.keyrings) and rings and self.file == key


@dataclass(frozen=True)
class Roll:
    """Who is there: every declared agent, and others that the topology does not know."""

    absent: Mapping[str, str] = field(default_factory=dict)  # declared ones, and what they are
    lost: Mapping[str, str] = field(default_factory=dict)  # others that are not alive
    strangers: tuple[str, ...] = ()  # others that are
    alive: Mapping[str, int] = field(default_factory=dict)  # by pool

    def __str__(self) -> str:
        return ", ".join(f"{name} ({what})" for name, what in {**self.absent, **self.lost}.items())

    @property
    def whole(self) -> bool:
        """Whether nobody is missing who could come back without a new key."""
        return not self.absent and not self.lost


@dataclass(frozen=True)
class GossipSeen:
    """Everything that a plan is made from."""

    at: datetime
    slots: Slots[str] = field(default_factory=Slots)
    since: datetime | None = None  # of the current key
    unreadable: str = ""  # why what Vault keeps is
    roll: Roll = field(default_factory=Roll)
    pools: tuple[Pool, ...] = ()
    disks: Mapping[str, DiskSeen] = field(default_factory=dict)  # by host
    frozen: bool = False  # the mark against joins stands

    @property
    def keys(self) -> frozenset[str]:
        """Every key that any agent has."""
        return frozenset(key for pool in self.pools for key in pool.keys)

    @property
    def only(self) -> str | None:
        """The one key of the mesh, if all have it, all use it, and nobody has another."""
        keys = self.keys
        if len(keys) != 1:
            return None
        (key,) = keys
        return key if all(pool.all_use(key) for pool in self.pools) else None

    def all_have(self, key: str | None) -> bool:
        """Whether every agent of every pool has it."""
        return all(pool.all_have(key) for pool in self.pools)

    def all_use(self, key: str | None) -> bool:
        """Whether every agent of every pool encrypts with it."""
        return all(pool.all_use(key) for pool in self.pools)
