"""The steps of a bare boot: requests to Vault and Consul, and the proofs."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx

from benchmarks.bare_mesh import Bench, ok
from deployments.lab.layout import PRIMARY, SECONDARY, LabHost

SHARES, THRESHOLD = 5, 3
ROOT_PKI = "connect-root"

CA_POLICY = "\n".join(
    [
        'path "sys/mounts" { capabilities = ["read", "list"] }',
        *(
            f'path "{prefix}{mount}{suffix}" {{ capabilities = '
            '["create", "read", "update", "delete", "list", "sudo"] }'
            for mount in (
                ROOT_PKI,
                f"connect-intermediate-{PRIMARY}",
                f"connect-intermediate-{SECONDARY}",
            )
            for prefix, suffix in (("sys/mounts/", ""), ("sys/mounts/", "/*"), ("", "/*"))
        ),
        'path "auth/token/lookup-self" { capabilities = ["read"] }',
        'path "auth/token/renew-self" { capabilities = ["update"] }',
    ]
)
REPLICATION_RULES = """
acl = "write"
operator = "write"
service_prefix "" { policy = "read" intentions = "read" }
node_prefix "" { policy = "write" }
agent_prefix "" { policy = "read" }
"""
GATEWAY_RULES = """
service "mesh-gateway" { policy = "write" }
service_prefix "" { policy = "read" }
node_prefix "" { policy = "read" }
"""


# Vault


def start_vault(bench: Bench, status: int) -> None:
    """Start all nodes; each answers its health check with `status`."""

    def listening(host: str) -> None:
        with bench.vault(host) as api:
            path = "/v1/sys/health"
            bench.until(f"{host} listens", lambda: api.get(path).status_code == status)

    bench.start(bench.vaults)
    bench.all_of(*(partial(listening, host) for host in bench.vaults))
    bench.mark("vault listens")


def initialise(bench: Bench) -> str:
    """Initialise through the first node; the root token. Shares are on disk before this returns."""
    with bench.vault(bench.vaults[0]) as api:
        body = {"secret_shares": SHARES, "secret_threshold": THRESHOLD}
        made = ok(api.put("/v1/sys/init", json=body, timeout=60.0))
    bench.keep(shares=made["keys_base64"], root=made["root_token"])
    bench.mark("vault initialised")
    return str(made["root_token"])


def unseal(bench: Bench, host: str) -> None:
    """Give a node its shares, once it knows that there is something to open."""
    with bench.vault(host) as api:
        path = "/v1/sys/seal-status"
        bench.until(f"{host} initialised", lambda: api.get(path).json()["initialized"])
        for share in bench.kept["shares"][:THRESHOLD]:
            if not ok(api.put("/v1/sys/unseal", json={"key": share}))["sealed"]:
                break
        bench.until(f"{host} unsealed", lambda: not api.get(path).json()["sealed"])


def await_active(bench: Bench) -> str:
    """The active node."""

    def look() -> str | None:
        for host in bench.vaults:
            with bench.vault(host) as api:
                if api.get("/v1/sys/health").status_code == httpx.codes.OK:
                    return host
        return None

    active = bench.until("an active Vault node", look)
    bench.mark("vault active")
    return active


def set_up_vault(bench: Bench, active: str, root: str) -> None:
    """Mounts, on the active node, and the token of Consul's CA."""
    with bench.vault(active, root) as api:
        ok(api.post("/v1/sys/mounts/mesh", json={"type": "kv", "options": {"version": "2"}}))
        # Consul asks for its root without a lifetime: the mount's default is what it gets.
        life = {"max_lease_ttl": "87600h", "default_lease_ttl": "87600h"}
        for mount in (ROOT_PKI, intermediate(PRIMARY), intermediate(SECONDARY)):
            ok(api.post(f"/v1/sys/mounts/{mount}", json={"type": "pki", "config": life}))
        ok(api.put("/v1/sys/policies/acl/consul-connect-ca", json={"policy": CA_POLICY}))
        body = {"policies": ["consul-connect-ca"], "period": "768h", "no_default_policy": True}
        made = ok(api.post("/v1/auth/token/create-orphan", json=body))
        bench.keep(ca_token=made["auth"]["client_token"])
        config = {"server_stabilization_time": "1s"}
        path = "/v1/sys/storage/raft/autopilot/configuration"
        bench.until("autopilot", lambda: api.post(path, json=config).is_success)
    bench.mark("vault set up")


def intermediate(datacenter: str) -> str:
    """A datacenter's own mount for its intermediate."""
    return f"connect-intermediate-{datacenter}"


