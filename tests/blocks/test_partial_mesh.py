"""What is left of a mesh without some of its machines."""

from __future__ import annotations

import pytest

from blocks.errors import BadInput
from blocks.partial_mesh import without
from blocks.topology import Mesh
from tests.planning.meshes import mesh


def names(of: Mesh) -> set[str]:
    return {h.name for _, h in of.hosts()}


def test_all_that_stood_on_a_host_is_left_out():
    """A host goes with its services, certificates and components; others keep theirs."""
    whole = mesh()

    left = without(whole, ["us-app-1"])

    assert names(whole) - names(left) == {"us-app-1"}
    assert {(s.name, s.host) for s in left.services} == {("payment-processor", "eu-app-1")}
    assert left.components == []
    assert left.certificates == whole.certificates


def test_a_server_less_is_a_smaller_quorum():
    """Vault and Consul are counted by what remains."""
    left = without(mesh(), ["vault-2", "us-consul-1"])

    assert left.vault.nodes == ["vault-1", "vault-3"]
    assert left.datacenter("us-east-1").consul.servers == ["us-consul-2", "us-consul-3"]
    assert [c.host for c in left.certificates] == ["vault-1"]


def test_a_whole_datacenter_can_be_given_up():
    """With it go its services, and what called only those."""
    left = without(mesh(), ["eu-west-1"])

    assert [d.name for d in left.datacenters] == ["us-east-1"]
    assert {s.datacenter for s in left.services} == {"us-east-1"}
    assert all(u.service == "payment-processor" for s in left.services for u in s.upstreams)


def test_an_upstream_that_nobody_serves_is_not_asked():
    """The callers stay, without what no instance is left to answer."""
    whole = mesh(apps=2)
    gone = [
        s.host for s in whole.services if s.name == "payment-processor" and s.host != "us-app-1"
    ]

    left = without(whole, [*gone])
    assert {u.service for s in left.services for u in s.upstreams} == {"payment-processor"}
    callers = [s for s in left.services if s.upstreams]
    pinned = [
        s.model_copy(
            update={
                "upstreams": [u.model_copy(update={"datacenter": "eu-west-1"}) for u in s.upstreams]
            }
        )
        for s in callers
    ]
    only_eu = whole.model_copy(
        update={"services": [*pinned, *(s for s in whole.services if not s.upstreams)]}
    )
    assert all(not s.upstreams for s in without(only_eu, ["eu-west-1"]).services)


def test_nobody_left_out_changes_nothing():
    """The empty choice is the whole mesh."""
    assert without(mesh(), []) == mesh()


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["nobody"], "nobody is neither a host nor a datacenter of acme"),
        (["us-east-1"], "us-east-1 is the primary; nothing boots without it"),
        (["vault-1", "vault-2", "vault-3"], "no Vault node is left"),
        (["eu-consul-1", "eu-consul-2", "eu-consul-3"], "no Consul server of eu-west-1 is left"),
        (["eu-gateway-1"], "no mesh gateway of eu-west-1 is left"),
    ],
)
def test_what_nothing_could_boot_without_is_refused(given: list[str], line: str):
    """A line for each; the choice is a person's, but not every one of them boots."""
    with pytest.raises(BadInput) as caught:
        without(mesh(), given)

    assert any(line in problem for problem in caught.value.problems)


def test_every_problem_has_its_line():
    """Two unknown names are two lines."""
    with pytest.raises(BadInput) as caught:
        without(mesh(), ["nobody", "nowhere"])

    assert len(caught.value.problems) == 2


def test_the_primarys_gateway_is_not_needed_alone():
    """With no other datacenter left, nothing has to be reached."""
    left = without(mesh(), ["eu-west-1", "us-gateway-1"])

    assert left.datacenter("us-east-1").gateways == []
