"""Consul's servers of one datacenter: what they show, and proof that they serve."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import SecretStr

from blocks.errors import MeshError, NoLeader, NotConverged, Transient, Unreachable
from blocks.topology import Datacenter
from tasks import record, stopping
from tasks.step import fan_out, step
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.mesh import Connections

ServerState = Literal["down", "no leader", "following", "leading"]
DatacenterState = Literal["down", "no_leader", "storm", "serving"]

# In the election storm a leader shows now and then, so one look proves nothing.
LOOKS = 20
CONSISTENT_DEADLINE = 3.0


class Server(NamedTuple):
    """One Consul server as it shows itself to anybody."""

    host: str
    state: ServerState
    leader: str = ""
    error: str = ""
    answers: bool = True  # whatever it says


class ConsulSeen(NamedTuple):
    """One datacenter's Consul."""

    datacenter: str
    state: DatacenterState
    servers: tuple[Server, ...]
    error: str = ""


def url(connections: Connections, host: str) -> str:
    """The HTTPS API of the agent on a host."""
    mesh = connections.topology
    port = mesh.datacenter_of(host).consul.https_port
    return f"https://{mesh.host(host).address}:{port}"


def look_at_server(connections: Connections, host: str) -> Server:
    """One server; what does not answer is `down`, never an error."""
    mesh = connections.topology
    block = connections.consul(mesh.datacenter_of(host).name)
    try:
        with block.client(url(connections, host), dc="", deadline=3.0) as api:
            leader = api.get("/v1/status/leader").json(str)
    except NoLeader as error:
        return Server(host, "no leader", error=str(error))
    except Unreachable as error:
        return Server(host, "down", error=str(error), answers=False)
    except MeshError as error:
        return Server(host, "down", error=str(error))
    if not leader:
        return Server(host, "no leader")
    leads = leader.rpartition(":")[0] == mesh.host(host).address
    return Server(host, "leading" if leads else "following", leader)


def look(connections: Connections, datacenter: Datacenter) -> ConsulSeen:
    """
    Whether a datacenter's Consul serves, or stands in the election storm.

    The storm (Connect's CA is Vault, and Vault does not serve): leadership is
    established and dropped many times a second. Stale reads and now and then a
    leader are seen, a `?consistent` read never comes through. With one server,
    or a Vault that hangs, the leader even stays; the lock is the same. What is
    not well is looked at twice: servers are stopped on the word of a storm.
    """
    seen = _look(connections, datacenter)
    if seen.state != "serving" and any(s.answers for s in seen.servers):
        stopping.pause(0.3)
        seen = _look(connections, datacenter)
    return seen


def _look(connections: Connections, datacenter: Datacenter) -> ConsulSeen:
    servers = _servers(connections, datacenter)
    up = [s.host for s in servers if s.state != "down"]
    if not up:
        return ConsulSeen(datacenter.name, "down", servers)
    error = _consistent(connections, up[0])
    if error and len(up) > 1:
        # One server may only be late; all at once, since each may hang to the deadline.
        errors = fan_out(lambda host: _consistent(connections, host), up)
        error = error if all(errors) else ""
    if not error:
        return ConsulSeen(datacenter.name, "serving", servers)
    if len(up) * 2 > len(servers) and _led(connections, datacenter, up):
        return ConsulSeen(datacenter.name, "storm", servers, error)
    return ConsulSeen(datacenter.name, "no_leader", servers, error)


def _servers(connections: Connections, datacenter: Datacenter) -> tuple[Server, ...]:
    found = fan_out(lambda host: look_at_server(connections, host), datacenter.consul.servers)
    return tuple(found)


def _consistent(connections: Connections, host: str) -> str:
    """Why a consistent read fails; empty if it does not."""
    try:
        consistent_read(connections, host)
    except MeshError as error:
        return str(error)
    return ""


