"""Looking at Vault's Consul secrets engine, mount by mount; nothing is changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blocks.dynamic_tokens import mounts
from blocks.errors import Forbidden
from tasks import secrets_engine
from tasks.planning.dynamic import MountSeen
from tasks.step import step

if TYPE_CHECKING:
    from blocks.declared_tokens import DeclaredToken
    from blocks.http import Api
    from blocks.mesh import Connections

RIGHTS = "give the runbooks' policy in Vault the lines that docs/token-rotation.md lists"


@step("survey of the consul secrets engine")
def look(connections: Connections, names: Sequence[str]) -> dict[str, MountSeen]:
    """
    What Vault has at these mounts: configuration, roles as declared, and their leases.

    A mount that cannot be worked with says why.
    """
    return {
        name: _look(connections, name, roles)
        for name, roles in mounts(connections.topology).items()
        if name in names
    }


def _look(connections: Connections, mount: str, roles: Sequence[DeclaredToken]) -> MountSeen:
    with secrets_engine.opened(connections, roles[0]) as api:
        kind = secrets_engine.mounted(api, mount)
        if kind != "consul":
            # OpenBao has none: enabling it is answered `plugin not found in the catalog: consul`.
            has = f"; what is there is of type {kind}" if kind else ""
            return MountSeen(
                f"this Vault has no Consul secrets engine at {mount}/{has}",
                f"enable it (vault secrets enable -path={mount} consul; OpenBao has no such engine), "
                "or take the role out of the topology",
            )
        try:
            return _whole(api, mount, roles)
        except Forbidden as error:
            return MountSeen(f"the runbooks may not look: {error.message}", RIGHTS)


def _whole(api: Api, mount: str, roles: Sequence[DeclaredToken]) -> MountSeen:
    consul, warnings = secrets_engine.configured(api, mount)
    definitions, leases = {}, {}
    for token in roles:
        if found := secrets_engine.definition(api, mount, token.role):
            definitions[token.role] = found
        leases[token.role] = secrets_engine.leases(api, mount, token.role)
    return MountSeen("", "", consul, definitions, leases, warnings)
