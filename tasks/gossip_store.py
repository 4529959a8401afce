"""
The gossip key in Vault: one document, written by check-and-set.

`key` on top is the one that all agents encrypt with: a host that is to join
needs it. `pending` and `previous` are there only while a rotation is under way.
"""

from __future__ import annotations

import base64
import secrets
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import SecretStr

from blocks.errors import Refused
from tasks.planning.gossip_seen import fingerprint
from tasks.planning.tokens_seen import Slots
from tasks.vault_setup import read_secret, write_secret

if TYPE_CHECKING:
    from blocks.http import Api
    from blocks.topology import Mesh

KEY_BYTES = 32  # AES-256; Consul takes 16 and 24 too


class Key(NamedTuple):
    """A gossip key, which shows in no text, and since when it is one."""

    secret: SecretStr
    since: datetime

    @property
    def fingerprint(self) -> str:
        """By which it is told from others."""
        return fingerprint(self.secret.get_secret_value())


class Document(NamedTuple):
    """What Vault holds, and at which version."""

    slots: Slots[Key] = Slots()
    version: int = 0

    @property
    def fingerprints(self) -> Slots[str]:
        """The same without secrets."""
        s = self.slots
        return Slots(*(key and key.fingerprint for key in (s.current, s.pending, s.previous)))


def chosen() -> Key:
    """A new key."""
    secret = base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()
    return Key(SecretStr(secret), datetime.now(UTC))


def read(api: Api, mesh: Mesh, path: str) -> Document:
    """
    What Vault holds at a path; nothing, at version 0, if it was never written.

    Raises:
        Refused: what lies there is no gossip key's document.
    """
    found, version = read_secret(api, mesh, path)
    if not found:
        return Document(version=version)
    current, pending, previous = (
        _key(part, path) for part in (found, found.get("pending"), found.get("previous"))
    )
    if current is None or (pending and previous):
        raise _strange(path)
    return Document(Slots(current, pending, previous), version)


def write(api: Api, mesh: Mesh, path: str, before: Document, slots: Slots[Key]) -> Document:
    """
    Make the document hold these, if it is still as `before`.

    Raises:
        Invalid: somebody else wrote it meanwhile.
    """
    if slots == before.slots:
        return before
    assert slots.current
    value: dict[str, Any] = {"state": "live", **_plain(slots.current)}
    for name, key in (("pending", slots.pending), ("previous", slots.previous)):
        if key:
            value[name] = _plain(key)
    write_secret(api, mesh, path, value, before.version)
    return Document(slots, before.version + 1)


def _plain(key: Key) -> dict[str, str]:
    return {
        "key": key.secret.get_secret_value(),
        "fingerprint": key.fingerprint,
        "since": key.since.isoformat(),
    }


def _key(part: Any, path: str) -> Key | None:
    if part is None:
        return None
    try:
        secret = part["key"]
        base64.b64decode(secret, validate=True)
        return Key(SecretStr(secret), datetime.fromisoformat(part["since"]).astimezone(UTC))
    except (KeyError, TypeError, ValueError):
        raise _strange(path) from None


def _strange(path: str) -> Refused:
    return Refused(
        f"{path} holds something else than a gossip key",
        where="vault",
        remedy="choose another path, or move away what lies there",
    )
