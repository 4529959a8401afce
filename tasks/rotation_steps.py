"""
The steps of a token rotation, each for many roles at once.

Each looks at what stands or repeats harmlessly, so that a step that is run
again, in this run or after a kill, leaves what once would have left. What one
role's fault is stays with that role; what may pass by itself is repeated with
the whole step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from blocks.declared_tokens import CarriedToken, DeclaredToken
from blocks.errors import Forbidden, MeshError, NotConverged, Refused, Transient
from tasks import acl_tokens, handing, record, stopping, token_proof, token_store
from tasks.planning.rotation import Do, home
from tasks.planning.rotation_plan import TokenPlan
from tasks.step import fan_out, step
from tasks.stopping import Stopped
from tasks.token_clients import Clients, at_work
from tasks.token_store import Document, Held
from tasks.token_survey import unwell
from tasks.vault_serving import Serving
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.mesh import Connections
    from blocks.topology import Mesh

REFUSED_DEADLINE = 90.0  # a datacenter may remember a token for `acl.token_ttl`, 30 s
REPLICATED_DEADLINE = 60.0
WELL_DEADLINE = 30.0
WATCH_SECONDS = 0.5
ARM_SECONDS = 30.0  # a leader's election takes 2 to 10 s
PROOF_SECONDS = 30.0  # a proof of this very run is good for so long
MANY = 20  # of so many, each is told by itself
_Act = Callable[["Clients", "Item"], int | None]
SOAK_SECONDS: float = DeclaredToken.model_fields["soak_seconds"].default


class Item:
    """
    One role under way (or one token that no role has), with its secrets in memory.

    No dataclass: Prefect walks through those.
    """

    def __init__(self, plan: TokenPlan, token: DeclaredToken | None, document: Document) -> None:
        self.plan, self.token, self.document = plan, token, document
        self.chosen: Held | None = None  # the new token's ids, the same in a repeated step
        self.image: dict[str, Any] | None = None  # what arms the old token again
        self.disarmed = "soak" in plan.steps and "disarm" not in plan.steps
        self.through: set[str] = set()  # steps that a repetition leaves alone
        self.index = 0  # of its last change in the primary
        self.failed_at = ""
        self.error = ""
        self.proven_at = -PROOF_SECONDS
        self.began = self.ended = 0.0  # of the work on it
        self._consumers: list[tuple[str, str]] | None = None

    def __repr__(self) -> str:
        return f"Item({self.name!r})"

    @property
    def name(self) -> str:
        """The role; with the accessor of a token that it does not have."""
        return f"{self.plan.role} ({self.plan.old})" if self.plan.orphan else self.plan.role

    @property
    def role(self) -> DeclaredToken:
        """What is declared; only orphans have nothing."""
        assert self.token is not None, self.name
        return self.token

    @property
    def soak_seconds(self) -> float:
        """How long its old token stands disarmed; an orphan's as long as if nothing were said."""
        return self.token.soak_seconds if self.token else SOAK_SECONDS

    def fail(self, at: str, error: str) -> None:
        """Nothing more is done with it but to withdraw what is pending; the first failure counts."""
        self.through.discard("withdraw")
        self.failed_at, self.error = self.failed_at or at, self.error or error

    @property
    def is_done(self) -> bool:
        """Whether it went through all of its steps; the soak is not one of roles but of batches."""
        return not self.failed_at and {*self.plan.steps} - {"soak"} <= self.through

    @property
    def new(self) -> str:
        """Accessor of the token that its consumers read from now on, if that is a new one."""
        current = self.document.slots.current
        return current.accessor if current and "promote" in self.through else ""

    def datacenters(self, mesh: Mesh) -> list[str]:
        """Where its token is used."""
        return self.role.datacenters or [dc.name for dc in mesh.datacenters]

    def consumers(self, mesh: Mesh) -> list[tuple[str, str]]:
        """Who is to be well, as (service, datacenter)."""
        if self._consumers is None:
            named = self.role.consumers if self.token else ()
            there = {(s.name, s.datacenter) for s in mesh.services if s.name in named}
            pairs = [(c, dc) for c in named for dc in self.datacenters(mesh)]
            self._consumers = [pair for pair in pairs if pair in there]
        return self._consumers


