"""Lists of tokens and services that Consul cut: what they leave out must not pass for gone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blocks.errors import BadAnswer, Refused
from blocks.http import Api
from tasks import acl_tokens, audit_survey
from tasks.planning.tokens_seen import ANONYMOUS
from tests.blocks import faults
from tests.blocks.faults import FaultServer

OWN = "2f6e0b1c-5a57-4f1e-8f5d-3f1a0a0b7c11"
CUT = "X-Consul-Results-Filtered-By-ACLs: true\r\n"


def token(accessor: str, **more: Any) -> dict[str, Any]:
    return {"AccessorID": accessor, "CreateTime": "2026-03-08T03:12:41.123456789Z"} | more


def listed(tokens: Any, headers: str = "") -> Any:
    body = json.dumps(tokens).encode()
    with (
        FaultServer(faults.answer(200, body, headers=headers)) as server,
        Api("consul", server.url) as api,
    ):
        return acl_tokens.listed(api, OWN)


def test_a_whole_list_has_the_own_and_the_anonymous_token():
    assert set(listed([token(OWN), token(ANONYMOUS)])) == {OWN, ANONYMOUS}


@pytest.mark.parametrize(
    ("tokens", "headers"),
    [
        ([token(OWN), token(ANONYMOUS)], CUT),
        ([token(ANONYMOUS)], ""),
        ([token(OWN)], ""),
        ([], ""),
    ],
)
def test_a_list_that_was_cut_is_refused(tokens: Any, headers: str):
    with pytest.raises(Refused, match="the list of tokens is not whole"):
        listed(tokens, headers)


def test_an_entry_that_is_no_token_is_a_bad_answer():
    with pytest.raises(BadAnswer, match="an entry is no token"):
        listed([token(OWN), token(ANONYMOUS), {"AccessorID": "x"}])


def test_what_an_audit_needs_of_a_token_is_read():
    policy = {"ID": acl_tokens.GLOBAL_MANAGEMENT, "Name": "renamed"}
    more = {"ExpirationTime": "2026-03-09T03:12:41Z", "Legacy": True, "Policies": [policy]}
    found = listed([token(OWN, **more), token(ANONYMOUS, Policies=[{"ID": "x", "Name": "x"}])])

    assert (found[OWN].legacy, found[OWN].management) == (True, True)
    assert found[OWN].expires.isoformat() == "2026-03-09T03:12:41+00:00"
    other = found[ANONYMOUS]
    assert (other.legacy, other.management, other.expires) == (False, False, None)


@pytest.mark.parametrize(
    ("services", "headers"),
    [({"consul": [], "web-portal": []}, CUT), ({"web-portal": []}, ""), ({}, "")],
)
def test_a_catalog_that_was_cut_is_refused(services: Any, headers: str):
    body = json.dumps(services).encode()
    with (
        FaultServer(faults.answer(200, body, headers=headers)) as server,
        Api("consul", server.url) as api,
        pytest.raises(Refused, match="the catalog is not whole"),
    ):
        audit_survey._catalog(api)


def test_a_whole_catalog_is_the_names_in_it():
    with (
        FaultServer(faults.answer(200, b'{"consul": [], "web-portal": ["v2"]}')) as server,
        Api("consul", server.url) as api,
    ):
        assert audit_survey._catalog(api) == {"consul", "web-portal"}
