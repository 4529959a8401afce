"""
Consul's CA token in Vault: one document, written by check-and-set.

`token` and `accessor` on top are what boot and maintenance read, with the state
of the day-0 set-up. `pending` and `previous` are there only while a rotation is
under way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import SecretStr

from blocks.errors import Refused
from tasks.planning.tokens_seen import Slots
from tasks.vault_setup import CA_TOKEN_PATH, read_secret, write_secret

if TYPE_CHECKING:
    from blocks.http import Api
    from blocks.topology import Mesh


class CaHeld(NamedTuple):
    """
    One token, its secret in no text; a pending one is a nonce alone until it is created.

    Vault lets nobody but root choose a token's ids, so what is stored before the
    creation is a nonce that the token then carries in its meta.
    """

    accessor: str = ""
    secret: SecretStr | None = None
    nonce: str = ""

    @property
    def token(self) -> SecretStr:
        """The secret of one that was created."""
        assert self.secret is not None, "it has no secret yet"
        return self.secret


class CaDocument(NamedTuple):
    """What Vault holds, at which version, and whether the set-up of day 0 is complete."""

    slots: Slots[CaHeld] = Slots()
    version: int = 0
    complete: bool = False

    @property
    def accessors(self) -> Slots[str]:
        """The same without secrets; that of a pending one that was not created is empty."""
        s = self.slots
        return Slots(*(held and held.accessor for held in (s.current, s.pending, s.previous)))


def read(api: Api, mesh: Mesh) -> CaDocument:
    """
    What Vault holds of the token; nothing, at version 0, before day 0.

    Raises:
        Refused: what lies there is no such document.
    """
    found, version = read_secret(api, mesh, CA_TOKEN_PATH)
    if not found:
        return CaDocument(version=version)
    pending, previous = found.get("pending"), found.get("previous")
    slots = Slots(
        _held(found),
        _held(pending, made=False) if pending else None,
        _held(previous) if previous else None,
    )
    return CaDocument(slots, version, found.get("state") == "live")


def write(api: Api, mesh: Mesh, before: CaDocument, slots: Slots[CaHeld]) -> CaDocument:
    """
    Make the document hold these, if it is still as `before`.

    Raises:
        Invalid: somebody else wrote it meanwhile.
    """
    if slots == before.slots:
        return before
    assert slots.current is not None
    value: dict[str, Any] = {**_plain(slots.current), "state": "live"}
    for name, held in (("pending", slots.pending), ("previous", slots.previous)):
        if held:
            value[name] = _plain(held)
    write_secret(api, mesh, CA_TOKEN_PATH, value, before.version)
    return before._replace(slots=slots, version=before.version + 1)


def _plain(held: CaHeld) -> dict[str, str]:
    made = {"token": held.secret.get_secret_value()} if held.secret else {}
    value = made | {"accessor": held.accessor, "nonce": held.nonce}
    return {name: text for name, text in value.items() if text}


def _held(part: Any, *, made: bool = True) -> CaHeld:
    found = part if isinstance(part, dict) else {}
    values = [found.get(name) or "" for name in ("token", "accessor", "nonce")]
    token, accessor, nonce = values
    whole = (token and accessor) or not (made or token or accessor)
    if not all(isinstance(v, str) for v in values) or not whole or not (made or nonce):
        raise Refused(
            f"{CA_TOKEN_PATH} holds something else than a token and its accessor",
            where="vault",
            remedy="run cold-boot with --set initialise=true if the set-up was never finished",
        )
    return CaHeld(accessor, SecretStr(token) if token else None, nonce)
