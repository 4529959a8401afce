"""What a secondary replicates ACLs by, as the boot made it: put back if somebody changed it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import SecretStr

from tasks import acl_tokens, consul, consul_acl, record
from tasks.step import step

if TYPE_CHECKING:
    from blocks.mesh import Connections
    from blocks.topology import Datacenter


@step("what {secondary.name} replicates ACLs by")
def ensure_as_made(
    connections: Connections, primary: Datacenter, secondary: Datacenter, management: SecretStr
) -> None:
    """
    The policy of replication, and the token that the boot made for a secondary, grant what they did.

    A token of another description, such as one that was put in its place, is left alone.
    """
    consul_acl.ensure_policies(connections, primary, management)
    mesh = connections.topology
    (role,) = [r for r in consul_acl.roles(mesh) if r.name == f"replication-{secondary.name}"]
    with connections.consul(primary.name).client(
        consul.url(connections, primary.consul.servers[0]), token=management, dc="", deadline=10.0
    ) as api:
        for entry in api.get("/v1/acl/tokens").json(list):
            mine = entry.get("Description") == role.description
            if mine and acl_tokens.grants(entry) != acl_tokens.grants(role.body):
                accessor = str(entry["AccessorID"])
                acl_tokens.change(api, accessor, {"Description": role.description} | role.body)
                record.current().change(
                    f"consul {primary.name}",
                    f"token {role.name} put back as the boot made it",
                    before=accessor,
                )
