"""The disks: certificates that fit, modes that hide, units that name what there is."""

from __future__ import annotations

import datetime as dt
import ipaddress
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from deployments.lab import disks, vault_files
from deployments.lab.layout import PRIMARY, Layout, certificate_path, key_path
from deployments.lab.pki import Authority, Names, server_names


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout("full", "127.77", tmp_path_factory.mktemp("lab"), "id")
    disks.render(layout)
    return layout


def on(layout: Layout, host: str, path: str) -> Path:
    return Path(f"{layout.root(host)}{path}")


def files(layout: Layout) -> Iterator[Path]:
    yield from (p for p in layout.directory.rglob("*") if p.is_file() and not p.is_symlink())


def certificate(layout: Layout, host: str, server: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(on(layout, host, certificate_path(server)).read_bytes())


def test_every_private_key_and_the_gossip_key_are_for_their_owner_alone(layout: Layout):
    secret = [
        path
        for path in files(layout)
        if b"PRIVATE KEY" in path.read_bytes() or path.name in {"gossip.key", "gossip.json"}
    ]

    assert len(layout.hosts) + 1 < len(secret)
    for path in secret:
        assert stat.S_IMODE(path.stat().st_mode) == 0o400, path


def test_every_server_certificate_is_the_operator_s_and_has_both_uses(layout: Layout):
    authority = Authority.load(layout.pki)
    for host in layout.hosts:
        found = certificate(layout, host.name, "vault" if "vault" in host.roles else "consul")
        found.verify_directly_issued_by(authority.certificate)
        uses = found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

        assert {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} == set(uses)
        assert ipaddress.ip_address(host.address) in names.get_values_for_type(x509.IPAddress)


def test_consul_servers_carry_the_names_that_federation_checks(layout: Layout):
    for host in layout.with_role("consul-server"):
        found = certificate(layout, host.name, "consul")
        extension = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)

        domain = f"server.{host.datacenter}.consul"
        assert {domain, f"{host.name}.{domain}", "localhost"} <= set(names)


def test_client_agents_cannot_pass_for_servers(layout: Layout):
    host = layout.host("us-app-1")

    assert not any("server." in name for name in server_names(layout, host).dns)


def test_vault_nodes_answer_under_the_balancer_s_address_too(layout: Layout):
    for host in layout.with_role("vault"):
        assert layout.vault_balancer in server_names(layout, host).addresses


def test_only_vault_starts_with_its_host(layout: Layout):
    enabled = {
        (host.name, link.name)
        for host in layout.hosts
        for link in on(layout, host.name, "/etc/systemd/system").glob("*.wants/*")
    }

    assert {(h.name, "vault.service") for h in layout.with_role("vault")} == enabled


def test_every_unit_of_every_host_is_there_and_its_program_exists(layout: Layout):
    for host in layout.hosts:
        for unit in host.units:
            text = on(layout, host.name, f"/etc/systemd/system/{unit}.service").read_text()
            (command,) = (line for line in text.splitlines() if line.startswith("ExecStart="))

            assert Path(command.removeprefix("ExecStart=").split()[0]).is_file()


def test_vault_s_nodes_say_the_same_about_auditing(layout: Layout):
    """OpenBao's standbys fail over an audit device that differs from the active node's."""
    stanzas = {
        vault_files.config(layout, host).partition('audit "file"')[2]
        for host in layout.with_role("vault")
    }

    assert len(stanzas) == 1


def test_a_node_joins_all_others_and_not_itself(layout: Layout):
    for host in layout.with_role("vault"):
        said = vault_files.config(layout, host)

        others = [h for h in layout.with_role("vault") if h != host]
        assert len(others) == said.count("retry_join")
        assert all(f'"https://{h.address}:8200"\n' in said for h in others)


def test_a_transit_seal_has_no_token_in_the_configuration(layout: Layout):
    host = layout.with_role("vault")[0]
    said = vault_files.config(layout, host, vault_files.TransitSeal("https://127.0.0.1:8200"))

    assert 'seal "transit"' in said
    assert "token" not in said


def test_rendering_again_keeps_the_ca_the_gossip_key_and_the_servers_data(tmp_path: Path):
    layout = Layout("small", "127.77", tmp_path, "id")
    disks.render(layout)
    kept = [layout.ca_file, layout.pki / "gossip.key"]
    data = on(layout, "vault-1", "/opt/vault/raft.db")
    data.write_text("data")
    before = [path.read_bytes() for path in kept]

    disks.render(layout)

    assert before == [path.read_bytes() for path in kept]
    assert data.read_text() == "data"
    server = certificate(layout, f"{PRIMARY[:2]}-consul-1", "consul")
    server.verify_directly_issued_by(Authority.load(layout.pki).certificate)


def test_a_certificate_can_be_made_that_has_expired(tmp_path: Path):
    yesterday = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    pair = Authority.create(tmp_path).issue(Names("x"), not_after=yesterday)
    found = x509.load_pem_x509_certificate(pair.certificate)

    assert found.not_valid_before_utc < found.not_valid_after_utc < dt.datetime.now(dt.UTC)


def test_keys_lie_where_the_topology_says(layout: Layout):
    for host in layout.hosts:
        server = "vault" if "vault" in host.roles else "consul"

        assert on(layout, host.name, key_path(server)).is_file()
