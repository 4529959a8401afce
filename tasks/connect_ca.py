"""Connect's certificate authority: which provider it is, moving it, and proof by a real leaf."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from pydantic import SecretStr

from blocks.errors import BadAnswer, Invalid, MeshError, NotConverged, Transient
from blocks.http import Api
from blocks.topology import Datacenter, Mesh
from tasks import consul, record, vault
from tasks.step import step
from tasks.vault_setup import read_secret, write_secret
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.mesh import Connections

CaState = Literal["ok", "failing", "builtin", "off"]
Issuer = Literal["unknown", "follows", "fixed", "pinned"]
CONFIGURATION = "/v1/connect/ca/configuration"
HIDDEN = "hidden"  # what later Consuls show instead of a token
# In KV, one a datacenter: whether the issuer of a mount that we had Consul fill still is to be
# told to follow the newest. Who pins one on purpose leaves no such mark, and is left alone.
ISSUER_PATH = "consul/issuer-{datacenter}"
TO_FOLLOW, FOLLOWS = {"state": "to follow"}, {"state": "follows"}


class CaSeen(NamedTuple):
    """A datacenter's CA: `ok` means its provider is Vault and it has just signed a leaf."""

    state: CaState
    detail: str = ""


def vault_configuration(mesh: Mesh, datacenter: Datacenter, token: SecretStr) -> dict[str, Any]:
    """What Consul's CA configuration is to be; root path shared, intermediate path its own."""
    config: dict[str, Any] = {
        "Address": mesh.vault.address,
        "Token": token.get_secret_value(),
        "RootPKIPath": mesh.vault.root_pki_path,
        "IntermediatePKIPath": datacenter.consul.intermediate_pki_path,
        "LeafCertTTL": mesh.vault.leaf_ttl,
        "IntermediateCertTTL": "8760h",
        "RotationPeriod": "2160h",
    }
    if mesh.vault.consul_ca_file:
        config["CAFile"] = mesh.vault.consul_ca_file
    if mesh.vault.namespace:
        config["Namespace"] = mesh.vault.namespace
    return {"Provider": "vault", "Config": config}


def provider(
    connections: Connections, datacenter: Datacenter, token: SecretStr
) -> tuple[str, dict[str, Any]]:
    """
    The CA provider's name and its configuration, without the token Consul gives in clear.

    ("off", {}) where Connect is switched off.
    """
    name, config = configuration(connections, datacenter, token)
    return name, {k: v for k, v in config.items() if k != "Token"}


def configuration(
    connections: Connections, datacenter: Datacenter, token: SecretStr
) -> tuple[str, dict[str, Any]]:
    """The same with that token; never to be told or kept."""
    try:
        found = consul.operator_get(connections, datacenter, token, CONFIGURATION)
    except MeshError as error:
        if "Connect must be enabled" in str(error):
            return "off", {}
        raise
    if not isinstance(found, dict) or not isinstance(found.get("Config"), dict):
        raise BadAnswer("the CA configuration is no configuration", where=datacenter.name)
    return str(found.get("Provider") or ""), dict(found["Config"])


def uses(config: dict[str, Any], ca_token: SecretStr) -> bool:
    """Whether a configuration holds this token, as far as it shows: later Consuls hide theirs."""
    held = config.get("Token") or HIDDEN
    return held in {HIDDEN, ca_token.get_secret_value()}


def _as_declared(mesh: Mesh, datacenter: Datacenter, found: tuple[str, dict[str, Any]]) -> bool:
    """Whether the provider is Vault with the declared paths, by whichever token."""
    name, config = found
    wanted = vault_configuration(mesh, datacenter, SecretStr(""))["Config"]
    keys = ("Address", "RootPKIPath", "IntermediatePKIPath")
    return name == "vault" and all(
        str(config.get(k, "")).strip("/") == str(wanted[k]).strip("/") for k in keys
    )


@step("connect CA of {datacenter.name} on vault")
def ensure_on_vault(
    connections: Connections,
    datacenter: Datacenter,
    management: SecretStr,
    ca_token: SecretStr,
    vault_token: SecretStr,
) -> bool:
    """
    Make Vault the datacenter's CA provider with the declared paths and this token; whether it was not.

    Holds afterwards: the newest intermediate there is the one that signs.

    Root and intermediate path go in one write: changing only the root unmounts
    the shared intermediate, and Consul still answers 200.

    Raises:
        NotConverged: Consul took the write but shows another configuration.
    """
    mesh = connections.topology
    found = configuration(connections, datacenter, management)
    if _as_declared(mesh, datacenter, found):
        # What is hidden is left to a rotation, which knows that it is another.
        if written := not uses(found[1], ca_token):
            give_token(connections, datacenter, management, ca_token, found)
            record.current().change(
                f"consul {datacenter.name}", "connect CA given the token that Vault keeps"
            )
        follow_latest_issuer(connections, datacenter, vault_token)
        return written
    began = time.monotonic()
    _mark_issuer(connections, datacenter, vault_token)
    write(connections, datacenter, management, vault_configuration(mesh, datacenter, ca_token))
    wait_until(
        lambda: _as_declared(mesh, datacenter, configuration(connections, datacenter, management)),
        "the CA on vault",
        deadline=30.0,
        where=datacenter.name,
        stage="CA",
        remedy="the leader's log names what Vault refused",
    )
    record.current().change(
        f"consul {datacenter.name}",
        "connect CA set to vault",
        before=found[0],
        after=f"vault, {mesh.vault.root_pki_path}, {datacenter.consul.intermediate_pki_path}",
        seconds=time.monotonic() - began,
    )
    follow_latest_issuer(connections, datacenter, vault_token)
    return True


