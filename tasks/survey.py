"""
Looking at a whole mesh without changing anything: the input of every plan.

Everything that can be asked at the same time is. Nothing here raises for what
it sees: a host that is off or a cloud that refuses is part of the survey.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import SecretStr

from blocks.errors import Forbidden, Invalid, MeshError, Transient
from blocks.topology import Datacenter, Host, Mesh
from tasks import (
    break_glass,
    certificates,
    components,
    connect_ca,
    consul,
    consul_acl,
    federation,
    hosts,
    intentions,
    maintenance,
    power,
    record,
    services,
    snapshots,
    vault,
    vault_keys,
)
from tasks.planning import survey as seen
from tasks.planning.timeline import opening
from tasks.step import fan_out, step
from tasks.vault_setup import read_secret, setup_state

if TYPE_CHECKING:
    from blocks.mesh import Connections

T = TypeVar("T")


class Access(NamedTuple):
    """What a run may use once Vault serves; in memory only."""

    vault: SecretStr | None = None
    consul: SecretStr | None = None


def units_of(mesh: Mesh) -> dict[str, list[str]]:
    """Every unit that the topology puts on each host."""
    units: dict[str, list[str]] = {host.name: [] for _, host in mesh.hosts()}
    for name in mesh.vault.nodes:
        units[name].append(mesh.vault.unit)
    for dc in mesh.datacenters:
        for name in dc.consul.servers:
            units[name].append(dc.consul.unit)
        for gateway in dc.gateways:
            units[gateway.host] += gateway.units
        for name in mesh.client_hosts(dc.name):
            units[name].append(dc.consul.unit)
    for service in mesh.services:
        units[service.host] += service.units
    for component in mesh.components:
        units[component.host] += component.units
    return {host: list(dict.fromkeys(names)) for host, names in units.items()}


@step("survey of {connections.topology.name}")
def look(connections: Connections, *, without: tuple[str, ...] = ()) -> tuple[seen.Survey, Access]:
    """
    A whole mesh as it stands now, and the tokens that its Vault gave out for it.

    Makes no call that changes anything.
    """
    began = time.monotonic()
    mesh = connections.topology
    with ThreadPoolExecutor(8) as pool:

        def begin(function: Callable[[], T]) -> Any:
            return pool.submit(copy_context().run, function)

        machines = begin(lambda: _hosts(connections))
        holders = begin(lambda: _holders(connections, without))
        nodes = begin(lambda: vault.look_at_all(connections))
        marks = begin(
            lambda: {dc.name: break_glass.look(connections, dc) for dc in mesh.datacenters}
        )
        sealer = begin(lambda: _sealer(connections))
        kept = begin(lambda: _snapshots(mesh))
        asked = begin(lambda: _vault(connections, nodes.result(), holders.result()))

        def datacenter(dc: Datacenter) -> seen.ConsulSeen:
            _, access, token_state = asked.result()
            return _consul(connections, dc, access, token_state, marks.result()[dc.name])

        consuls = begin(lambda: fan_out(datacenter, mesh.datacenters))
        found_hosts, incidents, restoring, certs = machines.result()
        found_vault, access, _ = asked.result()
        datacenters = consuls.result()
        answering = _services(connections, found_hosts, access)
        others = components.look_at_all(connections)
        vault_snapshot, consul_snapshot = kept.result()
        mark = maintenance.look(connections, access.consul) if access.consul else None
    survey = seen.Survey(
        at=datetime.now(UTC),
        seconds=time.monotonic() - began,
        hosts=found_hosts,
        vault=seen.VaultSeen(
            **found_vault,
            nodes=_node_states(nodes.result(), found_hosts),
            incident=incidents,
            restore="begun" if restoring else "none",
            sealer=sealer.result(),
            snapshot=vault_snapshot,
        ),
        consul={dc.name: found for dc, found in zip(mesh.datacenters, datacenters, strict=True)},
        services=answering,
        pairs_wrong=tuple(sorted(_undeclared(connections, access))),
        certificates=certs,
        components=others,
        consul_snapshot=consul_snapshot,
        maintenance=f"since {mark.since:%Y-%m-%d %H:%M}" if mark else "",
        maintenance_ends=mark.expires if mark else None,
    )
    _record_opening(mesh, survey)
    return survey, access


def _undeclared(connections: Connections, access: Access) -> set[tuple[str, str]]:
    """Declared intentions that some datacenter has not, or has otherwise."""
    mesh = connections.topology
    if access.consul is None:
        return set()
    found: set[tuple[str, str]] = set()
    for dc in mesh.datacenters:
        try:
            found |= intentions.undeclared_in(connections, dc, access.consul)
        except MeshError:
            continue  # it does not serve, which is seen elsewhere
    return found


def _record_opening(mesh: Mesh, survey: seen.Survey) -> None:
    """For the timeline: which hosts were off when the run first looked, and which served."""
    recorder = record.current()
    if not recorder.opened:
        recorder.opened = True
        for host, state in opening(mesh, survey).items():
            recorder.seen(host, state)


def _hosts(
    connections: Connections,
) -> tuple[dict[str, seen.HostSeen], str | None, bool, dict[tuple[str, str], seen.CertificateSeen]]:
    mesh = connections.topology
    units = units_of(mesh)

    def datacenter(dc: Datacenter) -> dict[str, seen.HostSeen]:
        try:
            machines = power.machines(connections, dc)
        except MeshError as error:
            return {h.name: seen.HostSeen("unknown", error=str(error)) for h in dc.hosts}
        return {name: seen.HostSeen(m.power) for name, m in machines.items()}

    found: dict[str, seen.HostSeen] = {}
    for part in fan_out(datacenter, mesh.datacenters):
        found |= part
    # A cloud that does not answer says nothing about its hosts: ask them.
    lit = [h for _, h in mesh.hosts() if found[h.name].power in {"on", "unknown"}]

    def host(h: Host) -> tuple[hosts.HostSeen, list[certificates.CertificateSeen]]:
        look_ = hosts.look(connections, h, units[h.name])
        own = [c for c in mesh.certificates if c.host == h.name and look_.ssh == "ok"]
        return look_, [certificates.look(connections, c) for c in own]

    both = fan_out(host, lit, workers=32)
    looks = [look_ for look_, _ in both]
    for look_ in looks:
        before = found[look_.host]
        ssh: seen.Ssh = {"ok": "ok", "refused": "refused", "down": "unknown"}[look_.ssh]  # type: ignore[assignment]
        active = frozenset(u for u, on in look_.units.items() if on) if look_.ssh == "ok" else None
        on = "on" if look_.ssh == "ok" else before.power
        # A host that may be off refuses connections: what its cloud said tells more.
        told = before.error if on == "unknown" else look_.error
        found[look_.host] = seen.HostSeen(on, ssh, told or look_.error, active)
    marks = "; ".join(f"{x.host}: {x.incident}" for x in looks if x.incident)
    # With a Vault host unseen, only a mark that is there counts; its absence does not.
    unseen = any(found[name].ssh != "ok" for name in mesh.vault.nodes)
    incidents = None if unseen and not marks else marks
    restoring = any(x.restoring for x in looks)
    return (
        found,
        incidents,
        restoring,
        {
            (c.certificate.host, c.certificate.path): seen.CertificateSeen(
                c.not_after, c.subject, c.error
            )
            for _, of_host in both
            for c in of_host
        },
    )


def _holders(connections: Connections, without: tuple[str, ...]) -> dict[str, seen.HolderSeen]:
    found: dict[str, seen.HolderSeen] = {}
    for look_ in vault_keys.look_at_all(connections, without):
        state: seen.HolderState = "unknown" if look_.state == "unreachable" else look_.state
        found[look_.holder.name] = seen.HolderSeen(
            state, look_.state != "unreachable", look_.shares, look_.error
        )
    for holder in connections.topology.vault.holders:
        if holder.name in without:
            found[holder.name] = seen.HolderSeen("unknown", False, 0, "left out by without_holders")
    return found


def _node_states(
    nodes: list[vault.Node], found_hosts: dict[str, seen.HostSeen]
) -> dict[str, seen.NodeSeen]:
    states: dict[str, seen.NodeSeen] = {}
    for node in nodes:
        dark = found_hosts[node.host].power != "on"
        state: seen.NodeState = (
            "unknown" if dark and node.state in {"down", "hanging"} else node.state
        )
        states[node.host] = seen.NodeSeen(
            state, node.progress, node.nonce, node.threshold, error=node.error
        )
    return states


def _vault(
    connections: Connections,
    nodes: list[vault.Node],
    holders: dict[str, seen.HolderSeen],
) -> tuple[dict[str, Any], Access, seen.Token]:
    mesh = connections.topology
    credential: seen.HolderState = "unknown"
    if mesh.vault.credential is not None:
        try:
            kept = connections.store(mesh.vault.credential).read()
            credential = "held" if kept and kept.get("secret_id") else "none"
        except MeshError:
            credential = "unknown"
    found: dict[str, Any] = {
        "holders": holders,
        "credential": credential,
        "setup": "absent" if credential == "none" else "unknown",
    }
    if not any(n.state == "active" for n in nodes):
        return found, Access(), "unknown"
    try:
        token = _twice(connections.vault().login)
    except (Forbidden, Invalid):
        return (
            found | {"setup": "partial" if credential == "held" else "absent"},
            Access(),
            "unknown",
        )
    except MeshError:
        return found, Access(), "unknown"

    def ask() -> dict[str, Any] | None:
        host = next(n.host for n in nodes if n.state == "active")
        with connections.vault().node(host, token=token, deadline=5.0) as api:
            raft = api.get("/v1/sys/storage/raft/configuration").json(dict)
            servers = (raft.get("data") or {}).get("config", {}).get("servers") or []
            found["voters"] = tuple(str(s["node_id"]) for s in servers if s.get("voter"))
            found["setup"] = setup_state(api, mesh)
            return read_secret(api, mesh, consul_acl.BOOTSTRAP_PATH)[0]

    try:
        stored = _twice(ask)
    except Forbidden:
        return found | {"setup": "partial"}, Access(token), "denied"
    except MeshError:
        return found, Access(token), "unknown"
    if stored and stored.get("secret"):
        swept = stored.get("state") != consul_acl.UNSWEPT
        access = Access(token, SecretStr(str(stored["secret"])))
        return found, access, "stored" if swept else "unswept"
    return found, Access(token), "intended" if stored else "absent"


def _twice(probe: Callable[[], T]) -> T:
    """Ask again, once: without Vault's word far too much counts as not known."""
    try:
        return probe()
    except Transient:
        return probe()


