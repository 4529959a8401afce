"""
Handing agents the tokens that they carry, and proof that they keep and use them.

An agent never gives a token back. What it has is shown by its disk, from which
it restarts, and by what it does: an agent's own token puts its entry in the
catalog right, its default token speaks for whoever asks it without one, a
server's replication token brings what is changed in the primary.
"""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from blocks.declared_tokens import CarriedToken
from blocks.errors import Forbidden, MeshError, NotConverged, Transient
from tasks import acl_tokens, consul, federation, record, stopping
from tasks.planning.plan import Refusal
from tasks.step import fan_out, step
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.declared_tokens import DeclaredToken
    from blocks.mesh import Connections
    from tasks.token_clients import Clients
    from tasks.token_store import Held

FILE = "acl-tokens.json"  # in an agent's data directory
MARK = "mesh-runbooks-proof"  # what is planted in the catalog, and taken away by the agent
NO_TOKEN = acl_tokens.as_token(SecretStr(""))
HOST_DEADLINE = 10.0  # an agent that does not answer for so long is down
# A full synchronization begins within 3 s of a changed token (`serverUpInterval`).
SYNC_DEADLINE = 6.0
SYNC_TRIES = 3
REPLICATED_DEADLINE = 15.0
# What an agent registers from files, and asks for on behalf of its sidecars, keeps the default
# token of that moment until it is registered anew (hashicorp/consul#11949). Revoked, it is asked
# with all the same: 5,000 times a second by an agent with two sidecars (measured on 1.8.7).
REGISTERED_WITH = ("default", "config_file_service_registration")
RELOAD_DEADLINE = 30.0
OWN_REGISTRATION = (1, 15, 0)  # config_file_service_registration exists from then on


@step("which agents can be handed tokens")
def unable(
    connections: Connections, declared: Iterable[DeclaredToken], token: SecretStr
) -> dict[str, Refusal]:
    """
    The roles whose agents cannot be handed a token now, each with the reason.

    One of its agents does not answer, keeps no tokens over a restart, or is
    older than the kind of token.
    """
    carried = [role for role in declared if isinstance(role, CarriedToken)]
    hosts = list(dict.fromkeys(host for role in carried for host in role.hosts))
    seen = dict(
        zip(hosts, fan_out(lambda host: _look(connections, host, token), hosts), strict=True)
    )
    found: dict[str, Refusal] = {}
    for role in carried:
        for host in role.hosts:
            if why := _unable(role, host, seen[host]):
                found.setdefault(role.role, why)
    return found


def _look(connections: Connections, host: str, token: SecretStr) -> dict[str, Any] | str:
    """What an agent says of itself, or why it does not."""
    block = connections.consul(connections.topology.datacenter_of(host).name)
    try:
        with block.client(consul.url(connections, host), token=token, dc="", deadline=4.0) as api:
            said: dict[str, Any] = api.get("/v1/agent/self", absent_ok=False).json(dict)
            return said | {"version": block.version(api).number}
    except MeshError as error:
        return error.message


def _unable(role: CarriedToken, host: str, seen: dict[str, Any] | str) -> Refusal | None:
    left = "its token was left as it is"
    if isinstance(seen, str):
        return Refusal(
            f"the agent on {host} does not answer: {seen}",
            f"run it again when {host} is back; {left}",
            role.role,
        )
    if (seen.get("DebugConfig") or {}).get("ACLEnableTokenPersistence") is False:
        return Refusal(
            f"the agent on {host} keeps no token over a restart",
            f"set acl.enable_token_persistence there; {left}",
            role.role,
        )
    version: tuple[int, int, int] = seen["version"]
    if role.kind == "config_file_service_registration" and version < OWN_REGISTRATION:
        return Refusal(
            f"the agent on {host} is Consul {'.'.join(map(str, version))}, and tokens for "
            "services that are registered by files exist since 1.15",
            "declare kind default instead, which they use before",
            role.role,
        )
    return None


# Handing out.