def give_token(
    connections: Connections,
    datacenter: Datacenter,
    management: SecretStr,
    ca_token: SecretStr,
    found: tuple[str, dict[str, Any]],
) -> bool:
    """
    Make a configuration that was found hold this token, all else in it as before; whether it did not.

    One that Consul hides is written: that changes nothing if it is the same.

    Raises:
        NotConverged: Consul took the write but shows another.
    """
    name, config = found
    secret = ca_token.get_secret_value()
    if config.get("Token") == secret:
        return False
    # All in one write: a change of single paths would have Consul unmount what it signs with.
    body = {"Provider": name, "Config": {**config, "Token": secret}}
    write(connections, datacenter, management, body)
    wait_until(
        lambda: uses(configuration(connections, datacenter, management)[1], ca_token),
        "the CA token to be configured",
        deadline=30.0,
        where=datacenter.name,
        stage="CA",
    )
    return True


def _mark_issuer(connections: Connections, datacenter: Datacenter, vault_token: SecretStr) -> None:
    """Note that a mount is about to be filled by us, for whoever finds it half done."""
    mesh, path = connections.topology, ISSUER_PATH.format(datacenter=datacenter.name)
    with connections.vault().node(vault.await_active(connections), token=vault_token) as api:
        found, version = read_secret(api, mesh, path)
        if found != TO_FOLLOW:
            write_secret(api, mesh, path, TO_FOLLOW, version)


@step("newest issuer of {datacenter.name} signs")
def follow_latest_issuer(
    connections: Connections, datacenter: Datacenter, vault_token: SecretStr
) -> bool:
    """
    Make the newest intermediate in Vault the one that signs, where we had Consul put it there.

    Whether it was not so. Vault since 1.11 keeps several issuers a mount, and a renewed intermediate
    is added without becoming the default, so a renewal never takes effect
    (hashicorp/consul#15217).
    """
    mesh, path = connections.topology, ISSUER_PATH.format(datacenter=datacenter.name)
    mount = datacenter.consul.intermediate_pki_path.strip("/")
    host = vault.await_active(connections)
    with connections.vault().node(host, token=vault_token) as api:
        mark, version = read_secret(api, mesh, path)
        if mark != TO_FOLLOW:
            return False
        fixed = _fixed_issuer(api, mount)
        if fixed is not None:
            api.post(
                f"/v1/{mount}/config/issuers",
                json={"default": fixed, "default_follows_latest_issuer": True},
            )
        write_secret(api, mesh, path, FOLLOWS, version)
    if fixed is None:
        return False
    record.current().change("vault", f"newest issuer at {mount} signs", before="the first one")
    return True


def _fixed_issuer(api: Api, mount: str) -> str | None:
    answer = api.get(f"/v1/{mount}/config/issuers", answers=(400, 404, 405))
    if answer.status != 200:
        return None  # a Vault before 1.11, no issuer yet, or no mount
    data = answer.json(dict).get("data") or {}
    return None if data.get("default_follows_latest_issuer") else data.get("default") or None


def issuer(connections: Connections, datacenter: Datacenter, vault_token: SecretStr) -> Issuer:
    """
    Whether a renewed intermediate of a datacenter would be the one that signs; never an error.

    `fixed`: it would not, and a run of ours that was cut short left it so.
    `pinned`: it would not, and that is somebody else's choice, or Vault's default.
    """
    mesh, path = connections.topology, ISSUER_PATH.format(datacenter=datacenter.name)
    mount = datacenter.consul.intermediate_pki_path.strip("/")
    try:
        host = vault.await_active(connections)
        with connections.vault().node(host, token=vault_token, deadline=5.0) as api:
            if not _fixed_issuer(api, mount):
                return "follows"
            return "fixed" if read_secret(api, mesh, path)[0] == TO_FOLLOW else "pinned"
    except MeshError:
        return "unknown"


@step("connect CA of {datacenter.name} built in")
def ensure_built_in(
    connections: Connections, datacenter: Datacenter, management: SecretStr
) -> bool:
    """
    Make Consul's built-in provider the CA; whether it was not.

    Vault must serve for this: Consul reads the old root to cross-sign the new.
    """
    found = provider(connections, datacenter, management)
    if found[0] == "consul":
        return False
    body = {
        "Provider": "consul",
        "Config": {"LeafCertTTL": connections.topology.vault.leaf_ttl, "RotationPeriod": "2160h"},
    }
    write(connections, datacenter, management, body)
    wait_until(
        lambda: provider(connections, datacenter, management)[0] == "consul",
        "the built-in CA",
        deadline=30.0,
        where=datacenter.name,
        stage="CA",
    )
    record.current().change(
        f"consul {datacenter.name}", "connect CA set to built-in", before=found[0]
    )
    return True


