"""Which policies are management in effect, from their rules as people write them."""

from __future__ import annotations

import pytest

from tasks.consul_acl import CATALOG_RULES, REPLICATION_RULES
from tasks.planning.acl_rules import writes_acl


@pytest.mark.parametrize(
    "rules",
    [
        'acl = "write"',
        'acl="write"',
        '"acl" = "write"',
        'operator = "read"\nacl\t=\n"write" # all',
        '/* read */ acl /* = */ = // "read"\n "write"',
        '{"acl": "write"}',
        '{"operator":"write","acl":"write"}',
        '{"\\u0061cl": "write"}',
        'namespace "team" { acl = "write" }',
        'partition_prefix "" { namespace_prefix "" { acl = "write" } }',
        'key_prefix "a\\"b" { policy = "read" } acl = "write"',
        'acl = "read"\nacl = "write"',
        REPLICATION_RULES,
    ],
)
def test_these_may_write_acls(rules: str):
    assert writes_acl(rules)


@pytest.mark.parametrize(
    "rules",
    [
        "",
        'acl = "read"',
        'acl = "deny"',
        'operator = "write"',
        'key "acl" { policy = "write" }',
        'key_prefix "acl = \\"write\\"" { policy = "read" }',
        'service "acl" { policy = "write" intentions = "write" }',
        '{"key": {"acl": {"policy": "write"}}}',
        '# acl = "write"\noperator = "read"',
        '// acl = "write"',
        '/* acl = "write" */',
        '/* acl = "write"',
        'node_prefix "" { policy = "write" }\nagent_prefix "" { policy = "write" }',
        'acl = "read" # "write"',
        'my-acl = "write"',
        CATALOG_RULES,
    ],
)
def test_these_may_not(rules: str):
    assert not writes_acl(rules)
