"""
Vault's data is gone: the newest raft snapshot into a fresh cluster.

A snapshot can only be given to a cluster that runs, so a throwaway one is
initialised on one node, its keys kept in memory. After the restore the process
is restarted and opens with the ORIGINAL key shares. The other nodes stay
stopped meanwhile, or they would join the throwaway. A mark on the node's disk
stands as long as its data is a throwaway; a later run sets that data aside
and begins anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import SecretStr

from blocks.errors import NotConverged, Unsafe
from tasks import hosts, record, snapshots, vault, vault_init
from tasks.step import step
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.mesh import Connections
    from tasks.snapshots import Snapshot

RESTORE_DEADLINE = 600.0


@step("restore vault from {snapshot.path.name}")
def restore(connections: Connections, snapshot: Snapshot) -> None:
    """
    Put a snapshot's data into Vault; its nodes are sealed afterwards.

    Holds afterwards: the first node of the topology has the snapshot's data and
    waits for the original shares; the others run empty and will join it.

    Raises:
        Unsafe: a node holds data already that is not a restore's throwaway.
        Invalid: the snapshot is not restorable.
    """
    spec = connections.topology.vault
    first, others = spec.nodes[0], spec.nodes[1:]
    data = snapshots.load(snapshot)
    host = connections.topology.host(first)
    if hosts.read(connections, host, hosts.RESTORING) is not None:
        vault_init.set_aside(connections, first)
    nodes = [vault.await_listening(connections, name) for name in spec.nodes]
    if holding := [n.host for n in nodes if n.state != "uninitialised"]:
        raise Unsafe(
            f"there is data on {', '.join(holding)}",
            where="vault",
            remedy="unseal it instead (fallback=wait); if it is lost, move its data directory away first",
        )
    for name in others:
        hosts.stop(connections, connections.topology.host(name), [spec.unit])
    hosts.write(connections, host, hosts.RESTORING, snapshot.path.name.encode(), 0o600)
    token = _throwaway(connections, first)
    with connections.vault().node(first, token=token, deadline=RESTORE_DEADLINE) as api:
        api.post("/v1/sys/storage/raft/snapshot-force", content=data)
    record.current().change(first, f"snapshot {snapshot.path.name} restored", before="data gone")
    # The restored data counts only after a restart, and opens with its own keys.
    hosts.restart(connections, host, [spec.unit])
    node = vault.await_listening(connections, first)
    if node.state != "sealed" or node.threshold != spec.key_threshold:
        raise NotConverged(
            f"after the restore it is {node.state}, threshold {node.threshold}",
            where=first,
            remedy="run it again: what it holds is set aside and the restore begun anew",
        )
    hosts.remove(connections, host, hosts.RESTORING)
    for name in others:
        hosts.start(connections, connections.topology.host(name), [spec.unit])
        vault.await_listening(connections, name)


def _throwaway(connections: Connections, host: str) -> SecretStr:
    """A one-share cluster on one node, unsealed; its root token dies with the restore."""
    with connections.vault().node(host, deadline=vault_init.INIT_DEADLINE) as api:
        made = api.put("/v1/sys/init", json={"secret_shares": 1, "secret_threshold": 1}).json(dict)
        api.put("/v1/sys/unseal", json={"key": made["keys_base64"][0]})
    wait_until(
        lambda: vault.look(connections, host).state == "active",
        "the throwaway cluster to be active",
        deadline=60.0,
        where=host,
        stage="vault",
        every=0.05,
    )
    record.current().change(host, "throwaway cluster initialised for the restore")
    return SecretStr(str(made["root_token"]))