def hand(clients: Clients, role: CarriedToken, held: Held) -> None:
    """
    Every agent of a role carries this token, in memory and on its disk.

    One that is handed a default token is reloaded, so that what it has registered from
    files carries it too. Repeats harmlessly. What an agent does with it is proven by `prove_used`.

    Raises:
        NotConverged: an agent does not answer for 10 s, or keeps it nowhere.
    """
    for host in role.hosts:
        known = _keeps(clients, role, host, held)
        # One that has it already would take no notice.
        put = _again if known and role.kind == "agent" else _put
        _patiently(host, lambda host=host, put=put: put(clients, role, host, held.secret))  # type: ignore[misc]
        if not _keeps(clients, role, host, held):
            raise NotConverged(
                f"the agent accepted token {held.accessor} and does not keep it in {FILE}",
                where=host,
                remedy="set acl.enable_token_persistence there, then run it again",
            )
        if not known:
            record.current().change(
                host, f"agent handed its {role.kind} token", after=held.accessor
            )
        if role.kind in REGISTERED_WITH:
            _patiently(host, lambda host=host: _reload(clients, host))  # type: ignore[misc]
        if role.kind == "agent":
            # Planted after the token was handed: whatever puts it right has the new one.
            _plant(clients, role, host)


def hand_anew(clients: Clients, role: CarriedToken, held: Held) -> None:
    """
    Make the agents of a role do something with this token, now that the old one grants nothing.

    An agent synchronizes with the catalog when its own token changes, else only
    every minute or two. So it is given none and then the same again, which leaves
    it without for some milliseconds; a client agent uses its default token then.
    """
    if role.kind != "agent":
        return
    for host in role.hosts:
        _patiently(host, lambda host=host: _again(clients, role, host, held.secret))  # type: ignore[misc]
        _plant(clients, role, host)


def _put(clients: Clients, role: CarriedToken, host: str, secret: SecretStr) -> bool:
    body = {"Token": secret.get_secret_value()}
    try:
        clients.agent(host).put(f"/v1/agent/token/{role.kind}", json=body)
    except Forbidden as error:  # the management token is not resolvable there for a moment
        raise Transient(error.message, where=host) from None
    return True


def _again(clients: Clients, role: CarriedToken, host: str, secret: SecretStr) -> bool:
    with stopping.shielded():
        try:
            _put(clients, role, host, SecretStr(""))
        finally:
            # Whatever became of the first call: it may have been carried out.
            _patiently(host, lambda: _put(clients, role, host, secret))
    return True


def _reload(clients: Clients, host: str) -> bool:
    clients.agent(host).put("/v1/agent/reload", deadline=RELOAD_DEADLINE)
    return True


def _patiently(host: str, act: Callable[[], bool]) -> None:
    wait_until(
        act,
        "its agent to answer",
        deadline=HOST_DEADLINE,
        where=host,
        remedy=f"run it again when {host} is back; the old token works until then",
    )


def _keeps(clients: Clients, role: CarriedToken, host: str, held: Held) -> bool:
    """
    Whether an agent would have this token after a restart.

    Raises:
        NotConverged: its file may be read by others than its owner, or is none.
    """
    mesh = clients.mesh
    path = f"{mesh.datacenter_of(host).consul.data_dir}/{FILE}"
    found: list[bytes | None] = []
    modes: list[str] = []

    def read() -> bool:
        with clients.connections.hosts().connect(mesh.host(host)) as ssh:
            found[:] = [ssh.read(path)]
            if found[0] is not None:
                command = f"stat -c %a {shlex.quote(mesh.host(host).root + path)}"
                ran = ssh.run(command, mutates=False, deadline=10.0, what=f"mode of {path}")
                modes[:] = [ran.text]
        return True

    _patiently(host, read)
    if found[0] is None:
        return False
    if modes[0][-2:] != "00":
        raise NotConverged(
            f"{path} has mode {modes[0]}: others than the agent may read its tokens",
            where=host,
            remedy=f"chmod 600 {path}, see who read it, then rotate these tokens again",
        )
    try:
        kept = json.loads(found[0])
    except ValueError:
        return False
    return isinstance(kept, dict) and kept.get(role.kind) == held.secret.get_secret_value()


