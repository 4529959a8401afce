"""Which error an HTTP status stands for, in the words of Consul, Vault and Proxmox VE."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from blocks.errors import (
    Absent,
    BadAnswer,
    Forbidden,
    Invalid,
    MeshError,
    NoLeader,
    Transient,
    Unreachable,
)

LONGEST_TEXT = 300
# Names and paths are mostly shorter than secrets.
LONG_ENOUGH_FOR_A_SECRET = 20

# All three answer 500 to bad input too, Consul's followers even as "rpc error making
# call: ..."; only what is named here passes by itself.
_NO_LEADER = re.compile(
    "no cluster leader|no leader|leadership|not the leader|not ready to serve consistent reads"
    "|active cluster node not found|raft is already shutdown|no quorum",
    re.IGNORECASE,
)
_PASSING = re.compile(
    "remote dc has no server|no path to datacenter|no known consul servers"
    "|connection (refused|reset)|broken pipe"
    "|i/o timeout|got timeout|deadline exceeded|timed out|no route to host"
    "|use of closed network connection|session shutdown|stream (closed|reset)|rpc rate limit"
    r"|legacy mode|ca (provider|root) is nil|no ca bootstrapped yet|rpc error making call: (unexpected )?eof|\beof$",
    re.IGNORECASE,
)
# Consul's tokens are UUIDs, Vault's have a prefix:
# https://developer.hashicorp.com/vault/docs/concepts/tokens#token-prefixes
_LIKE_TOKENS = re.compile(
    r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|\b(?:hv[sbr]|[sbr])\.[\w-]{20,}", re.IGNORECASE
)


def error_of(
    status: int, text: str, reason: str, *, what: str, where: str, secrets: Iterable[str]
) -> MeshError:
    """
    The error that a status stands for, with the server's own words.

    `text` is the answer's body, `reason` stood beside the status, `secrets`
    is what must not be repeated.
    """
    said = server_text(text, reason, secrets, shown=what)
    message = f"{what}: {status}" + (f" {said}" if said else "")
    if status in {401, 403}:
        return Forbidden(
            message, where=where, remedy="check the credential of this connection and its rights"
        )
    if status == 404:
        return Absent(message, where=where)
    if status >= 500 and _NO_LEADER.search(said):
        return NoLeader(message, where=where)
    if status in {502, 504} or 595 <= status <= 599:  # Proxmox: it reached no such node
        return Unreachable(message, where=where)
    if status in {408, 425, 429} or status > 501 or (status == 500 and _PASSING.search(said)):
        return Transient(message, where=where)
    if status >= 400:
        return Invalid(message, where=where)
    return BadAnswer(message, where=where)


def server_text(text: str, reason: str, secrets: Iterable[str], *, shown: str = "") -> str:
    """
    The server's own words on one line, cut short, without what was secret in the request.

    Nor anything that looks like a token, which a server may know and quote
    unasked; `shown` is what is told anyway, such as an accessor in the path.
    """
    try:
        text = _of_json(json.loads(text)) or reason
    except (ValueError, RecursionError):
        text = text.strip() or reason
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    text = _LIKE_TOKENS.sub(lambda found: found[0] if found[0] in shown else "***", text)
    return one_line(text, LONGEST_TEXT)


def _of_json(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value or "")
    parts = [str(value["message"])] if isinstance(value.get("message"), str) else []
    match value.get("errors"):
        case dict() as fields:
            parts += [f"{field}: {said}" for field, said in fields.items()]
        case list() as lines:
            parts += [str(line) for line in lines]
    return "; ".join(part.strip() for part in parts)


def one_line(text: str, most: int) -> str:
    """Text on one line of at most `most` characters, without control characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else f"{line[: most - 3]}..."


def long_strings(value: Any) -> Iterator[str]:
    """Every string in a request's body that may be a secret: a page of errors may quote it."""
    if isinstance(value, str) and len(value) >= LONG_ENOUGH_FOR_A_SECRET:
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from long_strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from long_strings(inner)
