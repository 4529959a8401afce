"""Vault's nodes: what state each is in, and unsealing them one by one."""

from __future__ import annotations

import base64
import binascii
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import SecretStr

from blocks.errors import BadAnswer, Invalid, MeshError, Refused, Transient, Unreachable
from blocks.http import Api
from tasks import record, stopping
from tasks.planning.shares import fitting
from tasks.step import fan_out, step
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.mesh import Connections

NodeState = Literal["down", "hanging", "uninitialised", "sealed", "standby", "active"]

# https://developer.hashicorp.com/vault/api-docs/system/health: standby, DR and
# performance standby are all unsealed (B6).
_HEALTH: dict[int, NodeState] = {
    200: "active",
    429: "standby",
    472: "standby",
    473: "standby",
    501: "uninitialised",
    503: "sealed",
}


LOOKS = 3  # at a node that answers as none does


class Node(NamedTuple):
    """One Vault node as it shows itself to anybody."""

    host: str
    state: NodeState
    progress: int = 0
    nonce: str = ""
    threshold: int = 0
    shares: int = 0
    seal: str = "shamir"
    error: str = ""

    @property
    def unsealed(self) -> bool:
        """Whether it serves or could take over at once."""
        return self.state in {"active", "standby"}


class Share(NamedTuple):
    """A key share and who gave it; the value shows in no text."""

    holder: str
    value: SecretStr


def look(connections: Connections, host: str, *, deadline: float = 3.0) -> Node:
    """
    One node's state; what does not answer is `down` or `hanging`, never an error.

    An answer that is none of a node's is asked for again: a proxy's 503 or 429
    is not a sealed node's, and much follows from one.
    """
    try:
        with connections.vault().node(host, deadline=deadline) as api:
            for left in reversed(range(LOOKS)):
                try:
                    return _look(api, host)
                except Unreachable:
                    raise
                except MeshError:
                    if not left:
                        raise
                    stopping.pause(0.2)
        raise AssertionError
    except Unreachable as error:
        hanging = "refused" not in str(error).lower()
        return Node(host, "hanging" if hanging else "down", error=str(error))
    except MeshError as error:
        return Node(host, "hanging", error=str(error))


def _look(api: Api, host: str) -> Node:
    health = api.get("/v1/sys/health", answers=(*_HEALTH, 500, 502, 504))
    state, told = _HEALTH.get(health.status), health.json(dict)
    sealed = state in {"sealed", "uninitialised"}
    if state is None or told.get("sealed") is not sealed:
        raise BadAnswer(f"health answered {health.status}, as no node does", where=host)
    return _sealed(api, host, state) if sealed else Node(host, state)


def look_at_all(connections: Connections) -> list[Node]:
    """Every node of the mesh's Vault cluster, in the topology's order."""
    return fan_out(lambda host: look(connections, host), connections.topology.vault.nodes)


def _sealed(api: Api, host: str, state: NodeState) -> Node:
    status = api.get("/v1/sys/seal-status").json(dict)
    return Node(
        host,
        state if state == "uninitialised" or status.get("sealed", True) else "standby",
        progress=int(status.get("progress") or 0),
        nonce=str(status.get("nonce") or ""),
        threshold=int(status.get("t") or 0),
        shares=int(status.get("n") or 0),
        seal=str(status.get("type") or "shamir"),
    )


@step("wait for vault on {host}")
def await_listening(connections: Connections, host: str, *, deadline: float = 60.0) -> Node:
    """
    Wait until a node's listener answers, whatever its state.

    Raises:
        NotConverged: it did not within `deadline` seconds.
    """

    def answers() -> Node | None:
        node = look(connections, host)
        return None if node.state in {"down", "hanging"} else node

    node = wait_until(
        answers,
        "vault to listen",
        deadline=deadline,
        where=host,
        stage="vault",
        every=0.03,
        remedy=f"look at the unit's log on {host}; with auto-unseal no listener opens while the sealer is away",
    )
    record.current().seen(host, "vault listening")
    return node


def choose_shares(shares: list[Share], threshold: int) -> tuple[list[Share], list[str]]:
    """
    The shares to submit, in order, and the holders of those that provably do not belong.

    Raises:
        Refused: fewer usable shares than the threshold; the holders whose
            shares are wrong are named.
    """
    decoded = [_decode(share) for share in shares]
    good, wrong = fitting(decoded, threshold)
    holders = list(dict.fromkeys(shares[i].holder for i in wrong))
    if len(good) < threshold:
        named = f"; not usable: {', '.join(sorted(holders))}" if wrong else ""
        usable = {share for i, share in enumerate(decoded) if i not in wrong}
        raise Refused(
            f"{len(usable)} usable key shares of the {threshold} needed{named}",
            where="vault",
            remedy="make more holders reachable, or correct the shares they hold",
        )
    return [shares[i] for i in good], holders


def _decode(share: Share) -> bytes:
    # Vault gives shares in hex and in base64; both occur in the field.
    text = share.value.get_secret_value().strip()
    try:
        return bytes.fromhex(text)
    except ValueError:
        pass
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


