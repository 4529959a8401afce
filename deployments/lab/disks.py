"""
Rendering the hosts' disks: what an image and its provisioning put on a machine.

Configuration, units, server certificates and the gossip key; no token, no
Vault data, nothing that a runbook is to make.
"""

from __future__ import annotations

import base64
import json
import secrets
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deployments.lab import binaries, consul_files, vault_files
from deployments.lab.layout import (
    CA_PATH,
    CONSUL_HTTPS_PORT,
    CONSUL_RPC_PORT,
    DATACENTERS,
    GATEWAY_PORT,
    UNIT_DIR,
    LabHost,
    LabService,
    Layout,
    certificate_path,
    key_path,
)
from deployments.lab.pki import Authority, server_names

DATAPLANE_DIR = "/etc/mesh/dataplane"
RUN_DIR = "/run/mesh"
LOG_DIR = "/var/log"
ENABLED_UNITS = ("vault",)  # a sealed Vault does no harm; Consul waits for an open one


def render(layout: Layout) -> None:
    """
    Write the disk of every host of the lab, and the operator's CA below `layout.pki`.

    What servers keep on their disks is not touched. The CA and the gossip key
    stay as they are if they exist, on each host too; certificates and files are made anew.
    """
    if layout.ca_file.exists():
        authority = Authority.load(layout.pki)
    else:
        authority = Authority.create(layout.pki)
    authority.hand_over(layout.issuing_ca_file)
    gossip_key = _gossip_key(layout.pki / "gossip.key")
    for host in layout.hosts:
        _render_host(layout, host, authority, gossip_key)


def log_path(layout: Layout, host: str, unit: str) -> Path:
    """Where a unit's output goes."""
    return Path(f"{layout.root(host)}{LOG_DIR}/{unit}.log")


def _gossip_key(path: Path) -> str:
    if not path.exists():
        _write(path, base64.b64encode(secrets.token_bytes(32)), 0o400)
    return path.read_text()


def _render_host(layout: Layout, host: LabHost, authority: Authority, gossip_key: str) -> None:
    root = layout.root(host.name)

    def put(path: str, content: str | bytes, mode: int = 0o444) -> None:
        data = content.encode() if isinstance(content, str) else content
        _write(Path(f"{root}{path}"), data, mode)

    server = "vault" if "vault" in host.roles else "consul"
    pair = authority.issue(server_names(layout, host))
    put(CA_PATH, authority.pem)
    put(certificate_path(server), pair.certificate)
    put(key_path(server), pair.key, 0o400)
    if server == "vault":
        put(vault_files.CONFIG_PATH, vault_files.config(layout, host))
        data_dir = vault_files.DATA_DIR
    else:
        for name, content in consul_files.files(layout, host, gossip_key).items():
            path = f"{consul_files.CONFIG_DIR}/{name}"
            if name == consul_files.GOSSIP_FILE:
                # The first key only: from then on the file is the host's, and the key rotates.
                if not Path(f"{root}{path}").exists():
                    put(path, _json(content), 0o400)
            else:
                put(path, _json(content), 0o400 if name == consul_files.CA_CONFIG else 0o444)
        for name, content in _dataplanes(layout, host).items():
            put(f"{DATAPLANE_DIR}/{name}.json", _json(content))
        data_dir = consul_files.DATA_DIR
    for directory in (data_dir, LOG_DIR, RUN_DIR):
        Path(f"{root}{directory}").mkdir(parents=True, exist_ok=True)
    for name, text in _units(layout, host).items():
        put(f"{UNIT_DIR}/{name}.service", text)
        if name in ENABLED_UNITS:
            wanted = Path(f"{root}{UNIT_DIR}/multi-user.target.wants/{name}.service")
            wanted.parent.mkdir(exist_ok=True)
            wanted.unlink(missing_ok=True)
            wanted.symlink_to(f"../{name}.service")


# Units