# Proof of use.


def prove_used(clients: Clients, role: CarriedToken, held: Held) -> None:
    """
    The agents of a role work with this token.

    Raises:
        NotConverged: one does not, in the time that it may take.
    """
    match role.kind:
        case "agent":
            for host in role.hosts:
                _prove_synced(clients, role, host, held)
        case "default":
            for host in role.hosts:
                _patiently(host, lambda host=host: _prove_default(clients, host, held))  # type: ignore[misc]
        case "replication":
            _prove_replicated(clients, role, held)
        # For config_file_service_registration nothing is asked of the agent that would show it:
        # `consumers` are watched.


def _node(clients: Clients, role: CarriedToken, host: str) -> dict[str, Any]:
    api = clients.consul(role.datacenters[0])
    found = api.get(f"/v1/catalog/node/{host}", params={"consistent": "1"}).json((dict, type(None)))
    if not found:
        raise Transient(f"{host} is not in the catalog", where=role.datacenters[0])
    return dict(found["Node"])


def _plant(clients: Clients, role: CarriedToken, host: str) -> None:
    """
    Plant a mark in an agent's entry in the catalog, which only the agent takes away.

    It compares the entry with its own at each full synchronization, so a mark
    that a killed run left is gone in two minutes.
    """

    def planted() -> bool:
        node = _node(clients, role, host)
        entry = {
            "ID": node["ID"],
            "Node": host,
            "Address": node["Address"],
            "TaggedAddresses": node.get("TaggedAddresses"),
            "NodeMeta": (node.get("Meta") or {}) | {MARK: str(uuid.uuid4())},
        }
        clients.consul(role.datacenters[0]).put("/v1/catalog/register", json=entry)
        return True

    _patiently(host, planted)


def _prove_synced(clients: Clients, role: CarriedToken, host: str, held: Held) -> None:
    def put_right() -> bool:
        return MARK not in (_node(clients, role, host).get("Meta") or {})

    for left in reversed(range(SYNC_TRIES)):
        try:
            wait_until(
                put_right,
                f"its agent to put its catalog entry right with token {held.accessor}",
                deadline=SYNC_DEADLINE,
                where=host,
                remedy="its log says what its token is refused",
            )
        except NotConverged:
            if not left:
                raise
            hand_anew(clients, role, held)
        else:
            return


def _prove_default(clients: Clients, host: str, held: Held) -> bool:
    """Whoever asks an agent without a token gets its default token's rights, as services do."""
    api, mesh = clients.agent(host), clients.mesh
    answer = api.get("/v1/acl/token/self", headers=NO_TOKEN, answers=(403,))
    found = {} if answer.status == 403 else answer.json(dict)
    if found.get("AccessorID") != held.accessor:
        raise Transient(f"it does not speak with token {held.accessor} yet", where=host)
    check = {"Node": host, "CheckID": MARK, "Name": MARK, "Status": "passing"}
    body = {"Node": host, "Address": mesh.host(host).address, "SkipNodeUpdate": True}
    try:
        api.put("/v1/catalog/register", json=body | {"Check": check}, headers=NO_TOKEN)
        gone = {"Node": host, "CheckID": MARK}
        api.put("/v1/catalog/deregister", json=gone, headers=NO_TOKEN)
    except Forbidden as error:
        raise Transient(error.message, where=host) from None
    return True


def _prove_replicated(clients: Clients, role: CarriedToken, held: Held) -> None:
    """
    Replicate one more change of the token itself, which grants what it did.

    Of a change that ends a query under way, the answer is still to the token
    that the query was begun with: hence one more.
    """
    mesh = clients.mesh
    body = acl_tokens.declared_body(mesh, role)
    index = acl_tokens.change(clients.primary, held.accessor, body)
    secondary = mesh.datacenter(role.datacenters[0])
    federation.await_index(
        clients.connections, secondary, clients.management, index, deadline=REPLICATED_DEADLINE
    )
