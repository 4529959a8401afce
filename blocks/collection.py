"""
All blocks at once, for who looks for block types: Prefect, and `prefect block register -m`.

`blocks` itself imports each only when it is asked for.
"""

from blocks import (
    AwsAccount,
    AwsSecretStore,
    BlockStore,
    ConsulDatacenter,
    FileStore,
    HostAccess,
    MeshTopology,
    PromptStore,
    ProxmoxCluster,
    ShareHolder,
    VaultCluster,
)

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
