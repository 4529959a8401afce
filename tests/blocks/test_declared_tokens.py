"""What a topology's `tokens` may say, and the one line that each mistake gets."""

from __future__ import annotations

from typing import Any

import pytest

from blocks.declared_tokens import Permission, meant, permission
from blocks.errors import BadInput
from blocks.topology import Mesh, parse
from tasks import acl_tokens, consul_acl
from tasks.planning.tokens_seen import declared_grants, described
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


def test_there_is_one_ca_provider_and_it_needs_nothing_but_its_name():
    ca = {"role": "consul-ca", "kind": "ca-provider"}
    assert mesh(TOKEN, ca).token("consul-ca").path == ""

    with pytest.raises(BadInput) as refused:
        mesh(ca, ca | {"role": "other", "path": "services/other", "may": ["acl read"]})

    assert refused.value.problems == [
        "tokens[other].may: means nothing for a ca-provider",
        "tokens[other].path: means nothing for a ca-provider",
        "tokens[other]: consul-ca is the CA provider's token already, and there is one",
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


def of_agents(**more: Any) -> dict[str, Any]:
    return {"role": "agents", "kind": "agent"} | more


def test_a_declaration_for_agents_stands_for_a_role_each_with_the_names_of_the_boot():
    declared = mesh(of_agents(), of_agents(role="defaults", kind="default", soak_seconds=5)).roles()

    assert [r.role for r in declared] == [
        *(f"agent-us-consul-{n}" for n in (1, 2, 3)),
        "agent-us-gateway-1",
        "agent-us-app-1",
        *(f"agent-eu-consul-{n}" for n in (1, 2, 3)),
        "agent-eu-gateway-1",
        "agent-eu-app-1",
        "default-us-gateway-1",
        "default-us-app-1",
        "default-eu-gateway-1",
        "default-eu-app-1",
    ]
    agent, portal = declared[4], declared[-3]
    assert (agent.path, agent.node_identities) == ("consul/tokens/agent-us-app-1", ["us-app-1"])
    assert agent.may_not == ["acl read", "operator read"]
    assert (portal.policies, portal.soak_seconds) == (["mesh-catalog-read"], 5)
    assert portal.service_identities == ["payment-processor", "reporting-agent", "web-portal"]
    assert set(portal.consumers) == set(portal.service_identities)


def test_each_token_of_an_agent_grants_what_the_boots_grants():
    """Else a rotation would put each of them back as soon as the boot has made it."""
    found = mesh(*(of_agents(role=kind, kind=kind) for kind in ("agent", "default", "replication")))
    boot = {role.name: role for role in consul_acl.roles(found)}

    assert set(boot) == {role.role for role in found.roles()}
    for role in found.roles():
        assert declared_grants(found, role) == acl_tokens.grants(boot[role.role].body)
        assert described(role) == boot[role.role].description


def test_a_name_means_one_role_or_all_of_its_declaration():
    found = mesh(TOKEN, of_agents(datacenters=["eu-west-1"]))

    assert meant(found, "payments") == ["payments"]
    assert meant(found, "agent-eu-app-1") == ["agent-eu-app-1"]
    assert len(meant(found, "agents")) == 5
    assert meant(found, "agent-us-app-1") == []


@pytest.mark.parametrize(
    ("tokens", "line"),
    [
        (
            [of_agents(path="services/x", may=["acl read"])],
            "tokens[agents]: path, may: without meaning for kind agent",
        ),
        ([of_agents(datacenters=["mars"])], "tokens[agents].datacenters: mars is none of the"),
        (
            [of_agents(kind="replication", datacenters=["us-east-1"])],
            "tokens[agents]: no agent there carries a token of kind replication",
        ),
        (
            [of_agents(), of_agents(role="again", datacenters=["eu-west-1"])],
            "tokens.role: agent-eu-consul-1 is there 2 times",
        ),
        ([of_agents(), TOKEN | {"role": "agent-us-app-1"}], "tokens.role: agent-us-app-1 is there"),
    ],
)
def test_what_cannot_be_said_of_agents_tokens_is_named(tokens: list[dict[str, Any]], line: str):
    with pytest.raises(BadInput) as refused:
        mesh(*tokens)

    assert refused.value.problems[0].startswith(line)
