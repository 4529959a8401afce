"""Server certificates that ended while the power was off."""

from __future__ import annotations

import datetime as dt
import shutil
from pathlib import Path

import pytest
from cryptography import x509

from deployments.lab.layout import CA_PATH, certificate_path, key_path
from tests.harness.lab import Lab
from tests.integration import changes
from tests.integration.outside import Outside, assert_up

pytestmark = pytest.mark.integration


def certificate(lab: Lab, host: str, server: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(lab.disk(host, certificate_path(server)).read_bytes())


def names(of: x509.Certificate) -> set[str]:
    found = of.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    addresses = {str(a) for a in found.get_values_for_type(x509.IPAddress)}
    return {*found.get_values_for_type(x509.DNSName), *addresses}


def test_consuls_expired_certificates_are_renewed_by_vault(dark: Lab):
    """Every agent's has ended; each is renewed before its agent starts, for the same names."""
    agents = [h.name for h in dark.layout.hosts if "consul" in h.units]
    changes.expire(dark, agents)
    before = {host: certificate(dark, host, "consul") for host in agents}
    for host in agents:  # what they say from now on
        dark.disk(host, "/var/log/consul.log").write_text("")

    ran = changes.booted(dark)

    assert_up(dark)
    renewed = [c["target"] for c in ran.report["changes"] if c["did"].startswith("renewed")]
    assert sorted(renewed) == sorted(agents)
    ca = x509.load_pem_x509_certificate(dark.disk(agents[0], CA_PATH).read_bytes())
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(days=30)
    for host in agents:
        now = certificate(dark, host, "consul")
        now.verify_directly_issued_by(ca)
        assert now.not_valid_after_utc > soon
        assert names(now) == names(before[host])
        assert dark.disk(host, key_path("consul")).stat().st_mode & 0o777 == 0o600
        # The order was right: no agent ever dialled with what had ended.
        assert "certificate has expired" not in dark.log(host, "consul", 10_000)


def test_vaults_own_expired_certificate_is_for_a_person(dark: Lab, tmp_path: Path):
    """Nothing can renew it before Vault serves: refused with the remedy, nothing is touched."""
    paths = [dark.disk("vault-1", path("vault")) for path in (certificate_path, key_path)]
    kept = [shutil.copy2(path, tmp_path / path.name) for path in paths]
    changes.expire(dark, ["vault-1"])
    dark.power_on()
    try:
        ran = changes.boot(dark)

        changes.ends(ran, 3, "refused")
        assert ran.problem["where"] == "vault-1"
        assert f"the certificate {certificate_path('vault')} of vault" in ran.problem["error"]
        assert "issue it anew by the operator's CA" in ran.problem["do"]
        assert ran.mutating_calls == 0
        assert {unit for (_, unit), pid in Outside(dark).pids().items() if pid} == {"vault", "sshd"}
    finally:
        for path, copy in zip(paths, kept, strict=True):
            path.unlink()
            shutil.copy2(copy, path)
