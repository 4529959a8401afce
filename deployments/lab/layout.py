"""
Which hosts the lab has, where they answer and what runs on them: pure, no I/O.

A lab is one loopback /16 (`network`, such as `127.77`) and one directory. Each
host has an address of its own in it, so ports are those of a real machine:

    N.0.x    the clouds' APIs and the balancer in front of Vault
    N.1.x    us-east-1, EC2 instances
    N.2.x    eu-west-1, Proxmox VMs
    N.100.x  the addresses that the other datacenter dials (WAN)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

Size = Literal["small", "full"]
Role = Literal["vault", "consul-server", "gateway", "app"]

MESH = "lab"
PRIMARY, SECONDARY = "us-east-1", "eu-west-1"
DATACENTERS = (PRIMARY, SECONDARY)
HOLDER_REGION = "us-west-2"  # a share is kept in another region than the mesh stands in

SSH_PORT = 2222
AWS_PORT = 5000
PROXMOX_PORT = 8006
VAULT_PORT = 8200
VAULT_CLUSTER_PORT = 8201
CONSUL_HTTPS_PORT = 8501
CONSUL_GRPC_PORT = 8502
CONSUL_DNS_PORT = 8600
CONSUL_RPC_PORT = 8300
CONSUL_SERF_LAN_PORT = 8301
CONSUL_SERF_WAN_PORT = 8302
GATEWAY_PORT = 8443

# On a host's disk.
TLS_DIR = "/etc/mesh/tls"
CA_PATH = f"{TLS_DIR}/ca.pem"
UNIT_DIR = "/etc/systemd/system"


@dataclass(frozen=True)
class LabService:
    """One service instance of the lab; `upstreams` are (service, port, datacenter or "")."""

    name: str
    port: int
    sidecar_port: int
    upstreams: tuple[tuple[str, int, str], ...] = ()

    @property
    def units(self) -> tuple[str, str]:
        """The program and its sidecar."""
        return self.name, f"{self.name}-sidecar"


@dataclass(frozen=True)
class LabHost:
    """One machine of the lab."""

    name: str
    datacenter: str
    address: str
    roles: tuple[Role, ...]
    units: tuple[str, ...]
    services: tuple[LabService, ...] = ()
    wan_address: str = field(default="", kw_only=True)  # gateways only

    @property
    def cloud(self) -> Literal["aws", "proxmox"]:
        """What switches it on and off."""
        return "aws" if self.datacenter == PRIMARY else "proxmox"


# payment-processor is asked twice: wherever it answers, and in eu-west-1 alone.
_PORTAL = LabService(
    "web-portal",
    8080,
    20000,
    (("payment-processor", 9191, ""), ("payment-processor", 9192, SECONDARY)),
)
_REPORTING = LabService("reporting-agent", 8081, 20001, (("payment-processor", 9193, ""),))
_PAYMENTS = LabService("payment-processor", 9090, 20000)


@dataclass(frozen=True)
class Layout:
    """A lab of one size at one network and directory; `id` marks its processes."""

    size: Size
    network: str  # "127.77"
    directory: Path  # absolute; the lab's state
    id: str

    @cached_property
    def hosts(self) -> tuple[LabHost, ...]:
        """Every host, those of the primary first."""
        servers = 1 if self.size == "small" else 3
        n = self.network
        us, eu = PRIMARY, SECONDARY

        def app(name: str, dc: str, address: str, *services: LabService) -> LabHost:
            units = tuple(u for s in services for u in s.units)
            return LabHost(name, dc, address, ("app",), ("consul", *units), services)

        def gateway(name: str, dc: str, address: str, wan: str) -> LabHost:
            units = ("consul", "mesh-gateway")
            return LabHost(name, dc, address, ("gateway",), units, wan_address=wan)

        def consul(name: str, dc: str, address: str) -> LabHost:
            return LabHost(name, dc, address, ("consul-server",), ("consul",))

        return (
            *(
                LabHost(f"vault-{i}", us, f"{n}.1.{10 + i}", ("vault",), ("vault",))
                for i in range(1, servers + 1)
            ),
            *(consul(f"us-consul-{i}", us, f"{n}.1.{20 + i}") for i in range(1, servers + 1)),
            gateway("us-gateway-1", us, f"{n}.1.31", f"{n}.100.1"),
            app("us-app-1", us, f"{n}.1.41", _PORTAL, _REPORTING),
            app("us-app-2", us, f"{n}.1.42", _PAYMENTS),
            *(consul(f"eu-consul-{i}", eu, f"{n}.2.{20 + i}") for i in range(1, servers + 1)),
            gateway("eu-gateway-1", eu, f"{n}.2.31", f"{n}.100.2"),
            app("eu-app-1", eu, f"{n}.2.42", _PAYMENTS),
        )

    def host(self, name: str) -> LabHost:
        """One host by name; `KeyError` if the lab has none such."""
        return {h.name: h for h in self.hosts}[name]

    def in_datacenter(self, datacenter: str) -> tuple[LabHost, ...]:
        """The hosts of one datacenter."""
        return tuple(h for h in self.hosts if h.datacenter == datacenter)

    def with_role(self, role: Role, datacenter: str = "") -> tuple[LabHost, ...]:
        """The hosts with one role, in one datacenter or in all."""
        return tuple(h for h in self.hosts if role in h.roles and datacenter in {"", h.datacenter})

    def root(self, host: str) -> Path:
        """Where a host's file system starts."""
        return self.directory / "hosts" / host

    @property
    def pki(self) -> Path:
        """The operator's own keys and the lab's CAs."""
        return self.directory / "pki"

    @property
    def ca_file(self) -> Path:
        """The operator CA's certificate, which signed Vault's and Consul's."""
        return self.pki / "ca.pem"

    @property
    def issuing_ca_file(self) -> Path:
        """The operator CA with its key, as Vault takes it to renew certificates by itself."""
        return self.pki / "issuing-ca.json"

    @property
    def proxmox_ca_file(self) -> Path:
        """The CA of the Proxmox API: a cluster has its own, and so has the lab's."""
        return self.pki / "proxmox" / "ca.pem"

    @property
    def operator_key(self) -> Path:
        """The private key that every host's sshd accepts."""
        return self.pki / "operator_ed25519"

    @property
    def aws_address(self) -> str:
        """Address of the AWS API, port `AWS_PORT`, plain HTTP."""
        return f"{self.network}.0.10"

    @property
    def aws_url(self) -> str:
        """Base URL of the AWS API."""
        return f"http://{self.aws_address}:{AWS_PORT}"

    @property
    def proxmox_address(self) -> str:
        """Address of the Proxmox API, port `PROXMOX_PORT`, HTTPS."""
        return f"{self.network}.0.20"

    @property
    def proxmox_url(self) -> str:
        """Base URL of the Proxmox API."""
        return f"https://{self.proxmox_address}:{PROXMOX_PORT}"

    @property
    def vault_balancer(self) -> str:
        """
        Address of the balancer that passes TLS through to Vault's active node.

        Part of the cloud (as an NLB is), so no power cut takes it. Vault's
        certificates need it among their names.
        """
        return f"{self.network}.0.30"

    @property
    def vault_url(self) -> str:
        """URL that Consul's CA provider uses; follows the active node."""
        return f"https://{self.vault_balancer}:{VAULT_PORT}"

    @property
    def facade_address(self) -> str:
        """
        Address of the facade in front of Vault, port `VAULT_PORT`, HTTPS.

        It adds the Consul secrets engine, which OpenBao has not (see `facade`).
        """
        return f"{self.network}.0.40"

    @property
    def facade_url(self) -> str:
        """Base URL of the facade."""
        return f"https://{self.facade_address}:{VAULT_PORT}"


def certificate_path(server: str) -> str:
    """Where a host keeps the certificate of its `vault` or `consul`."""
    return f"{TLS_DIR}/{server}.pem"


def key_path(server: str) -> str:
    """Where a host keeps the key of that certificate."""
    return f"{TLS_DIR}/{server}-key.pem"
