"""What the rules of an ACL policy grant, as far as an audit must know: read, never interpreted."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Rules are HCL or JSON (https://developer.hashicorp.com/consul/docs/security/acl/acl-rules):
# comments, strings, and whatever else stands between blanks. A comment that does not end runs
# to the end of the text.
_TOKEN = re.compile(
    r'(?P<comment>\#[^\n]*|//[^\n]*|/\*.*?(?:\*/|\Z))|"(?P<string>(?:\\.|[^"\\])*)"'
    r"|(?P<word>[\w.-]+)|(?P<sign>[^\s\w])",
    re.DOTALL,
)


def writes_acl(rules: str) -> bool:
    """
    Whether rules say `acl = "write"`: whoever has that can give himself everything.

    In a namespace or a partition too. A key or a service called `acl` is none:
    what follows it is a block, and no value.
    """
    tokens = list(_tokens(rules))
    return any(
        name == "acl" and sign in {"=", ":"} and value == "write"
        for (_, name), (kind, sign), (_, value) in zip(tokens, tokens[1:], tokens[2:], strict=False)
        if kind == "sign"
    )


def _tokens(rules: str) -> Iterator[tuple[str, str]]:
    for match in _TOKEN.finditer(rules):
        if match.lastgroup and match.lastgroup != "comment":
            text = match[match.lastgroup]
            # "\u0061cl" is acl to whoever reads JSON.
            yield match.lastgroup, _unescaped(text) if match.lastgroup == "string" else text


def _unescaped(text: str) -> str:
    return re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), text)
