"""Lists of tokens that are not whole, and what a look at one shows: a server that answers so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blocks.errors import BadAnswer, Refused
from blocks.http import Answer, Api
from tasks import acl_tokens
from tasks.planning.tokens_seen import ANONYMOUS, Grants

OWN = "11111111-0000-0000-0000-000000000000"
CREATED = "2026-03-08T03:12:41.123456789Z"


class Consul(Api):
    """Answers every request with the same list."""

    def __init__(self, answered: Any, headers: dict[str, str] | None = None) -> None:
        super().__init__("consul test", "http://127.0.0.1:1")
        self.answered, self.headers = answered, headers or {}

    def exchange(self, verb: str, url: str, **_options: Any) -> Answer:
        return Answer(
            200, json.dumps(self.answered).encode(), self.headers, what=verb, where="test"
        )


def entry(accessor: str, **more: Any) -> dict[str, Any]:
    return {"AccessorID": accessor, "Description": "", "CreateTime": CREATED} | more


WHOLE = [entry(OWN), entry(ANONYMOUS)]


def test_a_whole_list_gives_every_token_with_what_it_grants():
    found = acl_tokens.listed(
        Consul(
            [
                *WHOLE,
                entry(
                    "a",
                    Description="token of web, rotated by mesh-runbooks",
                    Local=True,
                    Policies=[{"ID": "1", "Name": "p"}],
                    Roles=None,
                    ServiceIdentities=[
                        {"ServiceName": "web"},
                        {"ServiceName": "db", "Datacenters": ["eu", "ap"]},
                    ],
                    NodeIdentities=[{"NodeName": "n", "Datacenter": "us"}],
                ),
            ]
        ),
        OWN,
    )

    assert found["a"].grants == Grants(
        frozenset({"p"}), frozenset(), frozenset({"web", "db in ap eu"}), frozenset({"n in us"})
    )
    assert (found["a"].role, found["a"].local) == ("web", True)
    assert found["a"].created.isoformat() == "2026-03-08T03:12:41.123456+00:00"
    assert not found[OWN].grants


@pytest.mark.parametrize(
    ("answered", "headers"),
    [
        ([entry(OWN)], {}),  # without the anonymous token
        ([entry(ANONYMOUS)], {}),  # without the one it was asked for with
        ([], {}),
        (WHOLE, {"x-consul-results-filtered-by-acls": "true"}),
    ],
)
def test_a_list_that_is_not_whole_is_an_error_and_never_all_there_is(
    answered: list[dict[str, Any]], headers: dict[str, str]
):
    with pytest.raises(Refused, match="not whole"):
        acl_tokens.listed(Consul(answered, headers), OWN)


@pytest.mark.parametrize(
    "wrong", [{}, entry("x", CreateTime="soon"), "x", entry("x", Policies=[7])]
)
def test_an_entry_that_is_no_token_is_no_answer(wrong: Any):
    with pytest.raises(BadAnswer):
        acl_tokens.listed(Consul([*WHOLE, wrong]), OWN)


def test_the_image_of_a_token_arms_it_again_and_holds_no_secret():
    kept = acl_tokens.image(
        Consul(
            entry("a", SecretID="s3cret-of-a-token", Policies=[{"ID": "1", "Name": "p"}], Hash="h")
        ),
        "a",
    )

    assert kept == {
        "Policies": [{"ID": "1", "Name": "p"}],
        "Roles": [],
        "ServiceIdentities": [],
        "NodeIdentities": [],
        "Description": "",
        "Local": False,
    }


def test_a_token_that_grants_nothing_has_no_image():
    assert acl_tokens.image(Consul(entry("a", SecretID="s", Policies=None)), "a") is None
