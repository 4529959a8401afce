"""The topology document of a lab: what the runbooks are told of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deployments.lab.consul_files import CA_CONFIG, CONFIG_DIR, GOSSIP_FILE
from deployments.lab.layout import (
    CONSUL_HTTPS_PORT,
    DATACENTERS,
    GATEWAY_PORT,
    HOLDER_REGION,
    MESH,
    PRIMARY,
    SECONDARY,
    SSH_PORT,
    VAULT_PORT,
    LabHost,
    LabService,
    Layout,
    certificate_path,
    key_path,
)


def topology(
    layout: Layout, host_keys: Mapping[str, str], *, ssh_user: str = "root"
) -> dict[str, Any]:
    """
    The topology document of a lab, as `blocks.topology.parse` takes it.

    `host_keys` holds each host's public key (`ssh-ed25519 AAAA...`) by name.
    """
    holders = layout.directory / "holders"
    return {
        "name": MESH,
        "primary": PRIMARY,
        "drillable": True,
        "datacenters": [_datacenter(layout, dc, host_keys, ssh_user) for dc in DATACENTERS],
        "vault": {
            "nodes": [h.name for h in layout.with_role("vault")],
            "port": VAULT_PORT,
            "address": layout.vault_url,
            "ca_file": str(layout.ca_file),
            # Consul keeps one path for all servers, and a lab's hosts share one file system.
            "consul_ca_file": str(layout.ca_file),
            "holders": [
                {"name": "ops-a", "store": "file", "shares": 2, "path": str(holders / "ops-a.key")},
                {
                    "name": "ops-b",
                    "store": "aws-secrets-manager",
                    "shares": 2,
                    "secret": f"mesh/{MESH}/unseal/ops-b",
                    "region": HOLDER_REGION,
                    "endpoint_url": layout.aws_url,
                },
                {"name": "ops-c", "store": "file", "shares": 1, "path": str(holders / "ops-c.key")},
            ],
            "credential": {
                "name": "runbooks",
                "store": "file",
                "shares": 1,
                "path": str(holders / "runbooks.key"),
            },
            "issuing_ca": {
                "name": "operator",
                "store": "file",
                "path": str(layout.issuing_ca_file),
            },
            "snapshots": {"directory": str(layout.directory / "snapshots")},
        },
        "services": [_service(h, s) for h in layout.hosts for s in h.services],
        "intentions": [
            {"source": "web-portal", "destination": "payment-processor"},
            {"source": "reporting-agent", "destination": "payment-processor", "action": "deny"},
        ],
        "certificates": [c for h in layout.hosts for c in _certificates(h)],
        "tokens": [*_tokens(), _leased(layout)],
        "journal": str(layout.directory / "journal.jsonl"),
    }


def _datacenter(
    layout: Layout, name: str, host_keys: Mapping[str, str], ssh_user: str
) -> dict[str, Any]:
    cloud: dict[str, Any] = (
        {"kind": "aws", "region": PRIMARY, "endpoint_url": layout.aws_url}
        if name == PRIMARY
        else {
            "kind": "proxmox",
            "address": layout.proxmox_url,
            "ca_file": str(layout.proxmox_ca_file),
        }
    )
    return {
        "name": name,
        "cloud": cloud,
        "hosts": [
            {
                "name": h.name,
                "address": h.address,
                "ssh_port": SSH_PORT,
                "ssh_user": ssh_user,
                "host_key": host_keys[h.name],
                "root": str(layout.root(h.name)),
            }
            for h in layout.in_datacenter(name)
        ],
        "consul": {
            "servers": [h.name for h in layout.with_role("consul-server", name)],
            "https_port": CONSUL_HTTPS_PORT,
            "gossip_file": f"{CONFIG_DIR}/{GOSSIP_FILE}",
            "ca_file": str(layout.ca_file),
            "intermediate_pki_path": f"connect-intermediate-{name}",
            "ca_config_file": f"{CONFIG_DIR}/{CA_CONFIG}",
        },
        "gateways": [
            {
                "host": h.name,
                "lan": f"{h.address}:{GATEWAY_PORT}",
                "wan": f"{h.wan_address}:{GATEWAY_PORT}",
            }
            for h in layout.with_role("gateway", name)
        ],
    }


def _service(host: LabHost, service: LabService) -> dict[str, Any]:
    return {
        "name": service.name,
        "datacenter": host.datacenter,
        "host": host.name,
        "units": list(service.units),
        "port": service.port,
        "sidecar_port": service.sidecar_port,
        "upstreams": [
            {
                "service": name,
                "listen": f"{host.address}:{port}",
                "datacenter": datacenter or None,
            }
            for name, port, datacenter in service.upstreams
        ],
    }


def _tokens() -> list[dict[str, Any]]:
    """
    Tokens of the lab, out of what its day 0 has: identities, one policy, those of its agents, Consul's
    own at Vault, and the gossip key.

    Overlap and soak are as short as the lab's consumers are quick.
    """
    quick = {"kind": "service", "overlap_seconds": 1.5, "soak_seconds": 2.0}
    return [
        *(
            {"role": role, "kind": kind, "soak_seconds": 2.0}
            for role, kind in (
                ("agents", "agent"),
                ("agent-defaults", "default"),
                ("replication", "replication"),
            )
        ),
        {
            "role": "web-portal",
            **quick,
            "service_identities": ["web-portal"],
            "path": "services/web-portal",
            "consumers": ["web-portal"],
            "may": ["leaf sign web-portal", "service read payment-processor"],
            "may_not": ["leaf sign payment-processor", "kv read payments/config"],
        },
        {
            "role": "reporting-agent",
            **quick,
            "policies": ["mesh-catalog-read"],
            "path": "services/reporting-agent",
            "consumers": ["reporting-agent"],
            "may": ["service read payment-processor"],
            "may_not": ["kv write reports/daily", "acl read"],
        },
        {
            "role": "payments-eu",
            **quick,
            "service_identities": ["payment-processor"],
            "datacenters": [SECONDARY],
            "local": True,
            "path": "services/payments-eu",
            "consumers": ["payment-processor"],
            "may": ["leaf sign payment-processor"],
            "may_not": ["leaf sign web-portal", "operator read"],
        },
        {"role": "gossip-key", "kind": "gossip", "path": "consul/gossip", "soak_seconds": 2.0},
        {"role": "consul-ca", "kind": "ca-provider", "soak_seconds": 2.0},
    ]


def _leased(layout: Layout) -> dict[str, Any]:
    """
    A role of the Consul secrets engine, which the lab has in its facade alone.

    Its consumers ask for a credential every second and use it as soon as it is
    replicated: with the overlap none of them is ever cut off.
    """
    return {
        "role": "catalog-reader",
        "kind": "dynamic",
        "mount": "consul",
        "engine_address": layout.facade_url,
        "policies": ["mesh-catalog-read"],
        "consumers": ["reporting-agent"],
        "may": ["service read payment-processor"],
        "may_not": ["kv write reports/daily", "acl read"],
        "ttl_seconds": 10,
        "max_ttl_seconds": 60,
        "overlap_seconds": 3.5,
        "soak_seconds": 2.0,
    }


def _certificates(host: LabHost) -> list[dict[str, str]]:
    server = "vault" if "vault" in host.roles else "consul"
    return [
        {
            "host": host.name,
            "path": certificate_path(server),
            "key_path": key_path(server),
            "used_by": server,
            # Vault cannot renew what it needs itself to serve.
            "issued_by": "operator" if server == "vault" else "vault",
        }
    ]
