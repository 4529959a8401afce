"""
The steps of the rotation of Consul's own Vault token.

Each looks at what stands or repeats harmlessly. Vault chooses the ids of what a
token role creates, so a nonce stands in for them: what carries one that was
stored, and whose secret was not, was given to nobody and goes.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pydantic import SecretStr

from blocks.declared_tokens import DeclaredToken
from blocks.errors import BadAnswer, Forbidden, MeshError, NotConverged, Transient
from blocks.topology import seconds
from tasks import ca_files, ca_role, ca_store, ca_survey, connect_ca, record, stopping, vault
from tasks.ca_store import CaDocument, CaHeld
from tasks.planning.ca_rotation import Do
from tasks.planning.rotation_plan import TokenPlan
from tasks.step import step
from tasks.stopping import Stopped
from tasks.token_clients import Clients
from tasks.vault_setup import CA_TOKEN_PATH
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.mesh import Connections
    from blocks.topology import Datacenter, Mesh
    from tasks.planning.tokens_seen import Slots

REFUSED_DEADLINE = 30.0
LEAF_DEADLINE = 30.0
WATCH_SECONDS = 2.0


class CaItem:
    """
    The role under way, with its secrets in memory.

    No dataclass: Prefect walks through those.
    """

    def __init__(self, plan: TokenPlan, token: DeclaredToken, document: CaDocument) -> None:
        self.plan, self.token, self.document = plan, token, document
        self.nonce = ""  # of the new token, the same in a repeated step
        self.asked = False  # Vault was asked to create it
        self.made: CaHeld | None = None
        self.doubtful: set[str] = set()  # nonces of which an answer was lost
        self.failed_at = ""
        self.error = ""

    def __repr__(self) -> str:
        return f"CaItem({self.plan.role!r})"

    @property
    def current(self) -> CaHeld:
        """The token that Vault keeps for boot and maintenance."""
        assert self.document.slots.current is not None
        return self.document.slots.current

    def fail(self, at: str, error: str) -> None:
        """Nothing more is done with it but to withdraw what is pending; the first failure counts."""
        self.failed_at, self.error = self.failed_at or at, self.error or error


@step("{what} Consul's CA token")
def carry_out(connections: Connections, what: Do, item: CaItem, management: SecretStr) -> None:
    """
    One step of the rotation; a failure by the role's own fault is noted in the item.

    Raises:
        Transient: the servers do not serve now; what was done stands.
    """
    try:
        with Clients(connections, management) as clients:
            _STEPS[what](clients, item, management)
    except (Transient, Stopped):
        raise
    except MeshError as error:
        item.fail(what, str(error))


def _keep(clients: Clients, item: CaItem, slots: Slots[CaHeld]) -> None:
    item.document = ca_store.write(clients.vault, clients.mesh, item.document, slots)


def _withdraw(clients: Clients, item: CaItem, _: SecretStr) -> None:
    pending = item.document.slots.pending
    if pending is None:
        return
    item.doubtful.add(pending.nonce)
    _sweep(clients, item, pending.nonce)
    _keep(clients, item, item.document.slots.withdrawn())
    item.nonce, item.asked, item.made = "", False, None


def _sweep(clients: Clients, item: CaItem, nonce: str) -> None:
    """
    No token that carries this nonce lives, but for those that Vault keeps as current and previous.

    A creation that was sent and is carried out later than this would leave one; as nobody has it,
    nobody renews it, and it ends with its period.
    """
    api, slots = clients.vault, item.document.slots
    kept = {held.accessor for held in (slots.current, slots.previous) if held}
    listed = api.request("LIST", f"/v1/{ca_role.ACCESSORS}", mutates=False, absent_ok=False)
    for accessor in (listed.json(dict).get("data") or {}).get("keys") or []:
        stopping.check()
        found = ca_survey.lookup(api, accessor) if accessor not in kept else None
        if found and (found.get("meta") or {}).get("nonce") == nonce:
            _end(clients, accessor, "pending token of Consul's CA withdrawn")


def _end(clients: Clients, accessor: str, did: str) -> None:
    clients.vault.post(
        "/v1/auth/token/revoke-accessor",
        json={"accessor": accessor},
        answers=(400, 404),  # it is gone already
    )
    record.current().change("vault", did, before=accessor)


def _store(clients: Clients, item: CaItem, _: SecretStr) -> None:
    # Check-and-set at the version of the survey: who wrote since then is not written over.
    item.nonce = item.nonce or str(uuid.uuid4())
    _keep(clients, item, item.document.slots.storing(CaHeld(nonce=item.nonce)))


def _create(clients: Clients, item: CaItem, _: SecretStr) -> None:
    slots = item.document.slots
    assert slots.pending
    nonce = slots.pending.nonce
    if item.made is None:
        if item.asked:
            item.doubtful.add(nonce)
            _sweep(clients, item, nonce)
        item.asked = True
        item.made = _created(clients, nonce)
        told = "orphan periodic token for Consul's CA created"
        record.current().change("vault", told, after=item.made.accessor)
    _keep(clients, item, slots.storing(item.made))


def _created(clients: Clients, nonce: str) -> CaHeld:
    answer = clients.vault.post(
        f"/v1/{ca_role.CREATE}",
        json={
            "policies": [ca_role.NAME],
            "no_default_policy": True,
            "display_name": ca_role.NAME,
            "meta": {"nonce": nonce},
        },
        absent_ok=False,
    )
    auth = answer.json(dict).get("auth")
    found = auth if isinstance(auth, dict) else {}
    token, accessor = found.get("client_token"), found.get("accessor")
    if not (token and isinstance(token, str) and accessor and isinstance(accessor, str)):
        raise BadAnswer(f"{answer.what}: it gives no token", where=clients.vault.server)
    return CaHeld(accessor, SecretStr(token), nonce)


def _prove(clients: Clients, item: CaItem, _: SecretStr) -> None:
    """The new token is what Consul needs, and no more than that."""
    held = item.document.slots.pending
    assert held
    mesh = clients.mesh
    host = vault.await_active(clients.connections)
    with clients.connections.vault().node(host, token=held.token) as api:
        data = api.get("/v1/auth/token/lookup-self", absent_ok=False).json(dict).get("data") or {}
        wanted = {
            "orphan": True,
            "renewable": True,
            "explicit_max_ttl": 0,
            "policies": [ca_role.NAME],
        }
        differs = [name for name, value in wanted.items() if data.get(name) != value]
        # Vault cuts a period down to the longest life of its own tokens.
        if not 0 < int(data.get("creation_ttl") or 0) <= seconds(mesh.vault.ca_token_period):
            differs.append("creation_ttl")
        if differs:
            raise NotConverged(
                f"the new token has other {', '.join(differs)} than it must have",
                where="vault",
                remedy=ca_role.GUIDE,
            )
        for path in _needed(mesh):
            verb = "GET" if path.startswith("/v1/sys/") else "LIST"
            try:
                api.request(verb, path, mutates=False)
            except Forbidden:
                raise NotConverged(
                    f"the new token must be allowed {verb} {path}",
                    where="vault",
                    remedy=f"mend the policy {ca_role.NAME}",
                ) from None
        secret = f"/v1/{mesh.vault.kv_mount}/data/{CA_TOKEN_PATH}"
        if api.get(secret, answers=(403,)).status != 403:
            raise NotConverged(
                "the new token must be denied the mesh's secrets",
                where="vault",
                remedy=f"mend the policy {ca_role.NAME}",
            )


def _needed(mesh: Mesh) -> Iterator[str]:
    yield "/v1/sys/mounts"
    mounts = [mesh.vault.root_pki_path, *(d.consul.intermediate_pki_path for d in mesh.datacenters)]
    for mount in mounts:
        yield f"/v1/{mount.strip('/')}/roles"


def _promote(clients: Clients, item: CaItem, _: SecretStr) -> None:
    slots = item.document.slots
    assert slots.pending
    _keep(clients, item, slots.promoted(replaces=item.plan.replaces))
    record.current().change("vault", "token of Consul's CA promoted", after=slots.pending.accessor)


def _adopt(clients: Clients, item: CaItem, management: SecretStr) -> None:
    """Every datacenter signs with the current token, and every server's file has it."""
    connections, mesh = clients.connections, clients.mesh
    roots = set()
    # The primary first: a secondary follows its root.
    for dc in [mesh.datacenter(mesh.primary), *mesh.secondaries]:
        _use(connections, dc, management, item.current.token)
        roots.add(connect_ca.await_leaf(connections, dc, management, deadline=LEAF_DEADLINE))
    if len(roots) != 1:
        raise NotConverged("the datacenters' leaves do not chain to one root", where="consul")
    for host, path in ca_survey.files(mesh):
        ca_files.put(connections, host, path, item.current.token)


