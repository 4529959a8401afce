"""
Key shares in their holders' stores: read for unsealing, written at init.

A holder's document is `{"cluster", "state", "threshold", "shares", "at"}`.
`state` is `intended` from just before init until this holder's shares are
stored and read back, then `held`. Only that order makes a lost init tellable
from a cluster somebody else initialised.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import SecretStr

from blocks import calls
from blocks.errors import Absent, MeshError, Refused, Unsafe
from blocks.topology import Holder
from tasks import record
from tasks.step import fan_out, step
from tasks.vault import Share

if TYPE_CHECKING:
    from blocks.mesh import Connections

HolderState = Literal["none", "intended", "held", "unreachable"]


class HolderSeen(NamedTuple):
    """What a holder's store holds, without what it holds."""

    holder: Holder
    state: HolderState
    shares: int = 0
    error: str = ""


def look(connections: Connections, holder: Holder) -> HolderSeen:
    """One holder's store; a prompt is not asked and counts as holding its shares."""
    if holder.store == "prompt":
        return HolderSeen(holder, "held", holder.shares)
    try:
        document = connections.store(holder).read()
    except MeshError as error:
        return HolderSeen(holder, "unreachable", error=str(error))
    if document is None:
        return HolderSeen(holder, "none")
    shares = document.get("shares") or []
    if document.get("state") == "held" and len(shares) == holder.shares:
        return HolderSeen(holder, "held", len(shares))
    return HolderSeen(holder, "intended", len(shares))


def look_at_all(connections: Connections, without: tuple[str, ...] = ()) -> list[HolderSeen]:
    """Every holder's store, the excluded ones left out."""
    holders = [h for h in connections.topology.vault.holders if h.name not in without]
    return fan_out(lambda holder: look(connections, holder), holders)


def gather(connections: Connections, without: tuple[str, ...] = ()) -> list[Share]:
    """
    All shares that can be reached, prompts last and only if the others are too few.

    Raises:
        Refused: fewer than the threshold; every holder that gave none is named
            with its reason.
    """
    vault = connections.topology.vault
    shares: list[Share] = []
    missing: list[str] = []
    holders = [h for h in vault.holders if h.name not in without]
    for holder in sorted(holders, key=lambda h: h.store == "prompt"):
        if holder.store == "prompt" and len(shares) >= vault.key_threshold:
            continue
        try:
            document = connections.store(holder).read()
        except MeshError as error:
            missing.append(f'holder "{holder.name}": {error.message}')
            continue
        if not document or not document.get("shares"):
            missing.append(f'holder "{holder.name}": holds no share')
            continue
        shares += [Share(holder.name, SecretStr(str(s))) for s in document["shares"]]
    if len(shares) < vault.key_threshold:
        reasons = "; ".join(missing) or "no holder is declared"
        raise Refused(
            f"{len(shares)} of the {vault.key_threshold} shares needed can be reached ({reasons})",
            where="vault",
            remedy="make another holder's store readable, or declare a holder with store: prompt",
        )
    return shares


@step("pre-flight of the key stores")
def preflight(connections: Connections) -> list[str]:
    """
    Why init may not be tried: a line for each store that could not keep what it is to get.

    Each is written to and read, what was written is taken back; the runbooks'
    own credential must find its place too, and the CA that Vault is to take
    over must be there.
    """
    vault = connections.topology.vault
    stores = [(f'holder "{holder.name}"', holder) for holder in vault.holders]
    stores += [("the runbooks' credential", vault.credential)] if vault.credential else []

    def try_(named: tuple[str, Holder]) -> str:
        name, holder = named
        try:
            with calls.probing():
                connections.store(holder).probe(write=True)
        except MeshError as error:
            return f"{name}: {error}"
        return ""

    lines = fan_out(try_, stores)
    if vault.issuing_ca:
        try:
            kept = connections.store(vault.issuing_ca).read() or {}
            if not kept.get("certificate") or not kept.get("private_key"):
                raise Absent("it holds no certificate and private_key")
        except MeshError as error:
            lines.append(f"the issuing CA: {error}")
    return [line for line in lines if line]


@step("intend shares at {holder.name}")
def intend(connections: Connections, holder: Holder, *, discard: bool = False) -> None:
    """
    Prove that a holder's store can be written, by writing down the intent there.

    Holds afterwards: the store's document says `intended`. Shares of an earlier,
    lost init are kept beside it as `superseded`, never thrown away.

    Raises:
        Unsafe: it holds shares already and `discard` was not approved.
        MeshError: the store cannot be written or read back.
    """
    store = connections.store(holder)
    found: dict[str, Any] = store.read() or {}
    if found.get("shares") and not discard:
        raise Unsafe(
            f'holder "{holder.name}" holds shares already',
            where="vault",
            remedy="they may open a cluster somebody needs: move that store's document away first",
        )
    document: dict[str, Any] = {
        "cluster": connections.topology.name,
        "state": "intended",
        "threshold": connections.topology.vault.key_threshold,
        "shares": [],
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if superseded := [*found.get("superseded", []), *found.get("shares", [])]:
        document["superseded"] = superseded
    store.write(document)
    record.current().change(
        f"holder {holder.name}", "intent to initialise written", before=found.get("state", "none")
    )


@step("store shares at {holder.name}")
def keep(connections: Connections, holder: Holder, shares: list[SecretStr]) -> None:
    """
    Store a holder's shares; the store reads them back before this returns (B2).

    Raises:
        NotConverged: what was read back differs.
    """
    store = connections.store(holder)
    document: dict[str, Any] = store.read() or {}
    document |= {
        "cluster": connections.topology.name,
        "state": "held",
        "threshold": connections.topology.vault.key_threshold,
        "shares": [s.get_secret_value() for s in shares],
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    store.write(document)
    record.current().change(
        f"holder {holder.name}", f"{len(shares)} key shares stored and read back", before="intended"
    )
