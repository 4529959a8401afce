"""Consul's agents on day 0: policies, tokens, and handing them out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import SecretStr

from blocks.topology import Datacenter, Mesh
from tasks import consul, consul_acl, federation, hosts
from tasks.step import fan_out

if TYPE_CHECKING:
    from blocks.mesh import Connections


def equip(
    connections: Connections,
    datacenter: Datacenter,
    names: list[str],
    *,
    management: SecretStr,
    vault_token: SecretStr,
) -> None:
    """
    Every agent named carries its tokens: `agent`, and `default` or `replication`.

    The primary's policies exist first. Tokens are global, so all are made in
    the primary, each stored in Vault before Consul knows it.
    """
    mesh = connections.topology
    primary = mesh.datacenter(mesh.primary)
    consul_acl.ensure_policies(connections, primary, management)
    declared = {role.name: role for role in consul_acl.roles(mesh)}
    wanted = {host: _roles_of(mesh, datacenter, host) for host in names}
    # Servers share their replication token: each is made once, before any is handed out.
    needed = list(dict.fromkeys(name for roles in wanted.values() for name in roles.values()))
    made = fan_out(
        lambda name: consul_acl.ensure_token(
            connections, primary, declared[name], management, vault_token
        ),
        needed,
    )
    secrets = dict(zip(needed, made, strict=True))

    def hand(host: str) -> None:
        if host not in datacenter.consul.servers:
            hosts.start(connections, mesh.host(host), [datacenter.consul.unit])
            consul.await_agent(connections, host, management)
        tokens = {kind: secrets[name] for kind, name in wanted[host].items()}
        consul_acl.hand_tokens(connections, host, tokens, management)

    # Servers first: nothing is replicated before they have the token for it.
    clients = [n for n in names if n not in datacenter.consul.servers]
    fan_out(hand, [n for n in names if n not in clients])
    if clients and datacenter.name != mesh.primary:
        # A client agent that is given a token its servers do not know yet keeps the
        # refusal for `acl.token_ttl`, 30 seconds.
        federation.await_replication(connections, primary, datacenter, management)
    fan_out(hand, clients)


def _roles_of(mesh: Mesh, datacenter: Datacenter, host: str) -> dict[str, str]:
    """
    The role of each kind of token that an agent carries, in the order they are handed out.

    Last is the one that `consul_acl.needs_tokens` sees in use: a run that is
    killed in between must leave an agent that still shows what it lacks.
    """
    agent = {"agent": f"agent-{host}"}
    if host not in datacenter.consul.servers:
        return agent | {"default": f"default-{host}"}
    if datacenter.name != mesh.primary:
        return {"replication": f"replication-{datacenter.name}"} | agent
    return agent


def equip_bare_servers(
    connections: Connections,
    datacenter: Datacenter,
    *,
    management: Callable[[], SecretStr],
    vault_token: Callable[[], SecretStr],
) -> None:
    """
    Servers on whose disk no token was ever persisted get theirs, leader or not.

    Their API answers, and resolves the management token in the primary, a
    second before their election ends.
    """

    def bare(name: str) -> bool:
        with connections.hosts().connect(connections.topology.host(name)) as ssh:
            return ssh.read(f"{datacenter.consul.data_dir}/acl-tokens.json") is None

    names = datacenter.consul.servers
    todo = [n for n, yes in zip(names, fan_out(bare, names), strict=True) if yes]
    if todo:
        equip(connections, datacenter, todo, management=management(), vault_token=vault_token())


def equip_clients(
    connections: Connections,
    datacenter: Datacenter,
    names: list[str],
    *,
    management: SecretStr,
    vault_token: Callable[[], SecretStr],
) -> None:
    """The client agents among `names` that carry no tokens get theirs."""
    clients = [n for n in names if n not in datacenter.consul.servers]
    fan_out(lambda h: consul.await_agent(connections, h, management), clients)
    bare = fan_out(lambda h: consul_acl.needs_tokens(connections, h, management), clients)
    if todo := [h for h, lacks in zip(clients, bare, strict=True) if lacks]:
        equip(connections, datacenter, todo, management=management, vault_token=vault_token())


def restart_if_running(connections: Connections, host: str, unit: str) -> None:
    """Restart a unit that runs, so that it reads its new files; leave one that does not."""
    machine = connections.topology.host(host)
    if unit in hosts.active(connections, machine, [unit]):
        hosts.restart(connections, machine, [unit])
