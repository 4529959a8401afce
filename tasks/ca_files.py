"""
The `ca_config` in a Consul server's own file.

Servers ignore it after the first start, because raft's copy wins. One that is
rebuilt without its data reads it, and would begin with a token that is dead.
"""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from blocks.errors import Invalid
from tasks import record
from tasks.step import step

if TYPE_CHECKING:
    from blocks.mesh import Connections
    from blocks.ssh_session import Ssh

DEADLINE = 15.0
# Owner, group and mode stay; a file cut short by a broken connection never takes the place, and
# Consul reads nothing that ends in `.tmp`.
_REPLACE = """\
f={file}; t="$f.tmp"; rm -f -- "$t" && (umask 077; cat > "$t") &&
{{ [ "$(wc -c < "$t")" -eq {size} ] || {{ echo "only a part of it arrived" >&2; false; }}; }} &&
chown --reference="$f" -- "$t" && chmod --reference="$f" -- "$t" && sync -- "$t" &&
mv -fT -- "$t" "$f" && sync -- "$(dirname -- "$f")" && exit 0
s=$?; rm -f -- "$t"; exit "$s"
"""


@step("CA configuration on {host}")
def token(connections: Connections, host: str, path: str) -> SecretStr | None:
    """
    The token in a server's file, empty if there is a place for one; None if there is no place.

    Raises:
        Invalid: it is no JSON with a `connect.ca_config`.
    """
    with connections.hosts().connect(connections.topology.host(host)) as ssh:
        document = _read(ssh, path)
    slot = _slot(document, path)
    return SecretStr(slot[1]) if slot else None


@step("CA token into the file on {host}")
def put(connections: Connections, host: str, path: str, new: SecretStr) -> bool:
    """
    The file has this token, its owner and mode as before; whether it had another.

    A server without such a file gets none, nor does a file that never had a token.

    Raises:
        Invalid: it is no JSON with a `connect.ca_config`, or cannot be written.
    """
    with connections.hosts().connect(connections.topology.host(host)) as ssh:
        document = _read(ssh, path)
        slot = _slot(document, path)
        if document is None or slot is None or slot[1] == new.get_secret_value():
            return False
        document["connect"]["ca_config"][slot[0]] = new.get_secret_value()
        data = (json.dumps(document, indent=2) + "\n").encode()
        file = shlex.quote(ssh.host.root + path)
        ssh.run(
            _REPLACE.format(file=file, size=len(data)),
            mutates=True,
            deadline=DEADLINE,
            stdin=data,
            what=f"write {path}",
        )
    record.current().change(host, f"CA token in {path} replaced")
    return True


def _read(ssh: Ssh, path: str) -> dict[str, Any] | None:
    data = ssh.read(path)
    if data is None:
        return None
    try:
        found = json.loads(data)
    except ValueError:
        raise _strange(path) from None
    if not isinstance(found, dict):
        raise _strange(path)
    return found


def _slot(document: dict[str, Any] | None, path: str) -> tuple[str, str] | None:
    """The token's key as it is written in a file, and the token; Consul takes both ways."""
    if document is None:
        return None
    connect = document.get("connect")
    config = connect.get("ca_config") if isinstance(connect, dict) else None
    if not isinstance(config, dict):
        raise _strange(path)
    key = next((k for k in ("token", "Token") if k in config), None)
    return (key, str(config[key] or "")) if key else None


def _strange(path: str) -> Invalid:
    return Invalid(f"{path} is no JSON with a connect.ca_config")
