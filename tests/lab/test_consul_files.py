"""Consul's configuration: what federation needs, and Consul itself takes every host's."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from deployments.lab import binaries, consul_files
from deployments.lab.layout import PRIMARY, SECONDARY, LabHost, Layout, Size

SIZES: list[Size] = ["small", "full"]
KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


@pytest.fixture(params=SIZES)
def layout(request: pytest.FixtureRequest, tmp_path: Path) -> Layout:
    return Layout(request.param, "127.77", tmp_path, "id")


def agents(layout: Layout) -> list[LabHost]:
    return [h for h in layout.hosts if "consul" in h.units]


def text(layout: Layout, host: LabHost) -> str:
    return json.dumps(consul_files.files(layout, host, KEY))


def test_consul_itself_accepts_every_host_s_files(layout: Layout):
    for host in agents(layout):
        folder = layout.root(host.name) / "etc/consul.d"
        folder.mkdir(parents=True)
        for name, content in consul_files.files(layout, host, KEY).items():
            (folder / name).write_text(json.dumps(content))

        done = subprocess.run(
            [binaries.consul(), "validate", folder],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

        assert done.returncode == 0, f"{host.name}: {done.stdout}{done.stderr}"


def test_no_token_is_on_a_disk_and_the_gossip_key_is_in_one_file_alone(layout: Layout):
    for host in agents(layout):
        files = consul_files.files(layout, host, KEY)
        with_key = [name for name, content in files.items() if KEY in json.dumps(content)]

        assert with_key == ["gossip.json"]
        assert "tokens" not in text(layout, host)


def test_only_a_secondary_s_servers_join_over_the_wan_and_by_gateways_alone(layout: Layout):
    for host in agents(layout):
        said = text(layout, host)
        secondary_server = host.datacenter == SECONDARY and "consul-server" in host.roles

        assert secondary_server == ('"primary_gateways"' in said)
        assert "retry_join_wan" not in said

    servers = layout.with_role("consul-server", SECONDARY)
    (gateway,) = layout.with_role("gateway", PRIMARY)
    made = consul_files.server(layout, servers[0])
    assert [f"{gateway.wan_address}:8443"] == made["primary_gateways"]


def test_servers_expect_as_many_as_there_are(layout: Layout):
    for host in layout.with_role("consul-server"):
        expected = len(layout.with_role("consul-server", host.datacenter))

        assert expected == consul_files.server(layout, host)["bootstrap_expect"]


def test_every_node_has_an_id_of_its_own_that_stays(layout: Layout, tmp_path: Path):
    again = Layout(layout.size, layout.network, tmp_path / "elsewhere", "other")
    other = Layout(layout.size, "127.78", tmp_path, "id")
    ids = [consul_files.node_id(layout, h) for h in agents(layout)]

    assert len(ids) == len(set(ids))
    assert ids == [consul_files.node_id(again, h) for h in agents(again)]
    assert not set(ids) & {consul_files.node_id(other, h) for h in agents(other)}


def test_a_gateway_offers_both_its_addresses_for_federation(layout: Layout):
    for host in layout.with_role("gateway"):
        service = consul_files.gateway_registration(host)["service"]

        assert service["meta"] == {"consul-wan-federation": "1"}
        assert host.address == service["tagged_addresses"]["lan"]["address"]
        assert host.wan_address == service["tagged_addresses"]["wan"]["address"]


def test_changes_are_told_often_enough_for_few_members(layout: Layout):
    """With the default of 4 a tag's change got lost, and ACL replication stood for a minute."""
    host = layout.with_role("consul-server")[0]

    assert consul_files.agent(layout, host)["gossip_lan"]["retransmit_mult"] >= 8
    assert consul_files.server(layout, host)["gossip_wan"]["retransmit_mult"] >= 12
