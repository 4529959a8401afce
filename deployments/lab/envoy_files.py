"""
Envoy's resources for a mesh gateway and for sidecars: pure, one dict a resource.

Consul 1.8 speaks xDS v2 only, which Envoy gave up, so the lab renders these
itself from what the local agent answers. Names are those of Consul: a service
`web` in `us-east-1` is `web.default.us-east-1.internal.<trust domain>` as SNI
and `spiffe://<trust domain>/ns/default/dc/us-east-1/svc/web` as identity.
Standard library only: the data plane runs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Resource = dict[str, Any]
Address = tuple[str, int]

_TYPE = "type.googleapis.com/"
_FILTERS = "envoy.extensions.filters"
TYPES = {
    "lds": f"{_TYPE}envoy.config.listener.v3.Listener",
    "cds": f"{_TYPE}envoy.config.cluster.v3.Cluster",
    "leaf": f"{_TYPE}envoy.extensions.transport_sockets.tls.v3.Secret",
    "roots": f"{_TYPE}envoy.extensions.transport_sockets.tls.v3.Secret",
}
KINDS = tuple(TYPES)


@dataclass(frozen=True)
class Intention:
    """Who may call a service, or may not; `source` may be `*`."""

    source: str
    allow: bool


@dataclass(frozen=True)
class Target:
    """One datacenter's instances of a service, behind the given addresses."""

    service: str
    datacenter: str
    endpoints: tuple[Address, ...]
    health_path: str = "/health"

    @property
    def cluster(self) -> str:
        """Name of its cluster."""
        return f"{self.service}.{self.datacenter}"


@dataclass(frozen=True)
class Upstream:
    """A service as the sidecar's own application dials it; the first target that lives answers."""

    service: str
    listen: Address
    targets: tuple[Target, ...]


def sni(service: str, datacenter: str, trust_domain: str) -> str:
    """The server name that gateways route a service's traffic by."""
    return f"{service}.default.{datacenter}.internal.{trust_domain}"


def spiffe_id(service: str, datacenter: str, trust_domain: str) -> str:
    """The identity in a service's leaf certificate."""
    return f"spiffe://{trust_domain}/ns/default/dc/{datacenter}/svc/{service}"


def document(kind: str, resources: Iterable[Resource], version: str) -> Resource:
    """One file of file-based xDS."""
    return {
        "version_info": version,
        "resources": [{"@type": TYPES[kind], **resource} for resource in resources],
    }


def bootstrap(node: str, cluster: str, admin: Address, directory: str) -> Resource:
    """What Envoy starts with: everything else comes from files below `directory`."""
    return {
        "node": {"id": node, "cluster": cluster},
        "admin": {"address": _socket(admin)},
        "dynamic_resources": {
            "lds_config": _file(directory, "lds"),
            "cds_config": _file(directory, "cds"),
        },
    }


def secrets(leaf: tuple[str, str] | None, roots: Iterable[str]) -> dict[str, list[Resource]]:
    """A sidecar's own certificate and key, and the roots it trusts, all PEM."""
    own: list[Resource] = []
    if leaf:
        chain, key = ({"inline_string": pem} for pem in leaf)
        own = [
            {"name": "leaf", "tls_certificate": {"certificate_chain": chain, "private_key": key}}
        ]
    trusted = "".join(pem.strip() + "\n" for pem in roots)
    context = {"trusted_ca": {"inline_string": trusted}}
    return {"leaf": own, "roots": [{"name": "roots", "validation_context": context}]}


# The mesh gateway


