"""The layout is a mesh that the runbooks accept, at every size."""

from pathlib import Path

import pytest

from blocks import topology
from deployments.lab.document import topology as document
from deployments.lab.layout import PRIMARY, SECONDARY, Layout, Size

SIZES: list[Size] = ["small", "full"]


@pytest.fixture(params=SIZES)
def layout(request: pytest.FixtureRequest) -> Layout:
    return Layout(request.param, "127.77", Path("/lab"), "id")


def test_is_a_topology_without_problems(layout: Layout):
    keys = {h.name: "ssh-ed25519 AAAA" for h in layout.hosts}

    mesh = topology.parse(document(layout, keys, ssh_user="somebody"))

    assert [h.name for h in layout.hosts] == [h.name for _, h in mesh.hosts()]
    assert {"somebody"} == {h.ssh_user for _, h in mesh.hosts()}
    assert (1 if layout.size == "small" else 3) == len(mesh.vault.nodes)


def test_every_address_is_one_host_s_and_in_its_datacenter_s_net(layout: Layout):
    addresses = [h.address for h in layout.hosts]
    nets = {PRIMARY: "127.77.1.", SECONDARY: "127.77.2."}

    assert len(addresses) == len(set(addresses))
    assert all(h.address.startswith(nets[h.datacenter]) for h in layout.hosts)


def test_no_holder_of_shares_can_open_vault_alone_and_two_files_can(layout: Layout):
    """The lab's own files hold the threshold, so that it opens without its AWS too."""
    keys = {h.name: "ssh-ed25519 AAAA" for h in layout.hosts}
    vault = topology.parse(document(layout, keys)).vault

    assert max(h.shares for h in vault.holders) < vault.key_threshold
    assert vault.key_threshold <= sum(h.shares for h in vault.holders if h.store == "file")
