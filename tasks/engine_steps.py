"""
The steps of a rotation at Vault's Consul secrets engine; each repeats harmlessly.

As with `rotation_steps`, what is one role's fault stays with that role, and
what may pass by itself is repeated with the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import SecretStr

from blocks.dynamic_tokens import mounts
from blocks.errors import MeshError, NotConverged, Transient
from tasks import acl_tokens, record, secrets_engine, stopping, token_proof
from tasks.planning.dynamic import consul_url, declared_definition
from tasks.planning.minted import Lease
from tasks.planning.rotation import home
from tasks.planning.rotation_plan import TokenPlan
from tasks.rotation_steps import REFUSED_DEADLINE, Item
from tasks.step import fan_out, step
from tasks.stopping import Stopped
from tasks.token_clients import Clients
from tasks.token_store import Document, Held
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.declared_tokens import DeclaredToken
    from blocks.http import Api
    from blocks.mesh import Connections

What = Literal["define", "configure", "configure back", "mint without the old", "mint", "end"]
_Act = Callable[[Clients, "Api", Item], None]


class AccessItem(Item):
    """
    An access token under way, and at which URL the engine reached Consul before.

    `has_current`: the engine was given the current one back.
    """

    def __init__(
        self, plan: TokenPlan, token: DeclaredToken, document: Document, before: str
    ) -> None:
        super().__init__(plan, token, document)
        self.before = before
        self.has_current = False


class EngineRole(Item):
    """A role of the engine under way, with its leases that are to end."""

    def __init__(self, plan: TokenPlan, token: DeclaredToken, due: Sequence[Lease]) -> None:
        super().__init__(plan, token, Document())
        self.due = due


@step("{what} at the consul secrets engine")
def carry_out(
    connections: Connections,
    what: What,
    items: Sequence[Item],
    management: SecretStr,
    *,
    workers: int = 8,
) -> None:
    """
    One step at the engine for these roles and access tokens.

    One that fails by its own fault is marked so, and the others go on.

    Raises:
        Transient: Vault or Consul do not serve now; what was done stands.
    """
    act = _ACTS[what]

    def one(item: Item) -> None:
        stopping.check()
        if what in item.through:
            return
        try:
            with (
                Clients(connections, management) as clients,
                secrets_engine.opened(connections, item.role) as api,
            ):
                act(clients, api, item)
        except (Transient, Stopped):
            raise
        except MeshError as error:
            item.fail(what, str(error))
        item.through.add(what)

    fan_out(one, items, workers=workers)


def _define(clients: Clients, api: Api, item: Item) -> None:
    """Vault keeps the role as declared, which is read back."""
    mount, wanted = item.role.mount, declared_definition(clients.mesh, item.role)
    before = secrets_engine.definition(api, mount, item.role.role)
    if before == wanted:
        return
    secrets_engine.define(api, mount, item.role.role, wanted)
    _told(f"{mount}/roles/{item.name} written", before="differs" if before else "absent")
    if (now := secrets_engine.definition(api, mount, item.role.role)) != wanted:
        raise NotConverged(
            f"Vault's role reads back otherwise: {now}",
            where=item.name,
            remedy="declare it as Vault understands it, such as names in lower case",
        )


def _configure(clients: Clients, api: Api, item: Item) -> None:
    """
    The engine works with the new token, or with the current one if there is no new one.

    The proof is a credential that is minted, and refused once it is given back.
    """
    slots = item.document.slots
    held = slots.pending or slots.current
    assert held
    _configure_with(clients, api, item, held, consul_url(clients.mesh, item.role))
    _mints(clients, api, item)


def _configure_back(clients: Clients, api: Api, item: Item) -> None:
    """The engine works with the current token, and reaches Consul where it did before this run."""
    current = item.document.slots.current
    assert current
    assert isinstance(item, AccessItem)
    url = item.before or consul_url(clients.mesh, item.role)
    _configure_with(clients, api, item, current, url)
    item.has_current = True


def _configure_with(clients: Clients, api: Api, item: Item, held: Held, url: str) -> None:
    secrets_engine.configure(clients.connections, api, item.role.mount, url, held)
    _told(f"{item.role.mount}/config/access written", after=held.accessor)


def _mints(clients: Clients, api: Api, item: Item) -> None:
    """The engine mints for one of its roles: which, that is not the access token's concern."""
    failed: MeshError | None = None
    for role in mounts(clients.mesh)[item.role.mount]:
        if secrets_engine.definition(api, role.mount, role.role) is None:
            continue
        try:
            dc = home(clients.mesh, role)
            with secrets_engine.credential(api, role.mount, role.role) as held:
                token_proof.await_known(clients.consul(dc), dc, held)
            _given_back(clients, role, held)
            return
        except Transient:
            raise
        except MeshError as error:
            failed = error
    raise failed or NotConverged(
        "the engine has no role yet to mint with",
        where=item.name,
        remedy="rotate it together with its roles",
    )


def _mint(clients: Clients, api: Api, item: Item) -> None:
    """A fresh credential may what it must and nothing else, wherever the role is used."""
    with secrets_engine.credential(api, item.role.mount, item.role.role) as held:
        for dc in item.datacenters(clients.mesh):
            token_proof.prove(clients.consul(dc), dc, item.role, held)
    _given_back(clients, item.role, held)
    _told(f"credential of {item.name} minted, proven and given back", after=held.accessor)


def _given_back(clients: Clients, role: DeclaredToken, held: Held) -> None:
    """Vault ends leases in the background; what is over must be refused where it was made."""
    dc = home(clients.mesh, role)
    wait_until(
        lambda: acl_tokens.is_refused(clients.consul(dc), held.secret),
        f"credential {held.accessor} of {role.role} to be refused after its end",
        deadline=REFUSED_DEADLINE,
        where=dc,
        remedy="see in Vault's log why it does not revoke leases",
    )


def _end(_: Clients, api: Api, item: Item) -> None:
    assert isinstance(item, EngineRole)
    for lease in item.due:
        if secrets_engine.lease(api, lease.id) is None:
            continue
        secrets_engine.end(api, lease.id)
        if secrets_engine.lease(api, lease.id) is not None:
            raise NotConverged(
                f"lease {lease.id} lives on after it was revoked",
                where=item.name,
                remedy="see in Vault's log why it does not revoke it",
            )
        _told(f"lease of {item.name} revoked", before=lease.id)


_ACTS: dict[What, _Act] = {
    "define": _define,
    "configure": _configure,
    "configure back": _configure_back,
    "mint without the old": _mints,
    "mint": _mint,
    "end": _end,
}


def _told(did: str, *, before: str = "", after: str = "") -> None:
    record.current().change("vault", did, before=before, after=after)