def write(
    connections: Connections, datacenter: Datacenter, token: SecretStr, body: dict[str, Any]
) -> None:
    """
    Give a datacenter's leader a CA configuration.

    Raises:
        Transient: a secondary follows a change of the primary's root at this moment.
        Invalid: Consul, or Vault through it, rejects it; the one before stands.
    """
    leader = consul.await_quorum(connections, datacenter)
    block = connections.consul(datacenter.name)
    with block.client(consul.url(connections, leader), token=token, dc="", deadline=30.0) as api:
        try:
            api.put(CONFIGURATION, json=body)
        except Invalid as error:
            # It follows a change of the primary's root at this moment; UNINITIALIZED is the lock.
            if "RECONFIGURING" in error.message:
                raise Transient(error.message, where=datacenter.name) from None
            raise


def sign_leaf(
    connections: Connections, datacenter: Datacenter, token: SecretStr, *, deadline: float = 6.0
) -> str:
    """
    Have a leaf signed now and check its chain to the active root; the root's name.

    For a service name nobody used before, since an agent answers a known one
    from its cache while the CA is broken.

    Raises:
        MeshError: it was not signed in time.
        NotConverged: it was, but does not chain to the active root.
    """
    name = f"mesh-runbooks-probe-{secrets.token_hex(6)}"
    block = connections.consul(datacenter.name)
    server = datacenter.consul.servers[0]
    with block.client(
        consul.url(connections, server), token=token, dc="", deadline=deadline
    ) as api:
        leaf = api.get(f"/v1/agent/connect/ca/leaf/{name}").json(dict)
    active = _active(connections, datacenter, token)
    chain = x509.load_pem_x509_certificates(str(leaf["CertPEM"]).encode())
    bundle = chain[1:] + [
        x509.load_pem_x509_certificate(pem.encode())
        for pem in active.get("IntermediateCerts") or []
    ]
    root = x509.load_pem_x509_certificate(str(active["RootCert"]).encode())
    if not chains(chain[0], bundle, root):
        raise NotConverged("the leaf does not chain to the active root", where=datacenter.name)
    return _fingerprint(root)


def active_root(connections: Connections, datacenter: Datacenter, token: SecretStr) -> str:
    """The fingerprint, cut short, of the root that a datacenter's servers trust now."""
    active = _active(connections, datacenter, token)
    return _fingerprint(x509.load_pem_x509_certificate(str(active["RootCert"]).encode()))


def _active(connections: Connections, datacenter: Datacenter, token: SecretStr) -> dict[str, Any]:
    roots = consul.operator_get(connections, datacenter, token, "/v1/connect/ca/roots") or {}
    active = [r for r in roots.get("Roots") or [] if r.get("Active")]
    if len(active) != 1:
        raise BadAnswer(f"{len(active)} active roots", where=datacenter.name)
    found: dict[str, Any] = active[0]
    return found


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()[:12]


def chains(leaf: x509.Certificate, bundle: list[x509.Certificate], root: x509.Certificate) -> bool:
    """Whether signatures lead from `leaf` through `bundle` to `root`."""
    here, left = leaf, list(bundle)
    while True:
        if _issued(here, root):
            return True
        nearer = next((c for c in left if c.subject != here.subject and _issued(here, c)), None)
        if nearer is None:
            return False
        left.remove(nearer)
        here = nearer


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def look(connections: Connections, datacenter: Datacenter, token: SecretStr) -> CaSeen:
    """Provider and a really signed leaf; never an error."""
    try:
        name, _ = provider(connections, datacenter, token)
    except MeshError as error:
        return CaSeen("failing", str(error))
    if name == "off":
        return CaSeen("off")
    try:
        root = sign_leaf(connections, datacenter, token)
    except MeshError as error:
        return CaSeen("failing", str(error))
    return CaSeen("ok" if name == "vault" else "builtin", f"chains to root {root}")


@step("wait for a signed leaf in {datacenter.name}")
def await_leaf(
    connections: Connections, datacenter: Datacenter, token: SecretStr, *, deadline: float = 60.0
) -> str:
    """
    Wait until a leaf is really signed in a datacenter; the root it chains to.

    Raises:
        NotConverged: none within `deadline` seconds.
    """

    def signed() -> str:
        try:
            return sign_leaf(connections, datacenter, token)
        except Invalid as error:
            # Consul hands on whatever Vault, or the primary, said to it as a 500 of its own.
            raise Transient(error.message, where=datacenter.name) from None

    root: str = wait_until(
        signed,
        "a leaf to be signed",
        deadline=deadline,
        where=datacenter.name,
        stage="CA",
        every=0.2,
        remedy="is Vault active, and does Consul's CA token live? `mesh run boot-readiness` looks",
    )
    record.current().seen(f"consul {datacenter.name}", "signs leaves")
    return root