def _use(
    connections: Connections, dc: Datacenter, management: SecretStr, ca_token: SecretStr
) -> None:
    """
    A datacenter's stored CA configuration has this token, and nothing else in it is another.

    Raises:
        NotConverged: it left Vault meanwhile, shows another token, or its root changed.
    """
    name, config = connect_ca.configuration(connections, dc, management)
    if name != "vault":
        raise NotConverged("its CA is no longer on Vault", where=dc.name, remedy="run it again")
    before = connect_ca.active_root(connections, dc, management)
    if not connect_ca.give_token(connections, dc, management, ca_token, (name, config)):
        return
    record.current().change(f"consul {dc.name}", "connect CA given the new token")
    if connect_ca.active_root(connections, dc, management) != before:
        raise NotConverged("its root is another since it has the new CA token", where=dc.name)


def strayed(connections: Connections, item: CaItem, management: SecretStr) -> list[str]:
    """Datacenters whose stored CA configuration shows another token than the current one."""
    found = []
    for dc in connections.topology.datacenters:
        name, config = connect_ca.configuration(connections, dc, management)
        if name != "vault" or not connect_ca.uses(config, item.current.token):
            found.append(dc.name)
    return found


@step("Consul's CA token in use")
def watch(connections: Connections, item: CaItem, management: SecretStr) -> None:
    """See that every datacenter still has the current token; if not, that is noted in the item."""
    if found := strayed(connections, item, management):
        item.fail("soak", f"{', '.join(found)} went back to another token; both work")