def gateway(
    listen: Mapping[str, Address],
    servers: Mapping[str, Address],
    datacenter: str,
    remotes: Mapping[str, Iterable[Address]],
    trust_domain: str = "",
    services: Mapping[str, Iterable[Address]] | None = None,
    access_log: str = "",
) -> dict[str, list[Resource]]:
    """
    A gateway's listeners and clusters: it reads the server name and passes TLS on, unopened.

    Servers are routed as soon as it runs; services once the trust domain is known.
    `listen` and `servers` are by name, `remotes` (WAN gateways) by datacenter.
    """
    clusters = [_plain_cluster("local-servers", servers.values())]
    chains = [_chain([f"server.{datacenter}.consul"], "local-servers", access_log)]
    for name, address in servers.items():
        clusters.append(_plain_cluster(f"server-{name}", [address]))
        chains.append(_chain([f"{name}.server.{datacenter}.consul"], f"server-{name}", access_log))
    for remote, addresses in remotes.items():
        clusters.append(_plain_cluster(f"gateway-{remote}", addresses))
        names = [f"server.{remote}.consul", f"*.server.{remote}.consul"]
        if trust_domain:
            names.append(f"*.{remote}.internal.{trust_domain}")
        chains.append(_chain(names, f"gateway-{remote}", access_log))
    for service, addresses in (services or {}).items() if trust_domain else ():
        clusters.append(_plain_cluster(f"service-{service}", addresses))
        name = sni(service, datacenter, trust_domain)
        chains.append(_chain([name], f"service-{service}", access_log))
    inspector = f"{_FILTERS}.listener.tls_inspector.v3.TlsInspector"
    listeners = [
        {
            "name": name,
            "address": _socket(address),
            "listener_filters": [_typed("tls_inspector", inspector)],
            "filter_chains": chains,
        }
        for name, address in listen.items()
    ]
    return {"lds": listeners, "cds": clusters}


def _chain(server_names: list[str], cluster: str, access_log: str) -> Resource:
    proxy = _typed(
        "tcp_proxy",
        f"{_FILTERS}.network.tcp_proxy.v3.TcpProxy",
        stat_prefix=cluster,
        cluster=cluster,
        idle_timeout="0s",  # a blocking query between servers is silent for minutes
        access_log=_access_log(
            access_log,
            "%START_TIME% sni=%REQUESTED_SERVER_NAME% to=%UPSTREAM_HOST% "
            "flags=%RESPONSE_FLAGS% in=%BYTES_RECEIVED% out=%BYTES_SENT% ms=%DURATION%\n",
        ),
    )
    return {"filter_chain_match": {"server_names": server_names}, "filters": [proxy]}


# A sidecar


def inbound(
    listen: Address,
    application: Address,
    intentions: Iterable[Intention],
    trust_domain: str,
    directory: str,
    *,
    allow_by_default: bool = False,
    access_log: str = "",
) -> dict[str, list[Resource]]:
    """
    What others dial: mutual TLS, then the intentions, then the application.

    A caller without a certificate of the mesh is cut off; one that the
    intentions deny gets a 403.
    """
    rules = _rbac(list(intentions), trust_domain, allow_by_default=allow_by_default)
    manager = _http_manager(
        "inbound",
        _route("application", timeout="15s"),
        filters=[_typed("rbac", f"{_FILTERS}.http.rbac.v3.RBAC", rules=rules)],
        access_log=_access_log(
            access_log,
            "%START_TIME% %REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_CODE_DETAILS% "
            "from=%DOWNSTREAM_PEER_URI_SAN% ms=%DURATION%\n",
        ),
        forward_client_cert_details="SANITIZE_SET",
        set_current_client_cert_details={"uri": True},
    )
    tls = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    listener = {
        "name": "inbound",
        "address": _socket(listen),
        "filter_chains": [
            {
                "filters": [manager],
                "transport_socket": _typed(
                    "tls",
                    tls,
                    require_client_certificate=True,
                    common_tls_context=_tls_context(directory),
                ),
            }
        ],
    }
    return {"lds": [listener], "cds": [_plain_cluster("application", [application])]}


def outbound(upstream: Upstream, trust_domain: str, directory: str) -> dict[str, list[Resource]]:
    """
    What the sidecar's own application dials to reach another service.

    The targets are tried in order: the next one answers while the health
    checks of those before it fail.
    """
    members = [_target_cluster(t, trust_domain, directory) for t in upstream.targets]
    name = f"{upstream.service}:{upstream.listen[1]}"
    prefix = f"{upstream.listen[1]}/"
    for member in members:
        member["name"] = prefix + member["name"]
    aggregate = {
        "name": name,
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": _typed(
            "envoy.clusters.aggregate",
            "envoy.extensions.clusters.aggregate.v3.ClusterConfig",
            clusters=[m["name"] for m in members],
        ),
    }
    retry = {"retry_on": "connect-failure,refused-stream,reset,gateway-error", "num_retries": 2}
    manager = _http_manager(name, _route(name, timeout="5s", retry_policy=retry), filters=[])
    listener = {
        "name": name,
        "address": _socket(upstream.listen),
        "filter_chains": [{"filters": [manager]}],
    }
    return {"lds": [listener], "cds": [*members, aggregate]}