@step("{what} declared tokens")
def carry_out(
    connections: Connections,
    what: Do,
    items: Sequence[Item],
    management: SecretStr,
    *,
    workers: int = 8,
    done: Callable[[], object] = lambda: None,
) -> int:
    """
    One step of a rotation for these; the highest index of what changed in the primary.

    A role that fails by its own fault is marked so, and the others go on. `done` is
    told of each that is through, from any thread.

    Raises:
        Transient: the servers do not serve now; what was done stands.
    """
    passes: list[tuple[str, _Act]] = [(what, _STEPS[what])]
    if what in _PROOFS:
        # After the last of them: each would wait for the same round of replication, or for its
        # agent, while the others do too.
        passes.append((f"proof of {what}", _PROOFS[what]))

    def some(part: Sequence[Item]) -> None:
        with at_work(connections, management) as clients:
            for name, act in passes:
                for item in part:
                    one(clients, item, name, act)

    def one(clients: Clients, item: Item, name: str, act: _Act) -> None:
        stopping.check()
        if name in item.through or (name != what and item.failed_at):
            return
        item.began = item.began or time.monotonic()
        try:
            item.index = max(item.index, act(clients, item) or 0)
        except (Transient, Stopped):
            raise
        except MeshError as error:
            item.fail(what, str(error))
        item.through.add(name)
        item.ended = time.monotonic()
        if name == passes[-1][0] and not item.failed_at:
            done()

    with record.current().summed(len(items) > MANY):
        fan_out(some, [p for n in range(workers) if (p := items[n::workers])], workers=workers)
    return max((item.index for item in items), default=0)


def _keep(clients: Clients, item: Item, slots: Any) -> None:
    path = item.role.path
    try:
        item.document = token_store.write(clients.vault, clients.mesh, path, item.document, slots)
    except Forbidden:
        place = f"{clients.mesh.vault.kv_mount}/data/{path}"
        raise Refused(
            f"{place} may not be written",
            where="vault",
            remedy=f"give the runbooks' credential create and update on {place}",
        ) from None


def _put_back(clients: Clients, item: Item) -> int | None:
    current = item.document.slots.current
    assert current
    for dc in dict.fromkeys([home(clients.mesh, item.role), clients.mesh.primary]):
        found = acl_tokens.lookup(clients.consul(dc), current.accessor)
        if found:
            body = acl_tokens.declared_body(clients.mesh, item.role)
            body |= {"Local": bool(found.get("Local"))}
            index = acl_tokens.change(clients.consul(dc), current.accessor, body)
            _told(dc, "token of {} put back as declared", item, before="edited by hand")
            return index if dc == clients.mesh.primary else 0
    raise NotConverged("it is gone since the survey", where=item.name, remedy="run it again")


def _withdraw(clients: Clients, item: Item) -> None:
    slots = item.document.slots
    if slots.pending is None:
        return
    for dc in dict.fromkeys([home(clients.mesh, item.role), clients.mesh.primary]):
        if acl_tokens.lookup(clients.consul(dc), slots.pending.accessor):
            acl_tokens.revoke(clients.consul(dc), slots.pending.accessor)
            _told(dc, "pending token of {} withdrawn", item, before=slots.pending.accessor)
    _keep(clients, item, slots.withdrawn())


def _store(clients: Clients, item: Item) -> None:
    # Check-and-set at the version of the survey: who wrote since then is not written over.
    item.chosen = item.chosen or token_store.chosen()
    _keep(clients, item, item.document.slots.storing(item.chosen))


def _create(clients: Clients, item: Item) -> int:
    pending, dc = item.document.slots.pending, home(clients.mesh, item.role)
    assert pending
    index = acl_tokens.create(clients.consul(dc), clients.mesh, item.role, pending)
    _told(dc, "token of {} created", item, after=pending.accessor)
    return index if dc == clients.mesh.primary else 0


def _prove(clients: Clients, item: Item) -> None:
    slots = item.document.slots
    held = slots.pending or slots.current
    assert held
    for dc in item.datacenters(clients.mesh):
        token_proof.prove(clients.consul(dc), dc, item.role, held)
    item.proven_at = time.monotonic()


def _hand(clients: Clients, item: Item) -> None:
    pending = item.document.slots.pending
    assert pending
    if isinstance(item.role, CarriedToken):
        handing.hand(clients, item.role, pending)


def _promote(clients: Clients, item: Item) -> None:
    slots = item.document.slots
    assert slots.pending
    _keep(clients, item, slots.promoted(replaces=item.plan.replaces))
    _told("vault", "token of {} promoted", item, after=slots.pending.accessor)