def _consul(
    connections: Connections,
    dc: Datacenter,
    access: Access,
    token_state: seen.Token,
    marks: list[break_glass.BreakGlass],
) -> seen.ConsulSeen:
    mesh = connections.topology
    found = consul.look(connections, dc)
    mark = (
        seen.BreakGlass(min(m.since for m in marks), min(m.expires for m in marks))
        if marks
        else None
    )
    common: dict[str, Any] = {
        "state": found.state,
        "up": frozenset(s.host for s in found.servers if s.state in {"leading", "following"}),
        "token": token_state,
        "break_glass": mark,
        "connect": "off" if mark else "unknown",
        "error": found.error,
    }
    if found.state != "serving":
        return seen.ConsulSeen(**common)
    if access.consul is None:
        return seen.ConsulSeen(**common, acl="unknown" if token_state == "unknown" else "absent")
    token = access.consul
    try:
        consul.operator_get(connections, dc, token, "/v1/acl/token/self")
    except Forbidden:
        return seen.ConsulSeen(**(common | {"token": "denied"}))
    except MeshError:
        return seen.ConsulSeen(**common)
    ca = connect_ca.look(connections, dc, token)
    common["connect"] = "off" if ca.state == "off" else "on"
    others = [d for d in mesh.datacenters if d is not dc]
    replication: seen.Replication = "current"
    if dc.name != mesh.primary:
        replication = _replication(connections, dc, token)
    return seen.ConsulSeen(
        **common,
        ca=ca.state,
        issuer=connect_ca.issuer(connections, dc, access.vault) if access.vault else "unknown",
        acl="bootstrapped",
        gateways={
            g.host: _true(lambda g=g: federation.gateway_registered(connections, dc, g, token))  # type: ignore[misc]
            for g in dc.gateways
        },
        reaches={d.name: federation.look_at_reach(connections, dc, d, token)[0] for d in others},
        replication=replication,
        untokened=_untokened(connections, dc, token),
    )


