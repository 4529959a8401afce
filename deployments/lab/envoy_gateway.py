"""A mesh gateway's Envoy: it reads the server name and passes TLS on, unopened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from deployments.lab.envoy_resources import (
    FILTERS,
    Address,
    Resource,
    access_log_to,
    plain_cluster,
    sni,
    socket_of,
    typed,
)


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
    A gateway's listeners and clusters.

    Servers are routed as soon as it runs; services once the trust domain is known.
    `listen` and `servers` are by name, `remotes` (WAN gateways) by datacenter.
    """
    clusters = [plain_cluster("local-servers", servers.values())]
    chains = [_chain([f"server.{datacenter}.consul"], "local-servers", access_log)]
    for name, address in servers.items():
        clusters.append(plain_cluster(f"server-{name}", [address]))
        chains.append(_chain([f"{name}.server.{datacenter}.consul"], f"server-{name}", access_log))
    for remote, addresses in remotes.items():
        clusters.append(plain_cluster(f"gateway-{remote}", addresses))
        names = [f"server.{remote}.consul", f"*.server.{remote}.consul"]
        if trust_domain:
            names.append(f"*.{remote}.internal.{trust_domain}")
        chains.append(_chain(names, f"gateway-{remote}", access_log))
    for service, addresses in (services or {}).items() if trust_domain else ():
        clusters.append(plain_cluster(f"service-{service}", addresses))
        name = sni(service, datacenter, trust_domain)
        chains.append(_chain([name], f"service-{service}", access_log))
    inspector = f"{FILTERS}.listener.tls_inspector.v3.TlsInspector"
    listeners = [
        {
            "name": name,
            "address": socket_of(address),
            "listener_filters": [typed("tls_inspector", inspector)],
            "filter_chains": chains,
        }
        for name, address in listen.items()
    ]
    return {"lds": listeners, "cds": clusters}


def _chain(server_names: list[str], cluster: str, access_log: str) -> Resource:
    proxy = typed(
        "tcp_proxy",
        f"{FILTERS}.network.tcp_proxy.v3.TcpProxy",
        stat_prefix=cluster,
        cluster=cluster,
        idle_timeout="0s",  # a blocking query between servers is silent for minutes
        access_log=access_log_to(
            access_log,
            "%START_TIME% sni=%REQUESTED_SERVER_NAME% to=%UPSTREAM_HOST% "
            "flags=%RESPONSE_FLAGS% in=%BYTES_RECEIVED% out=%BYTES_SENT% ms=%DURATION%\n",
        ),
    )
    return {"filter_chain_match": {"server_names": server_names}, "filters": [proxy]}
