"""
The secrets of declared tokens in Vault: one document a role, written by check-and-set.

Consumers read `accessor` and `secret` on top; `pending` and `previous` are
there only while a rotation is under way.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import SecretStr

from blocks.errors import Invalid, NotConverged, Refused
from tasks.planning.tokens_seen import Slots
from tasks.vault_setup import read_secret

if TYPE_CHECKING:
    from blocks.http import Api
    from blocks.topology import Mesh


class Held(NamedTuple):
    """A token with its secret, which shows in no text."""

    accessor: str
    secret: SecretStr


class Document(NamedTuple):
    """What Vault holds of one role, and at which version."""

    slots: Slots[Held] = Slots()
    version: int = 0

    @property
    def accessors(self) -> Slots[str]:
        """The same without secrets."""
        s = self.slots
        return Slots(*(held and held.accessor for held in (s.current, s.pending, s.previous)))


def chosen() -> Held:
    """A new token's ids."""
    return Held(str(uuid.uuid4()), SecretStr(str(uuid.uuid4())))


def read(api: Api, mesh: Mesh, path: str) -> Document:
    """
    What Vault holds at a path; nothing, at version 0, if it was never written.

    Raises:
        Refused: what lies there is no token's document.
    """
    found, version = read_secret(api, mesh, path)
    if not found:
        return Document(version=version)
    parts = (found, found.get("pending"), found.get("previous"))
    return Document(Slots(*(_held(part, path) for part in parts)), version)


def write(api: Api, mesh: Mesh, path: str, before: Document, slots: Slots[Held]) -> Document:
    """
    Make a role's document hold these, if it is still as `before`.

    One call: check-and-set says that nobody wrote meanwhile, and the answer is the
    new version. It is read back before anything is taken away (`require_readable`).
    https://openbao.org/api-docs/secret/kv/kv-v2/#create-update-secret

    Raises:
        Invalid: somebody else wrote it meanwhile.
        NotConverged: Vault says of another version that it wrote it.
    """
    if slots == before.slots:
        return before
    value: dict[str, Any] = {"state": "live" if slots.current else "pending"}
    if slots.current:
        value |= _plain(slots.current)
    for name, held in (("pending", slots.pending), ("previous", slots.previous)):
        if held:
            value[name] = _plain(held)
    try:
        answer = api.post(
            f"/v1/{mesh.vault.kv_mount}/data/{path}",
            json={"data": value, "options": {"cas": before.version}},
        )
    except Invalid:
        if read_secret(api, mesh, path) != (value, before.version + 1):
            raise
        # It was written, and the answer lost.
    else:
        made = (answer.json(dict).get("data") or {}).get("version")
        if made != before.version + 1:
            raise NotConverged(f"{path} is at version {made} after a write", where="vault")
    return Document(slots, before.version + 1)


def require_readable(api: Api, mesh: Mesh, path: str, written: Document) -> None:
    """
    What consumers read there is what was written, secret by secret.

    Raises:
        NotConverged: it is not.
    """
    found = read(api, mesh, path)
    if found != written or found.slots.current is None:
        raise NotConverged(
            f"secret {path} reads back otherwise (version {found.version})",
            where="vault",
            remedy="did somebody write it meanwhile? run it again: it looks at what is there",
        )


def _plain(held: Held) -> dict[str, str]:
    return {"accessor": held.accessor, "secret": held.secret.get_secret_value()}


def _held(part: Any, path: str) -> Held | None:
    if part is None:
        return None
    if not isinstance(part, dict):
        raise _strange(path)
    accessor, secret = part.get("accessor"), part.get("secret")
    if not accessor and not secret:
        return None
    if not isinstance(accessor, str) or not isinstance(secret, str) or not accessor or not secret:
        raise _strange(path)
    return Held(accessor, SecretStr(secret))


def _strange(path: str) -> Refused:
    return Refused(
        f"{path} holds something else than a token's accessor and secret",
        where="vault",
        remedy="choose another path, or move away what lies there",
    )