def vault_whole(bench: Bench) -> bool:
    """Every node unsealed, every node a voter."""
    for host in bench.vaults:
        with bench.vault(host) as api:
            if api.get("/v1/sys/health").status_code not in {200, 429}:
                return False
    with bench.vault(bench.vaults[0], bench.kept["root"]) as api:
        servers = ok(api.get("/v1/sys/storage/raft/configuration"))["data"]["config"]["servers"]
    return bool(len(bench.vaults) == sum(server["voter"] for server in servers))


# Consul


def await_leader(bench: Bench, datacenter: str, *, established: bool = True) -> None:
    """
    The datacenter has a leader, and it has established itself.

    `/v1/status/leader` names one some time before. A secondary that is started
    then finds no CA in a new primary, and elects again and again.
    """
    path = "/v1/catalog/nodes?consistent" if established else "/v1/status/leader"
    with bench.consul(bench.servers(datacenter)[0]) as api:
        bench.until(f"leader of {datacenter}", lambda: ok(api.get(path)) != "")
    bench.mark(f"{datacenter} leader")


def await_acls(bench: Bench, datacenter: str) -> None:
    """
    Every server of a datacenter knows that all of them have left legacy ACL mode.

    A secondary's leader that hears otherwise stays in that mode itself, and
    asks again at growing intervals of up to 30 s.
    """
    wanted = {f"{server}.{datacenter}" for server in bench.servers(datacenter)}

    def known(server: str) -> bool:
        with bench.consul(server, bench.kept["management"]) as api:
            members = ok(api.get("/v1/agent/members?wan=1"))
        return wanted <= {m["Name"] for m in members if m["Tags"].get("acls") == "1"}

    bench.until("ACLs", lambda: all(known(server) for server in bench.servers(datacenter)))
    bench.mark(f"{datacenter} ACLs")


def bootstrap_acls(bench: Bench) -> None:
    """The management token, kept at once, then a token for each agent."""
    server = bench.servers(PRIMARY)[0]
    with bench.consul(server) as api:

        def bootstrap() -> Any:
            answer = api.put("/v1/acl/bootstrap")
            return answer.json() if answer.is_success else None

        bench.keep(management=bench.until("ACL bootstrap", bootstrap)["SecretID"])
    bench.mark("ACLs bootstrapped")
    with bench.consul(server, bench.kept["management"]) as api:
        policies = {"replication": REPLICATION_RULES, "mesh-gateway": GATEWAY_RULES}
        for name, rules in policies.items():
            ok(api.put("/v1/acl/policy", json={"Name": name, "Rules": rules}))
        tokens = {"replication": token(api, "replication", ["replication"])}
        for host in [*bench.layout.with_role("consul-server"), *bench.clients()]:
            names = ["mesh-gateway"] if "gateway" in host.roles else []
            tokens[host.name] = token(api, f"agent {host.name}", names, host)
    bench.keep(tokens=tokens)
    bench.mark("tokens created")


def token(
    api: httpx.Client, description: str, policies: list[str], host: LabHost | None = None
) -> str:
    """A new token: of some policies, and of a host's node and services."""
    body: dict[str, Any] = {
        "Description": description,
        "SecretID": str(uuid.uuid4()),
        "Policies": [{"Name": name} for name in policies],
    }
    if host:
        body["NodeIdentities"] = [{"NodeName": host.name, "Datacenter": host.datacenter}]
        body["ServiceIdentities"] = [
            {"ServiceName": service.name, "Datacenters": [host.datacenter]}
            for service in host.services
        ]
    ok(api.put("/v1/acl/token", json=body))
    return str(body["SecretID"])


def hand_tokens(bench: Bench, host: LabHost) -> None:
    """Give an agent its tokens; a fresh one may know no server yet and answers 403 so long."""
    own = bench.kept["tokens"][host.name]
    wanted = {"agent": own}
    if "consul-server" not in host.roles:
        wanted = {"default": own, "agent": own}
    elif host.datacenter != PRIMARY:
        wanted = {"replication": bench.kept["tokens"]["replication"], "agent": own}
    with bench.consul(host.name, bench.kept["management"]) as api:

        def put(kind: str) -> bool:
            return api.put(f"/v1/agent/token/{kind}", json={"Token": wanted[kind]}).is_success

        for kind in wanted:
            bench.until(f"{kind} token of {host.name}", partial(put, kind))


