"""What a topology's `tokens` may say, and the one line that each mistake gets."""

from __future__ import annotations

from typing import Any

import pytest

from blocks.declared_tokens import Permission, permission
from blocks.errors import BadInput
from blocks.topology import Mesh, parse
from tests.planning.meshes import document

TOKEN: dict[str, Any] = {
    "role": "payments",
    "kind": "service",
    "policies": ["payments"],
    "path": "services/payments",
    "may": ["kv read payments/config"],
    "may_not": ["kv write payments/config"],
}


def mesh(*tokens: dict[str, Any], **more: Any) -> Mesh:
    return parse(document() | {"tokens": list(tokens)} | more)


def test_a_token_needs_no_more_than_what_cannot_be_guessed():
    declared = mesh(TOKEN).token("payments")

    assert (declared.drift, declared.local, declared.datacenters) == ("put back", False, [])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"kind": "agent"},
            "tokens[payments].kind: agent is not rotated yet; known are service, dynamic",
        ),
        (
            {"kind": "robot"},
            (
                "tokens[payments].kind: input should be 'service', 'agent', 'default', "
                "'replication', 'config_file_service_registration', 'ca-provider', 'dynamic' "
                "or 'gossip'"
            ),
        ),
        ({"polices": []}, "tokens[payments].polices: extra inputs are not permitted"),
        (
            {"policies": []},
            "tokens[payments]: grants nothing: it needs policies, roles or identities",
        ),
        (
            {"policies": ["global-management"]},
            "tokens[payments].policies: global-management is for no consumer",
        ),
        (
            {"path": "consul/bootstrap"},
            "tokens[payments].path: consul/bootstrap belongs to the runbooks themselves",
        ),
        (
            {"path": "consul/tokens/agent-x"},
            "tokens[payments].path: consul/tokens/agent-x belongs to the runbooks themselves",
        ),
        (
            {"path": "/services/payments"},
            "tokens[payments].path: '/services/payments' is no path such as services/web-portal",
        ),
        (
            {"datacenters": ["mars"]},
            "tokens[payments].datacenters: mars is none of the datacenters",
        ),
        ({"local": True}, "tokens[payments].datacenters: a local token needs exactly one"),
        ({"consumers": ["nobody"]}, "tokens[payments].consumers: nobody is no service"),
        ({"node_identities": ["nowhere"]}, "tokens[payments].node_identities: nowhere is no host"),
        (
            {"may": ["kv reed x"]},
            (
                "tokens[payments].may: 'kv reed x' is none of kv read NAME, kv write NAME, "
                "service read NAME, leaf sign NAME, acl read, operator read; did you mean "
                "kv read NAME?"
            ),
        ),
        (
            {"may_not": ["kv read payments/config"]},
            "tokens[payments].may_not: kv read payments/config is in may too",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_mistake_is_one_line_that_names_the_field(change: dict[str, Any], line: str):
    with pytest.raises(BadInput) as refused:
        mesh(TOKEN | change)

    assert refused.value.problems == [line]


@pytest.mark.parametrize("field", ["may", "may_not"])
def test_a_token_that_proves_nothing_is_refused(field: str):
    with pytest.raises(BadInput) as refused:
        mesh(TOKEN | {field: []})

    assert [line.partition(":")[0] for line in refused.value.problems] == [
        f"tokens[payments].{field}"
    ]


def test_two_roles_never_share_a_name_or_a_path():
    with pytest.raises(BadInput) as refused:
        mesh(TOKEN, TOKEN)

    assert refused.value.problems == [
        "tokens.role: payments is there 2 times",
        "tokens.path: services/payments is there 2 times",
    ]


@pytest.mark.parametrize("foreign", [{}, {"accessor": "a", "description": "b"}])
def test_a_foreign_token_is_known_by_one_thing(foreign: dict[str, str]):
    with pytest.raises(BadInput) as refused:
        mesh(foreign_tokens=[foreign])

    assert refused.value.problems == ["foreign_tokens[0]: name either an accessor or a description"]


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("kv read a/b", Permission("kv read", "a/b")),
        ("leaf sign web", Permission("leaf sign", "web")),
        ("acl read", Permission("acl read", "")),
        ("acl read x", None),
        ("kv read", None),
        ("kv read a b", None),
        ("", None),
    ],
)
def test_a_permission_is_a_resource_a_verb_and_a_name(line: str, meant: Permission | None):
    assert permission(line) == meant