def _units(layout: Layout, host: LabHost) -> dict[str, str]:
    """Every unit file of a host, by the unit's name."""
    root = layout.root(host.name)
    if "vault" in host.roles:
        command = [str(binaries.bao()), "server", f"-config={root}{vault_files.CONFIG_PATH}"]
        return {"vault": _unit(layout, host, "vault", "Vault", command, reloads=True)}
    command = [str(binaries.consul()), "agent", f"-config-dir={root}{consul_files.CONFIG_DIR}"]
    made = {"consul": _unit(layout, host, "consul", "Consul", command, reloads=True)}
    names = [f"{s.name}-sidecar" for s in host.services]
    for name in ["mesh-gateway"] if "gateway" in host.roles else names:
        config = f"{root}{DATAPLANE_DIR}/{name}.json"
        command = [*_python("dataplane"), config]
        made[name] = _unit(layout, host, name, f"Envoy as {name}", command, after="consul.service")
    for service in host.services:
        command = [*_python("apps"), service.name, f"--address={host.address}"]
        command += [f"--port={service.port}", f"--datacenter={host.datacenter}"]
        command += [f"--host={host.name}"]
        made[service.name] = _unit(layout, host, service.name, service.name, command)
    return made


def _python(module: str) -> list[str]:
    # Isolated: neither the directory it is started in nor PYTHON* variables change what runs.
    return [sys.executable, "-I", "-m", f"deployments.lab.{module}"]


def _unit(
    layout: Layout,
    host: LabHost,
    name: str,
    description: str,
    command: Iterable[str],
    *,
    after: str = "",
    reloads: bool = False,
) -> str:
    lines = [
        "[Unit]",
        f"Description={description} on {host.name}",
        f"After=network-online.target {after}".rstrip(),
        "Wants=network-online.target",
        "",
        "[Service]",
        "Type=simple",
        f"ExecStart={' '.join(command)}",
        *(["ExecReload=/bin/kill -HUP $MAINPID"] if reloads else []),
        "Restart=on-failure",
        "RestartSec=1",
        "TimeoutStopSec=10",
        "LimitNOFILE=65536",
        f"StandardOutput=append:{log_path(layout, host.name, name)}",
        "StandardError=inherit",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


# The data plane's own configuration


def _dataplanes(layout: Layout, host: LabHost) -> dict[str, dict[str, Any]]:
    """What each Envoy of a host is for, by its unit's name."""
    if "gateway" in host.roles:
        return {"mesh-gateway": _gateway(layout, host)}
    return {f"{s.name}-sidecar": _sidecar(layout, host, s) for s in host.services}


def _dataplane(layout: Layout, host: LabHost, name: str, admin_port: int) -> dict[str, Any]:
    root = layout.root(host.name)
    return {
        "name": name,
        "node": host.name,
        "datacenter": host.datacenter,
        "agent": f"https://{host.address}:{CONSUL_HTTPS_PORT}",
        "ca_file": f"{root}{CA_PATH}",
        "envoy": str(binaries.envoy()),
        "directory": f"{root}{RUN_DIR}/{name}",
        "admin": [host.address, admin_port],
        "access_log": f"{root}{LOG_DIR}/{name}-access.log",
    }


def _gateway(layout: Layout, host: LabHost) -> dict[str, Any]:
    servers = layout.with_role("consul-server", host.datacenter)
    return {
        "kind": "mesh-gateway",
        **_dataplane(layout, host, "mesh-gateway", 19000),
        "listen": {
            "lan": [host.address, GATEWAY_PORT],
            "wan": [host.wan_address, GATEWAY_PORT],
        },
        "servers": {s.name: [s.address, CONSUL_RPC_PORT] for s in servers},
        "remotes": {
            dc: [[g.wan_address, GATEWAY_PORT] for g in layout.with_role("gateway", dc)]
            for dc in DATACENTERS
            if dc != host.datacenter
        },
    }


def _sidecar(layout: Layout, host: LabHost, service: LabService) -> dict[str, Any]:
    others = [dc for dc in DATACENTERS if dc != host.datacenter]
    return {
        "kind": "sidecar",
        **_dataplane(layout, host, f"{service.name}-sidecar", service.sidecar_port - 1000),
        "service": service.name,
        "datacenters": [host.datacenter, *others],
        "listen": [host.address, service.sidecar_port],
        "application": [host.address, service.port],
        "upstreams": [
            {"service": name, "listen": [host.address, port], "datacenter": datacenter}
            for name, port, datacenter in service.upstreams
        ],
    }


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _write(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_bytes(data)
    new.chmod(mode)
    new.replace(path)
