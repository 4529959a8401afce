"""What a Vault node of the lab has on its disk: pure text, no secrets."""

from __future__ import annotations

from dataclasses import dataclass

from deployments.lab.layout import (
    CA_PATH,
    VAULT_CLUSTER_PORT,
    VAULT_PORT,
    LabHost,
    Layout,
    certificate_path,
    key_path,
)

CONFIG_PATH = "/etc/vault.d/vault.hcl"
DATA_DIR = "/opt/vault"
AUDIT_PATH = "/var/log/vault-audit.log"  # seen from the unit's working directory, `/`


@dataclass(frozen=True)
class TransitSeal:
    """
    Unsealing through another Vault's transit engine.

    The token for it is no part of the configuration: the node reads it from
    `VAULT_TOKEN` in its environment.
    """

    address: str
    ca_file: str | None = None
    key_name: str = "autounseal"
    mount_path: str = "transit/"


def config(layout: Layout, host: LabHost, seal: TransitSeal | None = None) -> str:
    """
    The `vault.hcl` of one node; Shamir shares open it unless a seal is given.

    Rekeying and generating a root token without a token stay open, as in
    HashiCorp's Vault: a quorum of shares must be able to do both.
    """
    root = layout.root(host.name)
    tls = (
        f'  tls_cert_file = "{root}{certificate_path("vault")}"\n'
        f'  tls_key_file  = "{root}{key_path("vault")}"\n'
    )
    joins = "".join(
        "  retry_join {\n"
        f'    leader_api_addr     = "https://{other.address}:{VAULT_PORT}"\n'
        f'    leader_ca_cert_file = "{root}{CA_PATH}"\n'
        "  }\n"
        for other in layout.with_role("vault")
        if other != host
    )
    return (
        "ui           = false\n"
        'cluster_name = "lab"\n'
        f'api_addr     = "https://{host.address}:{VAULT_PORT}"\n'
        f'cluster_addr = "https://{host.address}:{VAULT_CLUSTER_PORT}"\n'
        "\n"
        'listener "tcp" {\n'
        f'  address         = "{host.address}:{VAULT_PORT}"\n'
        f'  cluster_address = "{host.address}:{VAULT_CLUSTER_PORT}"\n'
        f"{tls}"
        "  disable_unauthed_rekey_endpoints         = false\n"
        "  disable_unauthed_generate_root_endpoints = false\n"
        "}\n"
        "\n"
        'storage "raft" {\n'
        f'  path    = "{root}{DATA_DIR}"\n'
        f'  node_id = "{host.name}"\n'
        "  performance_multiplier = 1\n"
        f"{joins}"
        "}\n"
        "\n"
        # By API it would be refused: auditing is switched on here or nowhere. All nodes must
        # say the same, or standbys fail over it, so the path is relative to each one's root.
        'audit "file" "file" {\n'
        "  options {\n"
        f'    file_path = "{AUDIT_PATH.lstrip("/")}"\n'
        "  }\n"
        "}\n" + (_transit(seal) if seal else "")
    )


def _transit(seal: TransitSeal) -> str:
    ca = f'  tls_ca_cert     = "{seal.ca_file}"\n' if seal.ca_file else ""
    return (
        "\n"
        'seal "transit" {\n'
        f'  address         = "{seal.address}"\n'
        f'  key_name        = "{seal.key_name}"\n'
        f'  mount_path      = "{seal.mount_path}"\n'
        '  disable_renewal = "false"\n'
        f"{ca}"
        "}\n"
    )
