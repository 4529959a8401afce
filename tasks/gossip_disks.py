"""
The gossip key on the hosts' disks: the agents' own keyrings, and what they start from.

An agent that finds a keyring in its data directory starts with that, whatever
`encrypt` says; one that has none makes it from `encrypt` (Consul 1.8.7). So
both must hold the new key before the old one goes.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import SecretStr

from blocks.errors import MeshError, Refused, Transient
from tasks import record
from tasks.planning.gossip_seen import DiskSeen, fingerprint
from tasks.step import fan_out, step

if TYPE_CHECKING:
    from blocks.mesh import Connections
    from blocks.ssh_session import Ssh

# JSON and HCL alike, and not `encrypt_verify_incoming`.
_ENCRYPT = re.compile(r'("?)\bencrypt\1\s*[:=]\s*"([^"\n]*)"')


def look(connections: Connections) -> dict[str, DiskSeen]:
    """What every host of Consul would start with; one that cannot be read has an `error`."""
    mesh = connections.topology
    names = [name for dc in mesh.datacenters for name in mesh.consul_hosts(dc.name)]
    return dict(zip(names, fan_out(lambda n: _look(connections, n), names), strict=True))


def _look(connections: Connections, name: str) -> DiskSeen:
    mesh = connections.topology
    consul = mesh.datacenter_of(name).consul
    rings = ["local", *(["remote"] if name in consul.servers else [])]

    def once() -> DiskSeen:
        with connections.hosts().connect(mesh.host(name)) as ssh:
            keyrings = tuple(_ring(ssh, f"{consul.data_dir}/serf/{ring}.keyring") for ring in rings)
            key = _encrypt(ssh, consul.gossip_file or "")[2]
        return DiskSeen(keyrings, fingerprint(key))

    try:
        with suppress(Transient):
            return once()
        return once()  # a single answer that was lost says nothing
    except MeshError as error:
        return DiskSeen(error=error.message)


def _ring(ssh: Ssh, path: str) -> tuple[str, ...]:
    content = ssh.read(path)
    try:
        keys = json.loads(content or b"")
        return tuple(fingerprint(str(key)) for key in [*keys])
    except (ValueError, TypeError):
        what = "is not there" if content is None else "is no keyring"
        raise Refused(
            f"{path} {what}", where=ssh.host.name, remedy="is disable_keyring_file set?"
        ) from None


def keys_in(text: str) -> list[re.Match[str]]:
    """Every key that a configuration gives as `encrypt`, as its second group."""
    return list(_ENCRYPT.finditer(text))


def _encrypt(ssh: Ssh, path: str) -> tuple[str, str, str]:
    """A configuration: what stands before its key, what after, and the key."""
    text = (ssh.read(path) or b"").decode(errors="surrogateescape")
    found = keys_in(text)
    if len(found) != 1:
        raise Refused(
            f"{path} holds {len(found) or 'no'} `encrypt`, not one",
            where=ssh.host.name,
            remedy="correct consul.gossip_file in the topology, or the file",
        )
    return text[: found[0].start(2)], text[found[0].end(2) :], found[0][2]


@step("write gossip key on {name}")
def write(connections: Connections, name: str, key: SecretStr) -> bool:
    """
    A host's configuration has this key, and all else in the file is as it was; whether it had another.

    The file keeps its owner and mode. The agent is not told: it reads `encrypt`
    when it has no keyring.

    Raises:
        Refused: there is no such file, or not one `encrypt` in it.
    """
    mesh = connections.topology
    path = mesh.datacenter_of(name).consul.gossip_file or ""
    with connections.hosts().connect(mesh.host(name)) as ssh:
        head, tail, before = _encrypt(ssh, path)
        if before == key.get_secret_value():
            return False
        text = f"{head}{key.get_secret_value()}{tail}"
        ssh.write(path, text.encode(errors="surrogateescape"), None)
    record.current().change(
        name,
        f"gossip key written into {path}",
        before=fingerprint(before),
        after=fingerprint(key.get_secret_value()),
    )
    return True