def _target_cluster(target: Target, trust_domain: str, directory: str) -> Resource:
    identity = spiffe_id(target.service, target.datacenter, trust_domain)
    return _plain_cluster(target.cluster, target.endpoints, connect_timeout="0.5s") | {
        "transport_socket": _typed(
            "tls",
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            sni=sni(target.service, target.datacenter, trust_domain),
            common_tls_context=_tls_context(directory, identity),
        ),
        "health_checks": [
            {
                "timeout": "0.5s",
                "interval": "0.5s",
                "no_traffic_interval": "0.5s",
                "unhealthy_threshold": 2,
                "healthy_threshold": 1,
                "http_health_check": {
                    "host": target.service,
                    "path": target.health_path,
                    # A sidecar that denies this caller lives: the caller is to see its 403.
                    "expected_statuses": [{"start": 200, "end": 300}, {"start": 403, "end": 404}],
                },
            }
        ],
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }


def _rbac(intentions: list[Intention], trust_domain: str, *, allow_by_default: bool) -> Resource:
    """
    Envoy's rules for intentions that stand in order of precedence, the strongest first.

    Envoy takes its rules in no order, so each rule leaves out whom a stronger
    one of the opposite kind has named.
    """
    policies = {}
    for position, intention in enumerate(intentions):
        if intention.allow == allow_by_default:
            continue
        ids = [_principal(intention.source, trust_domain)]
        ids += [
            {"not_id": _principal(stronger.source, trust_domain)}
            for stronger in intentions[:position]
            if stronger.allow != intention.allow
        ]
        policies[f"{position:03}-{intention.source}"] = {
            "permissions": [{"any": True}],
            "principals": [{"and_ids": {"ids": ids}}],
        }
    return {"action": "DENY" if allow_by_default else "ALLOW", "policies": policies}


def _principal(source: str, trust_domain: str) -> Resource:
    service = "[^/]+" if source == "*" else re.escape(source)
    pattern = f"spiffe://{re.escape(trust_domain)}/ns/default/dc/[^/]+/svc/{service}"
    return {"authenticated": {"principal_name": {"safe_regex": {"regex": pattern}}}}


# Parts


def _plain_cluster(
    name: str, endpoints: Iterable[Address], connect_timeout: str = "2s"
) -> Resource:
    members = [{"endpoint": {"address": _socket(address)}} for address in endpoints]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": connect_timeout,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": members}]},
        "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 10}},
    }


def _http_manager(name: str, route: Resource, filters: list[Resource], **more: Any) -> Resource:
    hosts = [{"name": name, "domains": ["*"], "routes": [route]}]
    return _typed(
        "http_connection_manager",
        f"{_FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        # Clusters come from a file of their own, which may be read a moment later.
        route_config={"virtual_hosts": hosts, "validate_clusters": False},
        http_filters=[*filters, _typed("router", f"{_FILTERS}.http.router.v3.Router")],
        **more,
    )


def _route(cluster: str, **action: Any) -> Resource:
    return {"match": {"prefix": "/"}, "route": {"cluster": cluster, **action}}


def _tls_context(directory: str, identity: str = "") -> Resource:
    context: Resource = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificate_sds_secret_configs": [_secret(directory, "leaf")],
    }
    if not identity:
        return context | {"validation_context_sds_secret_config": _secret(directory, "roots")}
    matcher = {"san_type": "URI", "matcher": {"exact": identity}}
    return context | {
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [matcher]},
            "validation_context_sds_secret_config": _secret(directory, "roots"),
        }
    }


def _secret(directory: str, kind: str) -> Resource:
    return {"name": kind, "sds_config": _file(directory, kind)}


def _file(directory: str, kind: str) -> Resource:
    source = {"path": f"{directory}/{kind}.json", "watched_directory": {"path": directory}}
    return {"path_config_source": source, "resource_api_version": "V3"}


def _access_log(path: str, line: str) -> list[Resource]:
    if not path:
        return []
    formatted = {"text_format_source": {"inline_string": line}}
    kind = "envoy.extensions.access_loggers.file.v3.FileAccessLog"
    return [_typed("file", kind, path=path, log_format=formatted)]


def _socket(address: Address) -> Resource:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def _typed(name: str, kind: str, **config: Any) -> Resource:
    return {"name": name, "typed_config": {"@type": _TYPE + kind, **config}}