def _revoke(clients: Clients, item: CaItem, management: SecretStr) -> None:
    """
    The token before is gone, and leaves are signed without it.

    Vault makes no token twice: nothing is revoked unless every datacenter shows the new one.
    """
    connections, old = clients.connections, item.plan.old
    if found := strayed(connections, item, management):
        raise NotConverged(
            f"{', '.join(found)} would sign with another token; nothing was revoked",
            where="consul",
            remedy="run it again",
        )
    if ca_survey.lookup(clients.vault, old) is not None:
        _end(clients, old, "old token of Consul's CA revoked")
    wait_until(
        lambda: _refused(clients, item),
        "the old token of Consul's CA to be refused",
        deadline=REFUSED_DEADLINE,
        where="vault",
    )
    for dc in clients.mesh.datacenters:
        connect_ca.await_leaf(connections, dc, management, deadline=LEAF_DEADLINE)


def _refused(clients: Clients, item: CaItem) -> bool:
    if ca_survey.lookup(clients.vault, item.plan.old) is not None:
        return False
    previous = item.document.slots.previous
    if previous is None or previous.secret is None:
        return True
    answer = clients.vault.get(
        "/v1/auth/token/lookup-self",
        headers={"X-Vault-Token": previous.token.get_secret_value()},
        answers=(403,),
    )
    return answer.status == 403


def _forget(clients: Clients, item: CaItem, _: SecretStr) -> None:
    for nonce in sorted(item.doubtful):
        _sweep(clients, item, nonce)  # a creation may have been carried out late
    _keep(clients, item, item.document.slots.forgotten())


_STEPS: dict[str, Callable[[Clients, CaItem, SecretStr], None]] = {
    "withdraw": _withdraw,
    "store": _store,
    "create": _create,
    "prove": _prove,
    "promote": _promote,
    "adopt": _adopt,
    "revoke": _revoke,
    "forget": _forget,
    "put back": _adopt,
}
