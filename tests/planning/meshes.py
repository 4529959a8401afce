"""Topologies of the planning tests, built rather than read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from blocks.topology import Mesh, parse

NOW = datetime(2025, 3, 14, 3, 12, 41, tzinfo=UTC)


def document(
    *, servers: int = 3, apps: int = 1, secondaries: int = 1, **vault: Any
) -> dict[str, Any]:
    """A mesh like the lab's: Vault in the primary, gateways in every datacenter."""
    names = ["us-east-1", "eu-west-1", *(f"dc-{n}" for n in range(3, secondaries + 2))]
    datacenters = []
    services: list[dict[str, Any]] = []
    for number, name in enumerate(names[: secondaries + 1], 1):
        short = name.partition("-")[0] if number < 3 else name

        def host(name: str, octet: int, *, number: int = number) -> dict[str, Any]:
            address = f"10.{number}.{octet // 250}.{octet % 250 + 1}"
            return {"name": name, "address": address, "host_key": f"ssh-ed25519 {name}"}

        hosts = [host(f"vault-{n}", n) for n in range(1, servers + 1)] if number == 1 else []
        consul = [f"{short}-consul-{n}" for n in range(1, servers + 1)]
        hosts += [host(n, 20 + i) for i, n in enumerate(consul)]
        hosts += [host(f"{short}-gateway-1", 31)]
        hosts += [host(f"{short}-app-{n}", 40 + n) for n in range(1, apps + 1)]
        for n in range(1, apps + 1):
            services.append(
                {
                    "name": "payment-processor",
                    "datacenter": name,
                    "host": f"{short}-app-{n}",
                    "units": ["payment-processor", "payment-processor-sidecar"],
                    "port": 9000,
                }
            )
        cloud = (
            {"kind": "aws", "region": name}
            if number == 1
            else {"kind": "proxmox", "address": "https://pve.example:8006"}
        )
        datacenters.append(
            {
                "name": name,
                "cloud": cloud,
                "hosts": hosts,
                "consul": {"servers": consul, "intermediate_pki_path": f"connect-{name}"},
                "gateways": [
                    {
                        "host": f"{short}-gateway-1",
                        "lan": f"10.{number}.0.32:8443",
                        "wan": f"198.51.100.{number}:8443",
                    }
                ],
            }
        )
    caller = {"datacenter": "us-east-1", "host": "us-app-1"}
    services += [
        {
            "name": "web-portal",
            **caller,
            "units": ["web-portal", "web-portal-sidecar"],
            "port": 9001,
            "sidecar_port": 20001,
            "upstreams": [{"service": "payment-processor", "listen": "127.0.0.1:9191"}],
        },
        {
            "name": "reporting-agent",
            **caller,
            "units": ["reporting-agent", "reporting-agent-sidecar"],
            "port": 9002,
            "sidecar_port": 20002,
            "upstreams": [{"service": "payment-processor", "listen": "127.0.0.1:9192"}],
        },
    ]
    return {
        "name": "acme",
        "primary": "us-east-1",
        "datacenters": datacenters,
        "vault": {
            "nodes": [f"vault-{n}" for n in range(1, servers + 1)],
            "address": "https://10.1.0.2:8200",
            "holders": [
                {"name": "ops-a", "store": "file", "path": "a.key", "shares": 2},
                {"name": "ops-b", "store": "aws-secrets-manager", "secret": "b", "shares": 2},
                {"name": "ops-c", "store": "block", "block": "c", "shares": 1},
            ],
            "credential": {"name": "runbook", "store": "file", "path": "approle", "shares": 1},
            **vault,
        },
        "services": services,
        "intentions": [
            {"source": "web-portal", "destination": "payment-processor"},
            {"source": "reporting-agent", "destination": "payment-processor", "action": "deny"},
        ],
        "certificates": [
            {
                "host": "us-consul-1",
                "path": "/etc/mesh/tls/consul.pem",
                "key_path": "/etc/mesh/tls/consul.key",
                "used_by": "consul",
                "issued_by": "vault",
            },
            {
                "host": "vault-1",
                "path": "/etc/mesh/tls/vault.pem",
                "key_path": "/etc/mesh/tls/vault.key",
                "used_by": "vault",
            },
        ],
        "components": [
            {
                "name": "prefect-db",
                "host": "us-app-1",
                "units": ["postgresql"],
            },
            {
                "name": "prefect-server",
                "host": "us-app-1",
                "units": ["prefect-server"],
                "needs": ["component:prefect-db", "dns:consul"],
                "url": "http://10.1.0.42:4200/api/health",
            },
        ],
    }


def mesh(**options: Any) -> Mesh:
    """The same, parsed."""
    return parse(document(**options))