@step("unseal vault {host}")
def unseal(
    connections: Connections,
    host: str,
    shares: list[Share],
    *,
    reset_progress: bool = False,
    deadline: float = 60.0,
) -> Node:
    """
    Make one node unsealed, by giving shares to it directly.

    Shares go in one at a time and none after the node says `sealed: false`
    (B3). Progress that stands already, of a killed run or of another holder, is
    built on and not reset (B4); Vault ignores a share it has. A refused
    combination ends the step (B5): Vault forgets the progress by itself then.

    A follower says `sealed: true` to the last share until its raft join is
    through, so the end is waited for and the shares are not given again.

    Raises:
        Refused: the shares do not open this cluster; the holders are named.
        NotConverged: still sealed after `deadline` seconds.
    """
    started = time.monotonic()
    node = look(connections, host)
    if node.unsealed:
        return node
    if node.state == "uninitialised":
        node = _await_join(connections, host, deadline)
    with connections.vault().node(host, deadline=15.0) as api:
        if reset_progress and node.progress:
            api.put("/v1/sys/unseal", json={"reset": True})
            record.current().change(host, "unseal progress reset", before=f"{node.progress} given")
            node = node._replace(progress=0)
        given = [f"{node.progress} given before this run"] if node.progress else []
        for share in shares:
            if not _give(api, host, share, given):
                break
    node = wait_until(
        lambda: n if (n := look(connections, host)).unsealed else None,
        "unsealed",
        deadline=max(1.0, deadline - (time.monotonic() - started)),
        where=host,
        stage="vault",
        every=0.05,
        remedy="if it waits for the raft leader, unseal the other nodes; then run it again",
    )
    took = time.monotonic() - started
    record.current().seen(host, "unsealed")
    record.current().change(host, "unsealed", before="sealed", after=node.state, seconds=took)
    return node


def _await_join(connections: Connections, host: str, deadline: float) -> Node:
    """A raft follower says `uninitialised` until it has found a leader to join."""
    return wait_until(
        lambda: n if (n := look(connections, host)).state != "uninitialised" else None,
        "raft to find its leader",
        deadline=deadline,
        where=host,
        stage="vault",
        every=0.05,
        remedy="check retry_join in its configuration; is the active node reachable from it?",
    )


def _give(api: Api, host: str, share: Share, given: list[str]) -> bool:
    """Submit one share; False once the node wants no more."""
    before = api.get("/v1/sys/seal-status").json(dict)
    if before.get("sealed") is False:
        return False
    given.append(share.holder)
    try:
        answer = api.put("/v1/sys/unseal", json={"key": share.value.get_secret_value()})
    except Invalid as error:
        holders = ", ".join(dict.fromkeys(given))
        raise Refused(
            f"the shares given do not open it ({holders})",
            where=host,
            remedy="one of these gave a wrong share or one of another cluster: exclude a holder "
            "with --set without_holders=NAME, or correct its share; Vault has forgotten all given",
        ) from error
    status = answer.json(dict)
    if "sealed" not in status:
        raise BadAnswer("unseal answered without `sealed`", where=host)
    # A complete set resets progress to 0 while a follower still joins.
    return bool(status["sealed"]) and int(status.get("progress") or 0) > 0


def active_node(connections: Connections) -> str | None:
    """The host of the active node, if there is one now."""
    for node in look_at_all(connections):
        if node.state == "active":
            return node.host
    return None


@step("wait for an active vault")
def await_active(connections: Connections, *, deadline: float = 60.0) -> str:
    """
    Wait until one node is active; its host.

    Raises:
        NotConverged: none within `deadline` seconds.
    """
    host = wait_until(
        lambda: active_node(connections),
        "an active node",
        deadline=deadline,
        where="vault",
        stage="vault",
        every=0.05,
        remedy="unseal a majority of the raft voters",
    )
    record.current().seen(host, "active")
    return host


@step("raft voters of vault")
def await_voters(connections: Connections, token: SecretStr, *, deadline: float = 60.0) -> int:
    """
    Wait until every node of the topology is a healthy raft voter; their number.

    Vault's autopilot promotes a joined node after `server_stabilization_time`
    (10 s by default), which is what this mostly waits for on day 0.
    """
    wanted = len(connections.topology.vault.nodes)

    def voters() -> int | None:
        host = active_node(connections)
        if host is None:
            return None
        with connections.vault().node(host, token=token) as api:
            state = api.get("/v1/sys/storage/raft/autopilot/state").json(dict)
            servers = ((state.get("data") or {}).get("servers") or {}).values()
            voting = [s for s in servers if s.get("status") in {"leader", "voter"}]
            count = sum(1 for s in voting if s.get("healthy"))
            if count < wanted:
                raise Transient(f"{count} healthy of {len(voting)} voters", where=host)
            return count

    return wait_until(
        voters,
        f"{wanted} healthy raft voters",
        deadline=deadline,
        where="vault",
        stage="vault",
        every=0.2,
        remedy="`vault operator raft list-peers` shows who is missing",
    )


def sealer_answers(connections: Connections) -> bool:
    """
    Whether what auto-unseal depends on serves: without it no listener even opens.

    A transit seal's Vault is asked for its health. Other sealing services have
    no such question without their credentials; those count as answering.
    """
    spec = connections.topology.vault
    if spec.seal != "transit" or not spec.seal_address:
        return True
    try:
        with Api("vault sealer", spec.seal_address, ca_file=spec.ca_file, deadline=4.0) as api:
            return api.get("/v1/sys/health", answers=tuple(_HEALTH)).status in {200, 429, 472, 473}
    except MeshError:
        return False
