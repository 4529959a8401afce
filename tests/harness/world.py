"""
What must be true of the servers after whatever went wrong, asked of them.

Nothing here believes a report: tokens are listed, a leaf is signed, services
are called, disks are looked at.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from pydantic import SecretStr

from blocks.http import Api
from blocks.mesh import Connections
from tasks import break_glass, consul, consul_acl, hosts, vault, vault_init, vault_keys, vault_setup
from tests.harness.lab import Lab

ANONYMOUS = "00000000-0000-0000-0000-000000000002"


@dataclass(frozen=True)
class World:
    """What was counted on the servers; everything else was asserted."""

    cluster: str  # Vault's cluster id
    set_aside: int  # data directories of Vault that were moved away
    tokens: frozenset[str]  # accessors in Consul
    shares: int  # that holders have


def converged(lab: Lab) -> World:
    """
    The mesh as its servers show it, proven to be whole and without leftovers.

    Raises:
        AssertionError: it is not; the message says where.
    """
    with lab.connections() as connections:
        management, roles = _vault(connections)
        cluster, shares = _cluster(connections)
        tokens = _tokens(connections, management, roles)
        for dc in connections.topology.datacenters:
            _consul(connections, dc.name, SecretStr(management["secret"]))
    _data_plane(lab)
    _disks(lab)
    node = lab.topology.vault.nodes[0]
    data = lab.disk(node, lab.topology.vault.data_dir)
    return World(cluster, len(list(data.parent.glob(f"{data.name}.lost-*"))), tokens, shares)


def _vault(connections: Connections) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """
    No root token lives, no attempt at one is under way, every secret is there once.

    Gives the management token and those of the roles, as Vault keeps them.
    """
    mesh = connections.topology
    nodes = vault.look_at_all(connections)
    assert [n for n in nodes if n.state == "active"], nodes
    assert all(n.unsealed for n in nodes), nodes
    active = next(n.host for n in nodes if n.state == "active")
    with connections.vault().node(active) as api:
        attempt = api.get("/v1/sys/generate-root/attempt").json(dict)
    assert not attempt["started"], "an attempt to generate a root token is under way"

    shares, _ = vault.choose_shares(vault_keys.gather(connections), mesh.vault.key_threshold)
    with (
        vault_init.root_token(connections, shares) as root,
        connections.vault().node(active, token=root) as api,
    ):
        alive = list(_alive(api))
        own = api.get("/v1/auth/token/lookup-self").json(dict)["data"]["accessor"]
        ca, _ = vault_setup.read_secret(api, mesh, vault_setup.CA_TOKEN_PATH)
        stored, _ = vault_setup.read_secret(api, mesh, consul_acl.BOOTSTRAP_PATH)
        kept = {
            role.name: vault_setup.read_secret(api, mesh, f"consul/tokens/{role.name}")[0]
            for role in consul_acl.roles(mesh)
        }
        listed = api.request("LIST", f"/v1/{mesh.vault.kv_mount}/metadata/consul/tokens").json(dict)
    roots = [t["accessor"] for t in alive if "root" in t["policies"] and t["accessor"] != own]
    assert not roots, f"root tokens alive: {roots}"
    for_ca = [t["accessor"] for t in alive if vault_setup.CA_POLICY in t["policies"]]
    assert ca is not None
    assert for_ca == [ca["accessor"]], "tokens of Consul's CA beside the stored one"
    assert ca["state"] == "live"
    assert all(kept.values()), kept.keys()
    assert set(listed["data"]["keys"]) == set(kept), "secrets of roles that are not declared"
    assert stored is not None
    assert stored["state"] == "held"
    return stored, {name: dict(secret or {}) for name, secret in kept.items()}


def _alive(api: Api) -> Any:
    listed = api.request("LIST", "/v1/auth/token/accessors", mutates=False).json(dict)
    for accessor in listed["data"]["keys"]:
        found = api.post(
            "/v1/auth/token/lookup-accessor",
            json={"accessor": accessor},
            mutates=False,
            answers=(403, 404),
        )
        if found.status == 200:
            yield found.json(dict)["data"]


def _cluster(connections: Connections) -> tuple[str, int]:
    """One cluster, and shares of the holders that open it."""
    mesh = connections.topology
    ids = set()
    for host in mesh.vault.nodes:
        with connections.vault().node(host) as api:
            ids.add(str(api.get("/v1/sys/health", answers=(429,)).json(dict)["cluster_id"]))
    assert len(ids) == 1, f"more than one Vault cluster: {ids}"
    held = [h for h in vault_keys.look_at_all(connections) if h.state == "held"]
    shares = vault_keys.gather(connections)
    assert len({s.value.get_secret_value() for s in shares}) == sum(h.shares for h in held)
    _, strangers = vault.choose_shares(shares, mesh.vault.key_threshold)
    assert not strangers, f"shares of another cluster are kept by {strangers}"
    return ids.pop(), len(shares)


def _tokens(
    connections: Connections, management: dict[str, str], roles: dict[str, dict[str, str]]
) -> frozenset[str]:
    """Exactly the declared tokens in every datacenter, each with the secret Vault keeps."""
    mesh = connections.topology
    wanted = {management["accessor"], ANONYMOUS, *(r["accessor"] for r in roles.values())}
    assert len(wanted) == len(roles) + 2
    for dc in mesh.datacenters:
        found = consul.operator_get(
            connections, dc, SecretStr(management["secret"]), "/v1/acl/tokens"
        )
        described = Counter(t["Description"] for t in found)
        assert described["Bootstrap Token (Global Management)"] == 1, described
        assert max(described.values()) == 1, f"more than one token of a role: {described}"
        assert {t["AccessorID"] for t in found} == wanted, f"tokens in {dc.name}: {described}"
        for name, token in roles.items():
            secret = SecretStr(token["secret"])
            mine = consul.operator_get(connections, dc, secret, "/v1/acl/token/self")
            assert mine["AccessorID"] == token["accessor"], f"{name} in {dc.name}"
    return frozenset(wanted)


def _consul(connections: Connections, name: str, management: SecretStr) -> None:
    """A quorum, the others reached, a leaf really signed by Vault, agents with their tokens."""
    mesh = connections.topology
    dc = mesh.datacenter(name)
    consul.consistent_read(connections, dc.consul.servers[0])
    for other in mesh.datacenters:
        assert consul.reaches(connections, dc, other, management)
    authority = consul.operator_get(connections, dc, management, "/v1/connect/ca/configuration")
    assert authority["Provider"] == "vault", authority["Provider"]
    leaf = consul.operator_get(connections, dc, management, "/v1/agent/connect/ca/leaf/world-probe")
    assert leaf["CertPEM"].startswith("-----BEGIN CERTIFICATE")
    if name != mesh.primary:
        replication = consul.operator_get(connections, dc, management, "/v1/acl/replication")
        assert replication["Running"], replication
    for host in [*dc.consul.servers, *mesh.client_hosts(name)]:
        assert not consul_acl.needs_tokens(connections, host, management), f"{host} has no tokens"
    intentions = consul.operator_get(connections, dc, management, "/v1/connect/intentions")
    pairs = Counter((i["SourceName"], i["DestinationName"], i["Action"]) for i in intentions)
    assert pairs == {(i.source, i.destination, i.action): 1 for i in mesh.intentions}, pairs


def _data_plane(lab: Lab) -> None:
    """The allowed pairs answer and the denied ones are denied, called as the services call."""
    allowed = {(i.source, i.destination) for i in lab.topology.intentions if i.action == "allow"}
    for service in lab.topology.services:
        for upstream in service.upstreams:
            with Api("upstream", f"http://{upstream.listen}") as api:
                status = api.get("/", answers=(403, 503)).status
            wanted = 200 if (service.name, upstream.service) in allowed else 403
            assert status == wanted, f"{service.name} -> {upstream.service}: {status}"


def _disks(lab: Lab) -> None:
    """No mark of a fallback or of an unfinished restore is left on any host."""
    mesh = lab.topology
    for dc in mesh.datacenters:
        for host in dc.hosts:
            mark = lab.disk(host.name, f"{dc.consul.config_dir}/{break_glass.FILE}")
            assert not mark.exists(), f"break-glass stands on {host.name}"
            reset = lab.disk(host.name, f"{dc.consul.data_dir}/acl-bootstrap-reset")
            assert not reset.exists(), f"a reset of the ACL bootstrap waits on {host.name}"
    for name in mesh.vault.nodes:
        assert not lab.disk(name, hosts.RESTORING).exists(), f"a restore is unfinished on {name}"