def _adopt(clients: Clients, item: Item) -> None:
    # Whoever could not read the new one still holds the old one; and what is proven is what
    # consumers read: read back before anything is taken away.
    token_store.require_readable(clients.vault, clients.mesh, item.role.path, item.document)
    # Proven again if minutes or, after a kill, days have passed since the promotion.
    if time.monotonic() - item.proven_at >= PROOF_SECONDS:
        _prove(clients, item)
    current = item.document.slots.current
    if isinstance(item.role, CarriedToken) and current:
        handing.hand(clients, item.role, current)
    pairs = item.consumers(clients.mesh)

    def well() -> bool:
        if sick := unwell(clients, pairs):
            raise Transient(_sick(sick))
        return True

    wait_until(
        well,
        f"consumers of {item.name} to be healthy",
        # Many roles may share a consumer that is ill: they wait for it together.
        deadline=max(1.0, WELL_DEADLINE - (time.monotonic() - clients.began)),
        where=item.name,
        remedy="mend them first; old and new token both work meanwhile",
    )


def _disarm(clients: Clients, item: Item) -> int:
    dc = item.plan.old_at
    item.disarmed = True
    api = clients.consul(dc)
    if before := acl_tokens.image(api, item.plan.old):
        item.image = before
        index = acl_tokens.disarm(api, item.plan.old, before)
        _told(dc, "old token of {} disarmed", item, before=item.plan.old)
    else:  # it is gone, or an answer was lost and it was done
        index = int((acl_tokens.lookup(api, item.plan.old) or {}).get("ModifyIndex") or 0)
    return index if dc == clients.mesh.primary else 0


def _use(clients: Clients, item: Item) -> None:
    current = item.document.slots.current
    if isinstance(item.role, CarriedToken) and current:
        handing.hand_anew(clients, item.role, current)


def _used(clients: Clients, item: Item) -> None:
    """Agents work with the token that they were handed."""
    held = item.document.slots.pending or item.document.slots.current
    if isinstance(item.role, CarriedToken) and held:
        handing.prove_used(clients, item.role, held)


def _rearm(clients: Clients, item: Item) -> int:
    """The old token grants what it did, or after a kill what is declared."""
    image = item.image
    if image is None and item.token is not None:
        image = acl_tokens.declared_body(clients.mesh, item.role)
    if image is None or not item.disarmed:
        return 0
    api = clients.consul(item.plan.old_at)
    if (found := acl_tokens.lookup(api, item.plan.old)) is None:
        return 0
    index = acl_tokens.change(api, item.plan.old, image | {"Local": bool(found.get("Local"))})
    item.disarmed = False
    _told(item.plan.old_at, "old token of {} armed again", item, after=item.plan.old)
    return index if item.plan.old_at == clients.mesh.primary else 0


def _revoke(clients: Clients, item: Item) -> None:
    acl_tokens.revoke(clients.consul(item.plan.old_at), item.plan.old)
    _told(item.plan.old_at, "old token of {} revoked", item, before=item.plan.old)


def _refused_everywhere(clients: Clients, item: Item) -> None:
    """Every datacenter answers 403 to the old token."""
    previous = item.document.slots.previous
    for dc in clients.mesh.datacenters:
        api = clients.consul(dc.name)

        def gone(api: Any = api) -> bool:
            if previous is not None:
                return acl_tokens.is_refused(api, previous.secret)
            return acl_tokens.lookup(api, item.plan.old) is None

        wait_until(
            gone,
            f"the old token of {item.name} to be refused",
            deadline=REFUSED_DEADLINE,
            where=dc.name,
            remedy="has ACL replication caught up? run it again then",
        )


def _forget(clients: Clients, item: Item) -> None:
    _keep(clients, item, item.document.slots.forgotten())


_STEPS: dict[str, _Act] = {
    "put back": _put_back,
    "withdraw": _withdraw,
    "store": _store,
    "create": _create,
    "prove": _prove,
    "hand": _hand,
    "promote": _promote,
    "adopt": _adopt,
    "disarm": _disarm,
    "use": _use,
    "revoke": _revoke,
    "forget": _forget,
}
_PROOFS: dict[str, _Act] = {
    "hand": _used,
    "adopt": _used,
    "use": _used,
    "revoke": _refused_everywhere,
}