def _led(connections: Connections, datacenter: Datacenter, up: list[str]) -> bool:
    """
    Whether a leader shows at least now and then, and stale reads work.

    That, with consistent reads failing, is leadership won and not established.
    Without a quorum no leader ever shows.
    """
    if not stale_read_works(connections, up[0]):
        return False
    for _ in range(LOOKS):
        if any(s.leader for s in _servers(connections, datacenter)):
            return True
        stopping.pause(0.05)
    return False


def consistent_read(connections: Connections, host: str) -> None:
    """
    A read that the leader confirms with a quorum; needs no token.

    Raises:
        MeshError: there is no established leader with a quorum now.
    """
    block = connections.consul(connections.topology.datacenter_of(host).name)
    with block.client(url(connections, host), dc="", deadline=CONSISTENT_DEADLINE) as api:
        api.get("/v1/catalog/nodes", params={"consistent": "1"}).json(list)


def stale_read_works(connections: Connections, host: str) -> bool:
    """Whether a server answers from what it has, leader or not."""
    block = connections.consul(connections.topology.datacenter_of(host).name)
    try:
        with block.client(url(connections, host), dc="", deadline=CONSISTENT_DEADLINE) as api:
            api.get("/v1/catalog/nodes", params={"stale": "1"})
    except MeshError:
        return False
    return True


@step("wait for quorum in {datacenter.name}")
def await_quorum(
    connections: Connections, datacenter: Datacenter, *, deadline: float = 120.0
) -> str:
    """
    Wait until all servers agree on a leader and a `?consistent` read comes through; its host.

    Raises:
        NotConverged: not within `deadline` seconds; the servers' states are named.
    """
    seen: list[Server] = []

    def quorum() -> str | None:
        seen[:] = fan_out(lambda h: look_at_server(connections, h), datacenter.consul.servers)
        leading = [s.host for s in seen if s.state == "leading"]
        if len(leading) != 1 or any(s.state in {"down", "no leader"} for s in seen):
            states = ", ".join(f"{s.host} {s.state}" for s in seen)
            raise NoLeader(states, where=datacenter.name)
        try:
            consistent_read(connections, leading[0])
        except Unreachable as error:
            raise NoLeader(
                f"a consistent read fails: {error.message}", where=datacenter.name
            ) from None
        return leading[0]

    leader = wait_until(
        quorum,
        f"quorum of {len(datacenter.consul.servers)} servers",
        deadline=deadline,
        where=datacenter.name,
        stage="consul",
        every=0.05,
        remedy="a server's log shows why it does not join: gossip key, certificate or address",
    )
    for server in datacenter.consul.servers:
        record.current().seen(server, "leader" if server == leader else "consul up")
    return leader


@step("wait for consul agent on {host}")
def await_agent(
    connections: Connections, host: str, token: SecretStr, *, deadline: float = 60.0
) -> None:
    """
    Wait until a client agent answers and sees its servers.

    Raises:
        NotConverged: not within `deadline` seconds.
    """
    block = connections.consul(connections.topology.datacenter_of(host).name)

    def joined() -> bool:
        with block.client(url(connections, host), token=token, dc="", deadline=3.0) as api:
            return bool(api.get("/v1/status/leader").json(str))

    wait_until(
        joined,
        "the consul agent",
        deadline=deadline,
        where=host,
        stage="agents",
        every=0.05,
        remedy="its log shows why it does not join: gossip key, certificate or address",
    )
    record.current().seen(host, "consul up")


def autopilot_healthy(
    connections: Connections, datacenter: Datacenter, token: SecretStr
) -> tuple[bool, str]:
    """Autopilot's own verdict, and why not."""
    block = connections.consul(datacenter.name)
    host = datacenter.consul.servers[0]
    try:
        with block.client(url(connections, host), token=token, dc="", deadline=5.0) as api:
            # 429 is its way to say "not healthy"; the body is the same.
            health = api.get("/v1/operator/autopilot/health", answers=(429,)).json(dict)
    except MeshError as error:
        return False, str(error)
    servers: list[dict[str, Any]] = health.get("Servers") or []
    healthy = {str(s.get("Name")) for s in servers if s.get("Healthy") and s.get("Voter")}
    if sick := [name for name in datacenter.consul.servers if name not in healthy]:
        return False, f"not a healthy voter: {', '.join(sick)}"
    tolerance = health.get("FailureTolerance")
    strangers = len(servers) - len(datacenter.consul.servers)
    beside = f", {strangers} more that the topology does not name" if strangers > 0 else ""
    return True, f"{len(healthy)} healthy voters, failure tolerance {tolerance}{beside}"