def connect_ca(bench: Bench, datacenter: str) -> None:
    """Vault signs for the datacenter from now on."""
    config = {
        "Address": bench.layout.vault_url,
        "Token": bench.kept["ca_token"],
        "CAFile": str(bench.layout.ca_file),
        "RootPKIPath": ROOT_PKI,
        "IntermediatePKIPath": intermediate(datacenter),
        "LeafCertTTL": "72h",
        "IntermediateCertTTL": "8760h",
    }
    body = {"Provider": "vault", "Config": config}
    with bench.consul(bench.servers(datacenter)[0], bench.kept["management"]) as api:
        path = "/v1/connect/ca/configuration"
        bench.until(f"CA of {datacenter}", lambda: api.put(path, json=body, timeout=30).is_success)
    bench.mark(f"{datacenter} CA is vault")


def declare_intentions(bench: Bench) -> None:
    """Who may call payment-processor."""
    with bench.consul(bench.servers(PRIMARY)[0], bench.kept["management"]) as api:
        for source, action in (("web-portal", "allow"), ("reporting-agent", "deny")):
            ok(
                api.post(
                    "/v1/connect/intentions",
                    json={
                        "SourceName": source,
                        "DestinationName": "payment-processor",
                        "Action": action,
                    },
                )
            )


# Proof


def prove(bench: Bench) -> None:
    """All that "the mesh is back" means, each asked flat out until it is so."""
    proofs: dict[str, Callable[[], object]] = {
        "vault voters": partial(vault_whole, bench),
        "replication current": partial(replicated, bench),
    }
    for dc, other in ((PRIMARY, SECONDARY), (SECONDARY, PRIMARY)):
        api = bench.consul(bench.servers(dc)[0], bench.kept["management"])
        proofs |= {
            f"{dc} consistent read": partial(_get, api, "/v1/catalog/nodes?consistent"),
            f"{dc} autopilot": partial(_healthy, api),
            f"{dc} leaf": partial(_leaf, api),
            f"{dc} -> {other}": partial(_get, api, f"/v1/catalog/nodes?dc={other}"),
            f"{dc} members and ACLs": partial(_members, bench, dc),
        }
    for port, status in ((9191, 200), (9192, 200), (9193, 403)):
        proofs[f"upstream {port} answers {status}"] = partial(_upstream, bench, port, status)

    def one(name: str) -> None:
        bench.until(name, proofs[name])
        bench.mark(name)

    bench.all_of(*(partial(one, name) for name in proofs))
    bench.mark("proven")


def _get(api: httpx.Client, path: str) -> object:
    return ok(api.get(path))


def _healthy(api: httpx.Client) -> bool:
    return bool(ok(api.get("/v1/operator/autopilot/health"))["Healthy"])


def _leaf(api: httpx.Client) -> bool:
    """
    A leaf is signed now, for a name nobody had before, by the CA that Vault is.

    A wrong policy in Vault makes Consul refuse the change and go on signing with its own CA.
    """
    if ok(api.get("/v1/connect/ca/configuration"))["Provider"] != "vault":
        return False
    name = f"probe-{secrets.token_hex(6)}"
    return "BEGIN CERTIFICATE" in ok(api.get(f"/v1/agent/connect/ca/leaf/{name}"))["CertPEM"]


def _members(bench: Bench, datacenter: str) -> bool:
    """
    Every server has left legacy ACL mode and sees all servers of both datacenters alive.

    Consul 1.8 starts in legacy mode each time, and one that is still in it
    answers every question about ACLs with an error.
    """
    wanted = {f"{h.name}.{h.datacenter}" for h in bench.layout.with_role("consul-server")}
    for server in bench.servers(datacenter):
        with bench.consul(server, bench.kept["management"]) as api:
            ok(api.get("/v1/acl/token/self"))
            members = ok(api.get("/v1/agent/members?wan=1"))
        if not wanted <= {m["Name"] for m in members if m["Status"] == 1}:
            return False
    return True


def replicated(bench: Bench) -> bool:
    """Whether the secondary has every ACL token of the primary."""
    with bench.consul(bench.servers(PRIMARY)[0], bench.kept["management"]) as api:
        newest = max(t["ModifyIndex"] for t in ok(api.get("/v1/acl/tokens")))
    with bench.consul(bench.servers(SECONDARY)[0], bench.kept["management"]) as api:
        status = ok(api.get("/v1/acl/replication"))
    return bool(
        status["Running"]
        and status["ReplicationType"] == "tokens"
        and status["ReplicatedTokenIndex"] >= newest
    )


def _upstream(bench: Bench, port: int, status: int) -> bool:
    url = f"http://{bench.layout.host('us-app-1').address}:{port}/"
    return httpx.get(url, timeout=3.0, trust_env=False).status_code == status
