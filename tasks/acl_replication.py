"""What a secondary replicates ACLs by, as the boot made it: put back if somebody changed it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import SecretStr

from tasks import acl_tokens, consul, consul_acl, record, vault
from tasks.step import step
from tasks.vault_setup import read_secret

if TYPE_CHECKING:
    from blocks.mesh import Connections
    from blocks.topology import Datacenter


@step("what {secondary.name} replicates ACLs by")
def ensure_as_made(
    connections: Connections,
    primary: Datacenter,
    secondary: Datacenter,
    management: SecretStr,
    vault_token: Callable[[], SecretStr],
) -> None:
    """
    The policy of replication, and the token that the boot made for a secondary, grant what they did.

    That token is the one that Vault keeps, if Vault serves: another that only
    says the same of itself is left alone, and so is one that took its place.
    """
    consul_acl.ensure_policies(connections, primary, management)
    mesh = connections.topology
    name = f"replication-{secondary.name}"
    host = vault.active_node(connections)
    for role in consul_acl.roles(mesh):
        if role.name != name or host is None:
            continue
        with connections.vault().node(host, token=vault_token()) as store:
            kept, _ = read_secret(store, mesh, f"consul/tokens/{name}")
        accessor = str((kept or {}).get("accessor") or "")
        with connections.consul(primary.name).client(
            consul.url(connections, primary.consul.servers[0]), token=management, dc=""
        ) as api:
            found = acl_tokens.lookup(api, accessor) if accessor else None
            if not found or found.get("Description") != role.description:
                continue
            if acl_tokens.grants(found) != acl_tokens.grants(role.body):
                acl_tokens.change(api, accessor, {"Description": role.description} | role.body)
                record.current().change(
                    f"consul {primary.name}",
                    f"token {name} put back as the boot made it",
                    before=accessor,
                )