def rearm(
    connections: Connections, items: Sequence[Item], management: SecretStr, *, workers: int = 8
) -> None:
    """
    The old tokens of these grant again what they did, although the run is to stop.

    Raises:
        NotConverged: one does not, however often it was tried; all others were tried.
    """
    if any(item.disarmed for item in items):
        with stopping.shielded():
            _arm(connections, items, management, workers)


@step("arm old tokens again")
def _arm(
    connections: Connections, items: Sequence[Item], management: SecretStr, workers: int
) -> None:
    """
    Tried until it is done, whatever a server answers: consumers are without a token meanwhile.

    Consul answers 500 to what passes by itself too, in words that change with its version.
    """
    ends = time.monotonic() + ARM_SECONDS
    failed: dict[str, MeshError] = {}

    def some(part: Sequence[Item]) -> None:
        # New clients: what they were used for before may be what went wrong.
        with Clients(connections, management) as clients:
            for item in part:
                try:
                    _rearm(clients, item)
                except MeshError as error:
                    failed[item.name] = error

    while todo := [item for item in items if item.disarmed]:
        failed.clear()
        parts = [part for n in range(workers) if (part := todo[n::workers])]
        with record.current().summed(len(todo) > MANY):
            fan_out(some, parts, workers=workers)
        if not failed:
            return
        if time.monotonic() > ends:
            raise NotConverged(
                f"the old tokens of {', '.join(sorted(failed))} are still disarmed "
                f"(last: {next(iter(failed.values())).message})",
                remedy="run it again at once: it arms those whose consumers are ill",
            )
        stopping.pause(WATCH_SECONDS)


def overlap(connections: Connections, seconds: float, *, tell: Callable[[str], object]) -> None:
    """
    Old and new tokens both work, and for so many seconds on end Vault gave out the new ones.

    Raises:
        NoLeader: Vault does not serve any more.
    """
    serving = Serving(connections)
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        tell(f"old and new both work, {left:.0f} s left")
        stopping.pause(min(1.0, left))
        if serving.host() is None:
            # Nobody could adopt a new one meanwhile: as long again from when it is back.
            ends = time.monotonic() + seconds


def watch(
    connections: Connections,
    items: Sequence[Item],
    management: SecretStr,
    seconds: float,
    *,
    tell: Callable[[str], object],
) -> None:
    """
    Watch the consumers of disarmed tokens for so many seconds.

    Where one stops being healthy, the old tokens of its roles are armed again
    at once, and those roles have failed.

    Raises:
        NoLeader: Vault does not serve any more: whoever restarts has no token at all.
        Transient: at the end Consul did not say how they are.
    """
    mesh, serving = connections.topology, Serving(connections)
    ends = time.monotonic() + seconds
    while True:
        left = ends - time.monotonic()
        # Not forgotten while it may come back: the soak does not end without it.
        served = serving.host() is not None
        try:
            # New clients each time: a server may have gone away meanwhile.
            with Clients(connections, management) as clients:
                sick = _sick_consumers(clients, items)
        except Transient:
            if left <= 0:
                raise
            sick = {}
        hit = [item for item in items if set(item.consumers(mesh)) & sick.keys()]
        hit = [item for item in hit if not item.failed_at]
        for item in hit:
            own = {pair: sick[pair] for pair in item.consumers(mesh) if pair in sick}
            item.fail(
                "soak",
                f"{_sick(own)} while the old token was disarmed: it may still be in use; "
                "it works again",
            )
        rearm(connections, hit, management)
        if (left <= 0 and served) or all(item.failed_at for item in items):
            return
        tell(f"{max(0.0, left):.0f} s left")
        stopping.pause(min(WATCH_SECONDS, left) if left > 0 else WATCH_SECONDS)


def _sick_consumers(clients: Clients, items: Iterable[Item]) -> dict[tuple[str, str], str]:
    pairs = [pair for item in items if not item.failed_at for pair in item.consumers(clients.mesh)]
    return unwell(clients, pairs)


def _sick(found: dict[tuple[str, str], str]) -> str:
    return "; ".join(
        f"{service} in {datacenter} is not healthy on {hosts}"
        for (service, datacenter), hosts in found.items()
    )


def _told(datacenter: str, did: str, item: Item, *, before: str = "", after: str = "") -> None:
    where = datacenter if datacenter == "vault" else f"consul {datacenter}"
    record.current().changed_one(where, did, item.name, before=before, after=after)
