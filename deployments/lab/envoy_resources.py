"""
Envoy's resources, as xDS takes them: what gateways and sidecars share.

Consul 1.8 speaks xDS v2 only, which Envoy gave up, so the lab renders these
itself from what the local agent answers. Names are those of Consul: a service
`web` in `us-east-1` is `web.default.us-east-1.internal.<trust domain>` as SNI
and `spiffe://<trust domain>/ns/default/dc/us-east-1/svc/web` as identity.
Pure, and the standard library only: the data plane runs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Resource = dict[str, Any]
Address = tuple[str, int]

_TYPE = "type.googleapis.com/"
FILTERS = "envoy.extensions.filters"
XDS_CLUSTER = "dataplane"
HOLD_SECONDS = 50  # how long a request may wait for something new
TYPES = {
    "lds": f"{_TYPE}envoy.config.listener.v3.Listener",
    "cds": f"{_TYPE}envoy.config.cluster.v3.Cluster",
    "leaf": f"{_TYPE}envoy.extensions.transport_sockets.tls.v3.Secret",
    "roots": f"{_TYPE}envoy.extensions.transport_sockets.tls.v3.Secret",
}


def sni(service: str, datacenter: str, trust_domain: str) -> str:
    """The server name that gateways route a service's traffic by."""
    return f"{service}.default.{datacenter}.internal.{trust_domain}"


def spiffe_id(service: str, datacenter: str, trust_domain: str) -> str:
    """The identity in a service's leaf certificate."""
    return f"spiffe://{trust_domain}/ns/default/dc/{datacenter}/svc/{service}"


def bootstrap(node: str, cluster: str, admin: Address, socket: str) -> Resource:
    """What Envoy starts with: everything else it asks for at a Unix socket."""
    return {
        "node": {"id": node, "cluster": cluster},
        "admin": {"address": socket_of(admin)},
        "static_resources": {
            "clusters": [
                {
                    "name": XDS_CLUSTER,
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": {
                        "cluster_name": XDS_CLUSTER,
                        "endpoints": [
                            {
                                "lb_endpoints": [
                                    {"endpoint": {"address": {"pipe": {"path": socket}}}}
                                ]
                            }
                        ],
                    },
                }
            ]
        },
        "dynamic_resources": {"lds_config": xds_source(), "cds_config": xds_source()},
    }


def plain_cluster(name: str, endpoints: Iterable[Address], connect_timeout: str = "2s") -> Resource:
    """Fixed endpoints, nothing more."""
    members = [{"endpoint": {"address": socket_of(address)}} for address in endpoints]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": connect_timeout,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": members}]},
        "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 10}},
    }


def xds_source() -> Resource:
    """Where Envoy asks for its resources; it asks again as soon as it is answered."""
    return {
        "api_config_source": {
            "api_type": "REST",
            "transport_api_version": "V3",
            "cluster_names": [XDS_CLUSTER],
            "refresh_delay": "0.02s",
            "request_timeout": f"{HOLD_SECONDS + 10}s",
        },
        "resource_api_version": "V3",
    }


def access_log_to(path: str, line: str) -> list[Resource]:
    """A line a connection or request into a file; none without a path."""
    if not path:
        return []
    formatted = {"text_format_source": {"inline_string": line}}
    kind = "envoy.extensions.access_loggers.file.v3.FileAccessLog"
    return [typed("file", kind, path=path, log_format=formatted)]


def socket_of(address: Address) -> Resource:
    """An address as Envoy writes it."""
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def typed(name: str, kind: str, **config: Any) -> Resource:
    """A configuration with the name of its type."""
    return {"name": name, "typed_config": {"@type": _TYPE + kind, **config}}
