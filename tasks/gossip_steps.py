"""
The steps of a rotation of the gossip key.

Each looks first, acts on what is left, and looks again, so that a step that is
run again leaves what once would have left. None goes on while anybody is
absent: both keys stay installed then, and the next run carries on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import SecretStr

from blocks.errors import NotConverged, Transient
from tasks import gossip_disks, gossip_freeze, gossip_ring, gossip_store, record, stopping
from tasks.gossip_store import Document, Key
from tasks.gossip_survey import agents
from tasks.planning.gossip import Do
from tasks.planning.gossip_seen import Pool
from tasks.planning.rotation_plan import TokenPlan
from tasks.planning.tokens_seen import Slots
from tasks.step import fan_out, step
from tasks.token_clients import Clients
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.declared_tokens import DeclaredToken
    from blocks.mesh import Connections

# A restarted agent is back in seconds; who is longer away stops the rotation.
PRESENT_DEADLINE = 10.0
AGENTS_DEADLINE = 60.0
FREEZE = timedelta(hours=1)  # beside the soak; every run of a rotation begins it anew
REMEDY = (
    "start what is down (cold-boot does) and run this again: it carries on. Until then every key "
    "that was installed stays"
)
_Act = Callable[["Clients", "Item"], None]


class Item:
    """
    The rotation under way, with its keys in memory.

    No dataclass: Prefect walks through those.
    """

    def __init__(self, plan: TokenPlan, token: DeclaredToken, document: Document) -> None:
        self.plan, self.token, self.document = plan, token, document
        self.chosen: Key | None = None  # the new key, the same in a repeated step
        self.soak_seconds = token.soak_seconds
        self.begun = False
        self.failed_at = ""
        self.error = ""

    def __repr__(self) -> str:
        return f"Item({self.plan.role!r})"

    @property
    def new(self) -> Key:
        """The key that all are to use."""
        found = self.document.slots.pending or self.document.slots.current
        assert found
        return found

    @property
    def old(self) -> Key | None:
        """The key that nobody is to have in the end."""
        slots = self.document.slots
        return slots.current if slots.pending else slots.previous


@step("{what} gossip key")
def carry_out(connections: Connections, what: Do, item: Item, management: SecretStr) -> None:
    """
    One step of the rotation.

    Raises:
        Transient: the servers do not serve now.
        NotConverged: an agent is absent, or did not do as it was asked.
    """
    with Clients(connections, management) as clients:
        _STEPS[what](clients, item)


def _keep(clients: Clients, item: Item, slots: Slots[Key]) -> None:
    item.document = gossip_store.write(
        clients.vault, clients.mesh, item.token.path, item.document, slots
    )


def _take_over(clients: Clients, item: Item) -> None:
    pools, keys = _settled(clients)
    if len(keys) != 1:
        raise NotConverged(
            "its keys changed since the survey", where="gossip", remedy="run it again"
        )
    ((known, secret),) = keys.items()
    item.chosen = item.chosen or Key(secret, datetime.now(UTC))
    _keep(clients, item, Slots(item.chosen))
    _told("vault", f"gossip key taken over from {_many(pools)}", after=known)
    item.chosen = None


def _store(clients: Clients, item: Item) -> None:
    # Check-and-set at the version of the survey: who wrote since then is not written over.
    item.chosen = item.chosen or gossip_store.chosen()
    _keep(clients, item, item.document.slots.storing(item.chosen))
    _told("vault", "gossip key stored, pending", after=item.new.fingerprint)


def _freeze(clients: Clients, item: Item) -> None:
    gossip_freeze.mark(clients, lasting=FREEZE + timedelta(seconds=item.soak_seconds))


def _install(clients: Clients, item: Item) -> None:
    _until_all(clients, item, "install", Pool.all_have)
    _told("consul", "gossip key installed", after=item.new.fingerprint)


def _use(clients: Clients, item: Item) -> None:
    # Whoever has it not could read nobody any more.
    _until_all(clients, item, "use", Pool.all_use, once=Pool.all_have)
    _told("consul", "gossip key used", after=item.new.fingerprint)


def _switch(clients: Clients, item: Item) -> None:
    if item.document.slots.pending:
        _keep(clients, item, item.document.slots.promoted(replaces=True))
        _told("vault", "gossip key is the current one", after=item.new.fingerprint)


def _write(clients: Clients, item: Item) -> None:
    mesh = clients.mesh
    names = [name for dc in mesh.datacenters for name in mesh.consul_hosts(dc.name)]
    fan_out(lambda n: gossip_disks.write(clients.connections, n, item.new.secret), names)


def _remove(clients: Clients, item: Item) -> None:
    if item.old is None:
        return
    old = item.old.fingerprint
    _require_disks(clients, item)
    _until_all(clients, item, "remove", lambda pool, _: old not in pool.keys, once=Pool.all_use)
    disks = gossip_disks.look(clients.connections)
    if left := [name for name, disk in disks.items() if old in sum(disk.keyrings, ())]:
        raise NotConverged(
            f"the old key {old} is still on the disks of {', '.join(left)}",
            where="gossip",
            remedy="can the agents there write their data directory? run this again then",
        )
    _told("consul", "old gossip key removed", before=old)


def _thaw(clients: Clients, _item: Item) -> None:
    gossip_freeze.unmark(clients)


def _forget(clients: Clients, item: Item) -> None:
    _keep(clients, item, item.document.slots.forgotten())


_STEPS: dict[Do, _Act] = {
    "take over": _take_over,
    "store": _store,
    "freeze": _freeze,
    "install": _install,
    "use": _use,
    "switch": _switch,
    "write": _write,
    "remove": _remove,
    "thaw": _thaw,
    "forget": _forget,
}
_Is = Callable[[Pool, str], bool]


def _settled(clients: Clients) -> tuple[tuple[Pool, ...], dict[str, SecretStr]]:
    """
    What all agents have, once all that are declared are there.

    Raises:
        NotConverged: one is absent for longer than a restart takes.
    """

    def whole() -> tuple[tuple[Pool, ...], dict[str, SecretStr]]:
        roll, pools, keys = agents(clients)
        if not roll.whole:
            raise Transient(f"not there: {roll}")
        return pools, keys

    return wait_until(
        whole,
        "every agent to be there",
        deadline=PRESENT_DEADLINE,
        where="gossip",
        every=0.3,
        remedy=REMEDY,
    )


def _require_disks(clients: Clients, item: Item) -> None:
    """Every host starts with the new key, however it starts."""
    key = item.new.fingerprint
    for name, disk in gossip_disks.look(clients.connections).items():
        if not disk.starts_with(key):
            said = disk.error or "it would start with another key"
            raise NotConverged(said, where=name, remedy=REMEDY)


def _until_all(
    clients: Clients,
    item: Item,
    what: gossip_ring.Change,
    good: _Is,
    *,
    once: _Is = lambda _pool, _key: True,
) -> None:
    """
    Ask for a change until every agent has made it, never while one is absent or not ready.

    `good` says that a pool has made it, `once` that it may. What is asked for
    is the same each time: a lost answer, or some agents that did it and some
    that did not, are nothing but a state to go on from.
    """
    key = item.new.fingerprint
    target = item.old if what == "remove" else item.new
    assert target

    def done() -> bool:
        pools, _ = _settled(clients)
        if all(good(pool, key) for pool in pools):
            return True
        if early := [pool.name for pool in pools if not once(pool, key)]:
            raise Transient(f"not every agent is ready in {', '.join(early)}", where="gossip")
        gossip_ring.change(clients, what, target.secret)
        raise Transient("asked, not seen yet", where="gossip")

    wait_until(
        done,
        f"every agent to {what} key {target.fingerprint}",
        deadline=AGENTS_DEADLINE,
        where="gossip",
        every=0.05,
        remedy=REMEDY,
    )


def watch(
    connections: Connections,
    management: SecretStr,
    seconds: float,
    *,
    tell: Callable[[str], object],
) -> None:
    """
    For so many seconds nobody drops out; both keys are installed meanwhile.

    An agent that cannot read the new key is taken for failed within seconds.

    Raises:
        NotConverged: somebody is absent for longer than a restart takes.
    """
    ends = time.monotonic() + seconds
    while True:
        # New clients each time: a server may have gone away meanwhile.
        with Clients(connections, management) as clients:
            _settled(clients)
        if (left := ends - time.monotonic()) <= 0:
            return
        tell(f"{left:.0f} s left")
        stopping.pause(min(1.0, left))


def _many(pools: tuple[Pool, ...]) -> str:
    return f"{sum(pool.nodes for pool in pools if pool.name != gossip_ring.WAN)} agents"


def _told(where: str, did: str, *, before: str = "", after: str = "") -> None:
    record.current().change(where, did, before=before, after=after)
