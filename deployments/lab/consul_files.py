"""
What a Consul agent of the lab has in `/etc/consul.d`: pure, one dict a file.

The gossip key is the only secret among them, in a file of its own. Tokens come
through the agent's API, which keeps them in its data directory.
"""

from __future__ import annotations

import uuid
from typing import Any

from deployments.lab.layout import (
    CA_PATH,
    CONSUL_DNS_PORT,
    CONSUL_HTTPS_PORT,
    GATEWAY_PORT,
    PRIMARY,
    LabHost,
    LabService,
    Layout,
    certificate_path,
    key_path,
)

CONFIG_DIR = "/etc/consul.d"
DATA_DIR = "/opt/consul"
GOSSIP_FILE = "gossip.json"
CA_CONFIG = "connect-ca.json"  # a server's CA configuration, which only its first start would read

# Everything is on one machine: failures are noticed in about a second. A change is told
# `retransmit_mult` times in all to so few members, by default 4 times among 6 servers. Then a
# server can miss that another's ACLs are ready, and the secondary's leader stays in legacy ACL
# mode, without replication, until the next full exchange: 55 s and more after a power cut.
# A new leader waits until it has told its own change as often, so more is no better; a
# shorter interval is paid for all the time (20 ms: most of a processor).
_GOSSIP_LAN = {
    "gossip_interval": "100ms",
    "retransmit_mult": 8,
    "probe_interval": "300ms",
    "probe_timeout": "150ms",
    "suspicion_mult": 3,
}
# Across the WAN nobody is taken for failed in a hurry: until a new secondary's gateway is
# registered the primary's answers do not get there, and who failed is asked again after 30 s only.
_GOSSIP_WAN = {"gossip_interval": "100ms", "retransmit_mult": 12}


def files(layout: Layout, host: LabHost, gossip_key: str) -> dict[str, dict[str, Any]]:
    """Every file of a host's `/etc/consul.d` by name."""
    made = {"consul.json": agent(layout, host), GOSSIP_FILE: {"encrypt": gossip_key}}
    if "consul-server" in host.roles:
        made["server.json"] = server(layout, host)
        # Without a provider: day 0 begins with Consul's own, and has no token for Vault yet.
        made[CA_CONFIG] = {"connect": {"ca_config": {"token": ""}}}
    if "gateway" in host.roles:
        made["mesh-gateway.json"] = gateway_registration(host)
    for service in host.services:
        made[f"{service.name}.json"] = service_registration(host, service)
    return made


def node_id(layout: Layout, host: LabHost) -> str:
    """A node's ID, the same however often its disk is rendered, and no other lab's."""
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{host.name}.{layout.network}.mesh-lab"))


def agent(layout: Layout, host: LabHost) -> dict[str, Any]:
    """What every agent needs, server or client."""
    root = layout.root(host.name)
    servers = layout.with_role("consul-server", host.datacenter)
    return {
        "datacenter": host.datacenter,
        "primary_datacenter": PRIMARY,
        "node_name": host.name,
        "node_id": node_id(layout, host),
        "data_dir": f"{root}{DATA_DIR}",
        "bind_addr": host.address,
        "client_addr": host.address,
        "advertise_addr": host.address,
        "retry_join": [s.address for s in servers if s != host],
        "retry_interval": "1s",
        "ca_file": f"{root}{CA_PATH}",
        "cert_file": f"{root}{certificate_path('consul')}",
        "key_file": f"{root}{key_path('consul')}",
        # RPC between agents is mutual TLS; the HTTPS API asks for a token, not a certificate.
        "verify_incoming_rpc": True,
        "verify_outgoing": True,
        "verify_server_hostname": True,
        "ports": {"http": -1, "https": CONSUL_HTTPS_PORT, "dns": CONSUL_DNS_PORT},
        "gossip_lan": _GOSSIP_LAN,
        # A host that stops is a failure to notice, not a member that took leave.
        "leave_on_terminate": False,
        "disable_update_check": True,
        "acl": {
            "enabled": True,
            "default_policy": "deny",
            "down_policy": "extend-cache",
            "enable_token_persistence": True,
        },
        # All of a lab's clients come from one address.
        "limits": {"http_max_conns_per_client": 1000, "rpc_max_conns_per_client": 1000},
    }


def server(layout: Layout, host: LabHost) -> dict[str, Any]:
    """What makes an agent a server, of the primary or of a federated secondary."""
    made: dict[str, Any] = {
        "server": True,
        "bootstrap_expect": len(layout.with_role("consul-server", host.datacenter)),
        "performance": {"raft_multiplier": 1},
        "gossip_wan": _GOSSIP_WAN,
        "autopilot": {"server_stabilization_time": "2s"},
        "connect": {"enabled": True, "enable_mesh_gateway_wan_federation": True},
        "acl": {"enable_token_replication": True},
    }
    if host.datacenter != PRIMARY:
        # Joining over the WAN is the gateways' business: never `retry_join_wan` beside this.
        made["primary_gateways"] = [
            f"{g.wan_address}:{GATEWAY_PORT}" for g in layout.with_role("gateway", PRIMARY)
        ]
        made["primary_gateways_interval"] = "1s"
        made["retry_interval_wan"] = "1s"
    return made


def gateway_registration(host: LabHost) -> dict[str, Any]:
    """A mesh gateway that carries the federation of servers too."""
    lan, wan = host.address, host.wan_address
    return {
        "service": {
            "id": "mesh-gateway",
            "name": "mesh-gateway",
            "kind": "mesh-gateway",
            "address": lan,
            "port": GATEWAY_PORT,
            "meta": {"consul-wan-federation": "1"},
            "tagged_addresses": {
                "lan": {"address": lan, "port": GATEWAY_PORT},
                "wan": {"address": wan, "port": GATEWAY_PORT},
            },
            "checks": [_tcp_check("mesh-gateway listening", lan, GATEWAY_PORT)],
        }
    }


def service_registration(host: LabHost, service: LabService) -> dict[str, Any]:
    """One service instance with its sidecar, checked every second."""
    upstreams = [
        {
            "destination_name": name,
            "local_bind_address": host.address,
            "local_bind_port": port,
            **({"datacenter": datacenter} if datacenter else {}),
        }
        for name, port, datacenter in service.upstreams
    ]
    return {
        "service": {
            "id": service.name,
            "name": service.name,
            "address": host.address,
            "port": service.port,
            "checks": [
                {
                    "name": f"{service.name} answers",
                    "http": f"http://{host.address}:{service.port}/health",
                    "interval": "1s",
                    "timeout": "1s",
                }
            ],
            "connect": {
                "sidecar_service": {
                    "address": host.address,
                    "port": service.sidecar_port,
                    "proxy": {"mesh_gateway": {"mode": "local"}, "upstreams": upstreams},
                    "checks": [
                        _tcp_check("sidecar listening", host.address, service.sidecar_port),
                        {"name": f"{service.name} behind it", "alias_service": service.name},
                    ],
                }
            },
        }
    }


def _tcp_check(name: str, address: str, port: int) -> dict[str, Any]:
    return {"name": name, "tcp": f"{address}:{port}", "interval": "1s", "timeout": "1s"}
