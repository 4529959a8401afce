"""A sidecar's Envoy: mutual TLS and intentions on the way in, failover on the way out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from deployments.lab.envoy_resources import (
    FILTERS,
    Address,
    Resource,
    access_log_to,
    plain_cluster,
    sni,
    socket_of,
    spiffe_id,
    typed,
    xds_source,
)


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


def inbound(
    listen: Address,
    application: Address,
    intentions: Iterable[Intention],
    trust_domain: str,
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
        filters=[typed("rbac", f"{FILTERS}.http.rbac.v3.RBAC", rules=rules)],
        access_log=access_log_to(
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
        "address": socket_of(listen),
        "filter_chains": [
            {
                "filters": [manager],
                "transport_socket": typed(
                    "tls",
                    tls,
                    require_client_certificate=True,
                    common_tls_context=_tls_context(),
                ),
            }
        ],
    }
    return {"lds": [listener], "cds": [plain_cluster("application", [application])]}


def outbound(upstream: Upstream, trust_domain: str) -> dict[str, list[Resource]]:
    """
    What the sidecar's own application dials to reach another service.

    The targets are tried in order: the next one answers while the health
    checks of those before it fail.
    """
    members = [_target_cluster(t, trust_domain) for t in upstream.targets]
    name = f"{upstream.service}:{upstream.listen[1]}"
    prefix = f"{upstream.listen[1]}/"
    for member in members:
        member["name"] = prefix + member["name"]
    aggregate = {
        "name": name,
        "connect_timeout": "1s",
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": typed(
            "envoy.clusters.aggregate",
            "envoy.extensions.clusters.aggregate.v3.ClusterConfig",
            clusters=[m["name"] for m in members],
        ),
    }
    retry = {"retry_on": "connect-failure,refused-stream,reset,gateway-error", "num_retries": 2}
    manager = _http_manager(name, _route(name, timeout="5s", retry_policy=retry), filters=[])
    listener = {
        "name": name,
        "address": socket_of(upstream.listen),
        "filter_chains": [{"filters": [manager]}],
    }
    return {"lds": [listener], "cds": [*members, aggregate]}


def _target_cluster(target: Target, trust_domain: str) -> Resource:
    identity = spiffe_id(target.service, target.datacenter, trust_domain)
    return plain_cluster(target.cluster, target.endpoints, connect_timeout="0.5s") | {
        "transport_socket": typed(
            "tls",
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            sni=sni(target.service, target.datacenter, trust_domain),
            common_tls_context=_tls_context(identity),
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


def _http_manager(name: str, route: Resource, filters: list[Resource], **more: Any) -> Resource:
    hosts = [{"name": name, "domains": ["*"], "routes": [route]}]
    return typed(
        "http_connection_manager",
        f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        # Clusters come from a file of their own, which may be read a moment later.
        route_config={"virtual_hosts": hosts, "validate_clusters": False},
        http_filters=[*filters, typed("router", f"{FILTERS}.http.router.v3.Router")],
        **more,
    )


def _route(cluster: str, **action: Any) -> Resource:
    return {"match": {"prefix": "/"}, "route": {"cluster": cluster, **action}}


def _tls_context(identity: str = "") -> Resource:
    context: Resource = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificate_sds_secret_configs": [_secret("leaf")],
    }
    if not identity:
        return context | {"validation_context_sds_secret_config": _secret("roots")}
    matcher = {"san_type": "URI", "matcher": {"exact": identity}}
    return context | {
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [matcher]},
            "validation_context_sds_secret_config": _secret("roots"),
        }
    }


def _secret(kind: str) -> Resource:
    return {"name": kind, "sds_config": xds_source()}
