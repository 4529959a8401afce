"""
The operator's certificate authority, and the certificates it puts on hosts.

It signs what must be there before Vault serves: the certificates of Vault
itself and of every Consul agent. Vault's own PKI signs the rest later.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from deployments.lab.layout import LabHost, Layout

_DAY = dt.timedelta(days=1)
CA_DAYS, SERVER_DAYS = 3650, 365


@dataclass(frozen=True)
class Names:
    """What a certificate says its holder is called."""

    common_name: str
    dns: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class Authority:
    """A certificate authority: `ca.pem` (0444) and `ca.key` (0400) in one directory."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(
        cls,
        directory: Path,
        common_name: str = "Lab operator CA",
        not_after: dt.datetime | None = None,
    ) -> Authority:
        """Make a new authority and keep it in `directory`, which must hold none."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(name, name, key, not_after or _now() + CA_DAYS * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        made = cls(certificate, key)
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / "ca.key", _key_pem(key), 0o400)
        _write(directory / "ca.pem", made.pem, 0o444)
        return made

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """Read the authority that `create` left in `directory`."""
        certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return cls(certificate, key)

    @property
    def pem(self) -> bytes:
        """The authority's own certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def hand_over(self, path: Path) -> None:
        """Keep the authority in one JSON file (0400), for Vault to take it over."""
        kept = {"certificate": self.pem.decode(), "private_key": _key_pem(self.key).decode()}
        path.unlink(missing_ok=True)
        _write(path, json.dumps(kept).encode(), 0o400)

    def issue(
        self,
        names: Names,
        not_before: dt.datetime | None = None,
        not_after: dt.datetime | None = None,
    ) -> Pair:
        """A certificate good for serving and for dialling; a past `not_after` gives an expired one."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names.common_name)])
        end = not_after or _now() + SERVER_DAYS * _DAY
        start = not_before or min(_now(), end) - _DAY
        alternatives: list[x509.GeneralName] = [x509.DNSName(n) for n in names.dns]
        alternatives += [x509.IPAddress(ipaddress.ip_address(a)) for a in names.addresses]
        both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            _builder(subject, self.certificate.subject, key, end, start)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(both), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return Pair(certificate.public_bytes(serialization.Encoding.PEM), _key_pem(key))


def server_names(layout: Layout, host: LabHost) -> Names:
    """
    The names that a host's `vault` or `consul` certificate carries.

    A Consul server's two `server.<dc>.consul` names are what other servers
    check, and what mesh gateways route by, when datacenters are federated.
    """
    if "vault" in host.roles:
        return Names(
            host.name,
            ("localhost", host.name),
            ("127.0.0.1", host.address, layout.vault_balancer),
        )
    dc = host.datacenter
    if "consul-server" in host.roles:
        names = (f"server.{dc}.consul", f"{host.name}.server.{dc}.consul")
    else:
        names = (f"client.{dc}.consul", f"{host.name}.client.{dc}.consul")
    return Names(names[0], (*names, "localhost"), ("127.0.0.1", host.address))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    end: dt.datetime,
    start: dt.datetime | None = None,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start or _now() - _DAY)
        .not_valid_after(end)
    )


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not ca,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def _write(path: Path, data: bytes, mode: int) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)
    path.chmod(mode)