def _untokened(connections: Connections, dc: Datacenter, token: SecretStr) -> frozenset[str]:
    names = [*dc.consul.servers, *connections.topology.client_hosts(dc.name)]
    bare = fan_out(lambda h: consul_acl.needs_tokens(connections, h, token), names)
    return frozenset(name for name, lacks in zip(names, bare, strict=True) if lacks)


def _replication(connections: Connections, dc: Datacenter, token: SecretStr) -> seen.Replication:
    mesh = connections.topology
    try:
        ok, _ = federation.replication_gap(connections, mesh.datacenter(mesh.primary), dc, token)
    except MeshError:
        return "unknown"
    return "current" if ok else "behind"


def _true(probe: Callable[[], bool]) -> bool:
    try:
        return probe()
    except MeshError:
        return False


def _services(
    connections: Connections, found_hosts: dict[str, seen.HostSeen], access: Access
) -> dict[str, seen.Answers]:
    """
    Instances by the catalog's checks.

    Who answers whom is for the proof: sidecars that are just coming up say nothing
    of what is left to do.
    """
    mesh = connections.topology
    answering: dict[str, seen.Answers] = {}
    for service in mesh.services:
        host = found_hosts[service.host]
        key = f"{service.name}@{service.host}"
        if host.dark:
            answering[key] = "unknown"
        elif host.units is not None and not set(service.units) <= host.units:
            answering[key] = "down"
    if access.consul is None:
        return answering
    token = access.consul

    def passes(service: Any) -> bool:
        dc = mesh.datacenter(service.datacenter)
        return _true(
            lambda: service.host in services.passing_hosts(connections, dc, service.name, token)
        )

    asked = [s for s in mesh.services if f"{s.name}@{s.host}" not in answering]
    for service, ok in zip(asked, fan_out(passes, asked), strict=True):
        answering[f"{service.name}@{service.host}"] = "answering" if ok else "down"
    return answering


def _sealer(connections: Connections) -> seen.Answers:
    if connections.topology.vault.seal == "shamir":
        return "unknown"
    return "answering" if vault.sealer_answers(connections) else "down"


def _snapshots(mesh: Mesh) -> tuple[seen.SnapshotSeen | None, seen.SnapshotSeen | None]:
    def one(what: str) -> seen.SnapshotSeen | None:
        found = snapshots.newest(mesh, what)
        return found and seen.SnapshotSeen(
            found.taken, found.path.name, found.restorable, found.error
        )

    return one("vault"), one(f"consul-{mesh.primary}")
