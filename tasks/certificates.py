"""Server certificates on hosts' disks: when they end, and renewing those that Vault issues."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from pydantic import SecretStr

from blocks.errors import BadAnswer, Invalid, MeshError
from blocks.topology import Certificate
from tasks import record, vault
from tasks.step import step

if TYPE_CHECKING:
    from blocks.mesh import Connections

ISSUING_ROLE = "mesh-server"
RENEWED_FOR = "2160h"


class CertificateSeen(NamedTuple):
    """One certificate on a host's disk."""

    certificate: Certificate
    not_after: datetime | None
    subject: str = ""
    error: str = ""


def look(connections: Connections, certificate: Certificate) -> CertificateSeen:
    """When a certificate ends; never an error."""
    host = connections.topology.host(certificate.host)
    try:
        with connections.hosts().connect(host, deadline=4.0) as ssh:
            pem = ssh.read(certificate.path)
    except MeshError as error:
        return CertificateSeen(certificate, None, error=str(error))
    if pem is None:
        return CertificateSeen(certificate, None, error=f"no file {certificate.path}")
    try:
        found = x509.load_pem_x509_certificate(pem)
    except ValueError:
        return CertificateSeen(certificate, None, error=f"{certificate.path} is no certificate")
    return CertificateSeen(certificate, found.not_valid_after_utc, found.subject.rfc4514_string())


@step("renew {certificate.path} on {certificate.host}")
def renew(connections: Connections, certificate: Certificate, vault_token: SecretStr) -> datetime:
    """
    Replace an expired certificate by one Vault issues for the same names; when it ends.

    The key is written before the certificate, both at once or not at all; a
    kill in between is found as a pair that does not match and renewed again.

    Raises:
        Invalid: the old certificate cannot be read, so its names are not known.
    """
    mesh = connections.topology
    host = mesh.host(certificate.host)
    with connections.hosts().connect(host) as ssh:
        pem = ssh.read(certificate.path)
        try:
            old = x509.load_pem_x509_certificate(pem or b"")
        except ValueError as error:
            raise Invalid(f"{certificate.path} cannot be read", where=host.name) from error
        body = {"common_name": _common_name(old), "ttl": RENEWED_FOR, **_names(old)}
        with connections.vault().node(vault.await_active(connections), token=vault_token) as api:
            issued = api.post(f"/v1/{mesh.vault.pki_mount}/issue/{ISSUING_ROLE}", json=body).json(
                dict
            )
        data = issued.get("data") or {}
        try:
            new = x509.load_pem_x509_certificate(str(data["certificate"]).encode())
            key = str(data["private_key"]).encode()
        except (KeyError, ValueError) as error:
            raise BadAnswer("Vault issued no certificate", where="vault") from error
        ssh.write(certificate.key_path, key + b"\n", 0o600)
        ssh.write(certificate.path, str(data["certificate"]).encode() + b"\n", 0o644)
    ends = new.not_valid_after_utc
    record.current().change(
        host.name,
        f"renewed {certificate.path}",
        before=f"ended {old.not_valid_after_utc:%Y-%m-%d %H:%M}",
        after=f"ends {ends:%Y-%m-%d %H:%M}",
    )
    return ends


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def _names(certificate: x509.Certificate) -> dict[str, str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return {}
    return {
        "alt_names": ",".join(found.get_values_for_type(x509.DNSName)),
        "ip_sans": ",".join(str(ip) for ip in found.get_values_for_type(x509.IPAddress)),
    }


def ends_within(seen: CertificateSeen, hours: float, at: datetime | None = None) -> bool:
    """Whether a certificate ends before `hours` from now."""
    now = at or datetime.now(UTC)
    return seen.not_after is not None and seen.not_after <= now + timedelta(hours=hours)
