"""Every way round in a circle is found, named edge by edge, with the cheapest cut."""

from __future__ import annotations

import time
from typing import Any

import pytest

from blocks import boot_graph
from blocks.boot_addresses import split
from blocks.errors import BadInput
from blocks.topology import Mesh, parse
from tests.planning.meshes import document, mesh


def wrong(**changes: Any) -> list[str]:
    """The problems of the usual mesh with something changed; `a__b` is a path."""
    doc = document()
    for path, value in changes.items():
        *parents, last = path.split("__")
        here: Any = doc
        for key in parents:
            here = here[int(key)] if key.isdigit() else here[key]
        here[int(last) if last.isdigit() else last] = value
    with pytest.raises(BadInput) as error:
        parse(doc)
    return error.value.problems


def test_the_usual_mesh_has_no_cycle():
    """That Consul needs Vault for its CA is an edge, not a cycle."""
    usual = mesh()
    assert boot_graph.cycles(usual) == []
    assert "CA provider" in boot_graph.needs(usual)["consul:us-east-1"]["vault"]


def test_it_boots_in_layers():
    layers = boot_graph.order(mesh())
    at = {node: number for number, layer in enumerate(layers) for node in layer}
    way = [
        "power:us-east-1",
        "vault",
        "consul:us-east-1",
        "gateways:us-east-1",
        "consul:eu-west-1",
        "gateways:eu-west-1",
    ]
    assert [at[node] for node in way] == sorted(at[node] for node in way)
    assert len({at[node] for node in way}) == len(way)
    assert at["service:web-portal@us-app-1"] == at["gateways:us-east-1"]
    assert at["component:prefect-db"] < at["component:prefect-server"] > at["dns:us-east-1"]


# What is changed, and what the line must name: each edge's reason, and the cut.
CYCLES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "Vault stores its data in Consul": (
        {"vault__storage": "consul"},
        ["vault -> consul:us-east-1", "CA provider is Vault", "cut: vault.storage"],
    ),
    "Consul dials its CA by a name that it serves itself": (
        {"vault__address": "https://vault.service.consul:8200"},
        [
            "vault.address https://vault.service.consul:8200 is a name that Consul serves",
            "consul:us-east-1 -> dns:us-east-1",
            "cut: vault.address: use an IP address, or a name outside .consul",
        ],
    ),
    "Vault's certificate is issued by Vault": (
        {"certificates__1__issued_by": "vault"},
        ["vault -> vault", "/etc/mesh/tls/vault.pem on vault-1", "cut: certificates[vault-1]"],
    ),
    "Vault is sealed by itself": (
        {"vault__seal": "transit", "vault__seal_address": "https://10.1.0.3:8200"},
        ["vault -> vault", "is this cluster itself", "cut: vault.seal_address"],
    ),
    "Vault is sealed by a Vault behind Consul's DNS": (
        {"vault__seal": "transit", "vault__seal_address": "https://sealer.service.consul:8200"},
        ["vault -> dns:us-east-1", "cut: vault.seal_address"],
    ),
    "A host is reached by a name that Consul serves": (
        {"datacenters__1__hosts__0__address": "eu-consul-1.node.consul"},
        ["power:eu-west-1 -> dns:eu-west-1", "cut: datacenters[eu-west-1].hosts[eu-consul-1]"],
    ),
    "The cloud is reached by a name that Consul serves": (
        {"datacenters__1__cloud__address": "https://pve.service.consul:8006"},
        ["power:eu-west-1 -> dns:eu-west-1", "cut: datacenters[eu-west-1].cloud.address"],
    ),
    "The secondary finds its primary by a name that it serves itself": (
        {"datacenters__0__gateways__0__wan": "gateway.service.consul:8443"},
        ["consul:eu-west-1 -> dns:eu-west-1", "cut: datacenters[us-east-1].gateways[us-gateway-1]"],
    ),
    "The key shares lie in a Prefect that needs Consul": (
        {"vault__holders__0": {"name": "ops-a", "store": "block", "block": "a", "shares": 2}},
        ["vault -> component:prefect-server", "only 2 of 3 key shares", "cut: "],
    ),
    "Components need each other": (
        {"components__0__needs": ["component:prefect-server"]},
        ["component:prefect-db -> component:prefect-server", "cut: components[prefect"],
    ),
}


@pytest.mark.parametrize("case", CYCLES)
def test_a_cycle_is_named_edge_by_edge_with_its_cut(case: str):
    changes, names = CYCLES[case]
    problems = wrong(**changes)
    assert all(line.startswith("boot graph: ") for line in problems)
    assert any(all(name in line for name in names) for line in problems), problems
    assert all("\n" not in line for line in problems)


def test_each_thing_to_cut_is_told_once():
    """One name in one field locks both datacenters, and is one line."""
    assert len(wrong(vault__address="https://vault.service.consul:8200")) == 1


def test_a_component_that_carries_the_seal_and_dials_the_mesh_is_a_cycle():
    """Through a database behind a sidecar: four edges long."""
    doc = document(seal="transit", seal_address="https://10.1.0.99:8200")
    doc["components"].append(
        {
            "name": "sealing-vault",
            "host": "us-app-1",
            "units": ["vault"],
            "url": "https://10.1.0.99:8200",
            "addresses": ["127.0.0.1:9191"],
        }
    )
    with pytest.raises(BadInput) as error:
        parse(doc)
    (line,) = error.value.problems  # the shortest way round; cutting it cuts the others
    assert "components[sealing-vault].addresses 127.0.0.1:9191 is an upstream of a sidecar" in line


def test_a_component_may_dial_the_mesh_if_nothing_of_the_boot_needs_it():
    doc = document()
    doc["components"][1]["addresses"] = [
        "postgres.service.consul:5432",
        "vault.service.consul:8200",
    ]
    assert boot_graph.cycles(parse(doc)) == []


def test_an_unknown_node_in_needs_is_a_problem_of_its_field():
    assert wrong(components__1__needs=["consul:us-west-9"]) == [
        "components[prefect-server].needs: consul:us-west-9 is no node of the boot graph"
    ]


def test_names_outside_the_domain_are_nobodys():
    doc = document()
    doc["vault"]["address"] = "https://vault.corp.example:8200"
    doc["datacenters"][0]["hosts"][0]["address"] = "notconsul"
    assert boot_graph.cycles(parse(doc)) == []
    doc["dns_domain"] = "corp.example"
    with pytest.raises(BadInput):
        parse(doc)


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("https://Vault.service.consul:8200/v1", ("vault.service.consul", 8200)),
        ("https://vault.example", ("vault.example", 443)),
        ("10.1.0.2:8443", ("10.1.0.2", 8443)),
        ("[2001:db8::1]:8300", ("2001:db8::1", 8300)),
        ("db.service.consul", ("db.service.consul", 0)),
        ("", ("", 0)),
    ],
)
def test_addresses_are_taken_apart(address: str, parts: tuple[str, int]):
    assert split(address) == parts


def test_order_refuses_a_graph_with_a_cycle():
    usual = mesh()
    locked: Mesh = usual.model_copy(
        update={"vault": usual.vault.model_copy(update={"storage": "consul"})}
    )
    with pytest.raises(BadInput, match="boot graph"):
        boot_graph.order(locked)


def test_a_thousand_hosts_are_quick():
    large = mesh(apps=90, secondaries=10)
    began = time.process_time()
    assert len(boot_graph.order(large)) > 3
    assert time.process_time() - began < 1.0
