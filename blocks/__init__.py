"""
What exists in the mesh and how to reach it.

The blocks are imported when they are first asked for: `blocks.errors` and
`blocks.topology` must cost nothing but themselves.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blocks.aws import AwsAccount
    from blocks.consul import ConsulDatacenter
    from blocks.keys import FileStore
    from blocks.keys_aws import AwsSecretStore
    from blocks.keys_block import BlockStore, ShareHolder
    from blocks.keys_prompt import PromptStore
    from blocks.meshes import MeshTopology
    from blocks.proxmox import ProxmoxCluster
    from blocks.ssh import HostAccess
    from blocks.vault import VaultCluster

_HOMES = {
    "AwsAccount": "aws",
    "AwsSecretStore": "keys_aws",
    "BlockStore": "keys_block",
    "ConsulDatacenter": "consul",
    "FileStore": "keys",
    "HostAccess": "ssh",
    "MeshTopology": "meshes",
    "PromptStore": "keys_prompt",
    "ProxmoxCluster": "proxmox",
    "ShareHolder": "keys_block",
    "VaultCluster": "vault",
}

__all__ = [
    "AwsAccount",
    "AwsSecretStore",
    "BlockStore",
    "ConsulDatacenter",
    "FileStore",
    "HostAccess",
    "MeshTopology",
    "PromptStore",
    "ProxmoxCluster",
    "ShareHolder",
    "VaultCluster",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