@step("ACLs on every server of {datacenter.name}")
def await_acls(
    connections: Connections, datacenter: Datacenter, token: SecretStr, *, deadline: float = 180.0
) -> str:
    """
    Wait until every server resolves a token by itself; how many there are.

    One in legacy ACL mode answers 500 while leader, KV and leaves look fine.

    Raises:
        NotConverged: not within `deadline` seconds.
    """
    block = connections.consul(datacenter.name)

    def resolves(host: str) -> bool:
        with block.client(url(connections, host), token=token, dc="", deadline=5.0) as api:
            return bool(api.get("/v1/acl/token/self").json(dict).get("AccessorID"))

    def all_resolve() -> bool:
        return all(fan_out(resolves, datacenter.consul.servers))

    wait_until(
        all_resolve,
        "every server to resolve a token",
        deadline=deadline,
        where=datacenter.name,
        stage="consul",
        every=0.05,
        remedy="restart the server that answers `legacy mode`",
    )
    return f"{len(datacenter.consul.servers)} servers resolve a token"


@step("ACL mode of {datacenter.name}")
def await_acl_mode(
    connections: Connections, datacenter: Datacenter, token: SecretStr, *, deadline: float = 20.0
) -> bool:
    """
    Wait until every server knows that all of them have left legacy ACL mode.

    A secondary whose leader stands before that stays in legacy mode itself and
    looks again after up to 100 s (seen on 1.8.7). Newer servers have no such
    mode and no such tag. Not an error if it does not come: replication is
    proven later; whether it came.
    """
    block = connections.consul(datacenter.name)
    wanted = {f"{name}.{datacenter.name}" for name in datacenter.consul.servers}

    def known(host: str) -> bool:
        with block.client(url(connections, host), token=token, dc="", deadline=5.0) as api:
            if block.version(api).number >= (1, 11, 0):
                return True
            members = api.get("/v1/agent/members", params={"wan": "1"}).json(list)
        upgraded = {m["Name"] for m in members if (m.get("Tags") or {}).get("acls") == "1"}
        return wanted <= upgraded

    try:
        wait_until(
            lambda: all(fan_out(known, datacenter.consul.servers)),
            "its servers to leave legacy ACL mode",
            deadline=deadline,
            where=datacenter.name,
            stage="consul",
        )
    except NotConverged:
        return False
    return True


def reaches(
    connections: Connections, source: Datacenter, target: Datacenter, token: SecretStr
) -> str:
    """
    A consistent read of `target` asked in `source`, with `?dc=`; the node names found.

    Only this proves federation: `members -wan` says alive for over a minute
    after the gateways died.

    Raises:
        MeshError: the way there is broken.
    """
    block = connections.consul(source.name)
    host = source.consul.servers[0]
    with block.client(url(connections, host), token=token, dc="", deadline=4.0) as api:
        nodes = api.get("/v1/catalog/nodes", params={"dc": target.name, "consistent": "1"}).json(
            list
        )
    names = {str(n.get("Node")) for n in nodes}
    if not names:
        raise Transient(f"no node of {target.name} is seen", where=source.name)
    return f"{len(names)} nodes"


def operator_get(
    connections: Connections,
    datacenter: Datacenter,
    token: SecretStr | None,
    path: str,
    **params: str,
) -> Any:
    """GET through the datacenter's first server; the JSON as it is, None if absent."""
    block = connections.consul(datacenter.name)
    with block.client(
        url(connections, datacenter.consul.servers[0]), token=token, dc="", deadline=5.0
    ) as api:
        answer = api.get(path, params=params)
        return None if answer.absent else answer.json()
