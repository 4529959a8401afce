"""Vault against a real OpenBao: logging in, the active node, hvac through our `Api`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import hvac
import pytest
from pydantic import SecretStr

from blocks import calls
from blocks.errors import (
    Absent,
    BadAnswer,
    BadInput,
    Forbidden,
    Invalid,
    NoLeader,
    Transient,
    Unreachable,
    Untrusted,
)
from blocks.vault import AppRoleAuth, CertificateAuth, TokenAuth, VaultCluster
from deployments.lab.binaries import bao
from tests.blocks import faults
from tests.blocks.conftest import free_port, running
from tests.blocks.faults import FaultServer
from tests.blocks.pki import Authority
from tests.blocks.test_http import within

ROOT = "c4nary-root-token-0123456789"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VaultCluster]:
    """The cluster with root's token, an AppRole, certificates, and a namespace `team`."""
    folder = tmp_path_factory.mktemp("bao")
    port = free_port()
    command: list[str | Path] = [bao(), "server", "-dev", "-dev-tls", "-dev-no-store-token"]
    command += [f"-dev-tls-cert-dir={folder}", f"-dev-root-token-id={ROOT}"]
    command += [f"-dev-listen-address=127.0.0.1:{port}"]
    cluster = VaultCluster(
        nodes={"vault-1": f"https://127.0.0.1:{port}"},
        ca_file=str(folder / "vault-ca.pem"),
        auth=TokenAuth(token=SecretStr(ROOT)),
    )
    for _ in running(command, folder / "log", cluster.active):
        with cluster.client() as client:
            client.sys.enable_auth_method("approle")
            client.sys.enable_auth_method("cert")
            client.sys.create_or_update_policy(
                "app", 'path "secret/data/app" { capabilities = ["read"] }'
            )
            client.auth.approle.create_or_update_approle("runbooks", token_policies=["app"])
            client.secrets.kv.v2.create_or_update_secret("app", {"key": "value"})
            client.write_data("sys/namespaces/team", data={})
        yield cluster


@pytest.fixture
def approle(server: VaultCluster) -> VaultCluster:
    with server.client() as client:
        role_id = client.auth.approle.read_role_id("runbooks")["data"]["role_id"]
        secret_id = client.auth.approle.generate_secret_id("runbooks")["data"]["secret_id"]
    auth = AppRoleAuth(role_id=role_id, secret_id=SecretStr(secret_id))
    return server.model_copy(update={"auth": auth}, deep=True)


def read_app(cluster: VaultCluster) -> object:
    with cluster.client() as client:
        answer = client.secrets.kv.v2.read_secret_version("app", raise_on_deleted_version=True)
        return answer["data"]["data"]


# Logging in


def test_a_token(server: VaultCluster):
    assert server.login().get_secret_value() == ROOT
    assert read_app(server) == {"key": "value"}


def test_a_wrong_token_is_forbidden(server: VaultCluster):
    wrong = "c4nary-wrong-token-0123456789"
    cluster = server.model_copy(update={"auth": TokenAuth(token=SecretStr(wrong))})

    with pytest.raises(Forbidden, match="403 permission denied") as caught:
        read_app(cluster)

    assert wrong not in f"{caught.value!r} {caught.value}"
    assert caught.value.where == "vault vault-1"


def test_an_approle_sees_what_its_policy_allows(approle: VaultCluster):
    assert read_app(approle) == {"key": "value"}
    with approle.client() as client, pytest.raises(Forbidden):
        client.secrets.kv.v2.create_or_update_secret("app", {"key": "other"})


def test_a_login_is_kept_and_given_again(approle: VaultCluster, ledger: calls.Ledger):
    first = approle.login()

    assert approle.login() is first
    assert ledger.mutating == []


def test_a_token_that_was_revoked_is_replaced(approle: VaultCluster, server: VaultCluster):
    """A restored snapshot does that, or a colleague."""
    first = approle.login()
    with server.client() as client:
        client.revoke_token(first.get_secret_value())

    assert approle.login() != first
    assert read_app(approle) == {"key": "value"}


def test_logout_revokes_the_token(approle: VaultCluster, server: VaultCluster):
    token = approle.login()

    approle.logout()
    approle.logout()

    with server.node("vault-1", token=token) as api, pytest.raises(Forbidden):
        api.get("/v1/auth/token/lookup-self")


@pytest.mark.parametrize("field", ["role_id", "secret_id"])
def test_a_wrong_approle_is_forbidden_and_not_repeated(approle: VaultCluster, field):
    wrong = "c4nary-0123-4567-89ab-cdef01234567"
    assert isinstance(approle.auth, AppRoleAuth)
    value = SecretStr(wrong) if field == "secret_id" else wrong
    cluster = approle.model_copy(update={"auth": approle.auth.model_copy(update={field: value})})

    with pytest.raises(Forbidden, match="auth/approle/login") as caught:
        cluster.login()

    assert wrong not in f"{caught.value!r} {caught.value} {caught.value.__cause__}"
    assert "approle" in caught.value.remedy


def test_an_auth_method_that_is_not_there(approle: VaultCluster):
    assert isinstance(approle.auth, AppRoleAuth)
    auth = approle.auth.model_copy(update={"mount": "elsewhere"})

    with pytest.raises((Forbidden, Absent)):
        approle.model_copy(update={"auth": auth}).login()


def test_a_certificate(server: VaultCluster, authority: Authority):
    mine, stranger = authority.issue("operator"), authority.issue("stranger")
    with server.client() as client:
        client.write_data(
            "auth/cert/certs/operators",
            data={
                "certificate": authority.ca_file.read_text(),
                "allowed_common_names": "operator",
                "token_policies": "app",
            },
        )

    def cluster(pair: tuple[Path, Path], name: str | None = None) -> VaultCluster:
        auth = CertificateAuth(cert_file=str(pair[0]), key_file=str(pair[1]), name=name)
        return server.model_copy(update={"auth": auth}, deep=True)

    assert read_app(cluster(mine)) == {"key": "value"}
    assert read_app(cluster(mine, "operators")) == {"key": "value"}
    with pytest.raises(Forbidden, match="auth/cert/login"):
        cluster(stranger).login()
    with pytest.raises(BadInput, match="client certificate"):
        cluster((Path("/nowhere"), mine[1])).login()


def test_no_credential_is_said_so(server: VaultCluster):
    cluster = server.model_copy(update={"auth": None})

    with pytest.raises(Forbidden, match="holds no credential"):
        cluster.login()


def test_a_credential_can_be_found_later(server: VaultCluster):
    """The AppRole exists only once Vault has been set up."""
    found: list[TokenAuth] = []
    cluster = server.model_copy(update={"auth": None}, deep=True)
    cluster.find_credential(lambda: found[0] if found else None)

    with pytest.raises(Forbidden):
        cluster.login()
    found.append(TokenAuth(token=SecretStr(ROOT)))

    assert cluster.login().get_secret_value() == ROOT


# hvac through our Api


def test_hvac_raises_our_errors_only(server: VaultCluster):
    with server.client() as client:
        with pytest.raises(Absent):
            client.secrets.kv.v2.read_secret_version("nothing", raise_on_deleted_version=True)
        with pytest.raises(Invalid, match="path is already in use"):
            client.sys.enable_auth_method("approle")
        with pytest.raises(Absent):
            client.secrets.kv.v2.list_secrets("nothing")


def test_hvac_answers_as_it_does(server: VaultCluster):
    with server.client() as client:
        assert isinstance(client, hvac.Client)
        assert client.is_authenticated()
        assert client.sys.is_sealed() is False
        assert client.sys.read_health_status(method="GET")["initialized"] is True
        assert client.secrets.kv.v2.list_secrets("")["data"]["keys"] == ["app"]
        client.sys.enable_secrets_engine("pki", path="ca-raw")
        client.secrets.pki.generate_root("internal", "test", mount_point="ca-raw")
        assert "BEGIN CERTIFICATE" in client.secrets.pki.read_ca_certificate("ca-raw")
        deleted = client.sys.disable_secrets_engine("ca-raw")
        assert deleted.status_code == 204


def test_hvac_calls_are_on_record(server: VaultCluster, ledger: calls.Ledger):
    with server.client() as client:
        client.secrets.kv.v2.read_secret_version("app", raise_on_deleted_version=True)
        client.secrets.kv.v2.list_secrets("")
        client.lookup_token()
        client.secrets.kv.v2.create_or_update_secret("app", {"key": "value"})

    assert [c.what for c in ledger.mutating] == ["POST /v1/secret/data/app"]
    assert ledger.mutating[0].server == "vault vault-1"


def test_hvac_never_uses_the_environments_token(server: VaultCluster, monkeypatch):
    monkeypatch.setenv("VAULT_TOKEN", ROOT)
    monkeypatch.setenv("VAULT_ADDR", "http://127.0.0.1:1")

    with server.client(token=SecretStr("c4nary-no-token")) as client, pytest.raises(Forbidden):
        client.secrets.kv.v2.read_secret_version("app", raise_on_deleted_version=True)


def test_a_garbage_page_is_a_bad_answer():
    def behave(connection, request):
        page = b'{"sealed": false}' if b"health" in request else b"<html>Sign in</html>"
        faults.answer(200, page)(connection, request)

    with FaultServer(behave) as fault:
        cluster = VaultCluster(nodes={"v": fault.url}, auth=TokenAuth(token=SecretStr(ROOT)))
        with cluster.client() as client, pytest.raises(BadAnswer):
            client.secrets.kv.v2.read_secret_version("app", raise_on_deleted_version=True)


def test_a_namespace_goes_with_every_request(server: VaultCluster):
    team = server.model_copy(update={"namespace": "team"}, deep=True)
    with team.client() as client:
        client.sys.enable_secrets_engine("kv", path="own", options={"version": "2"})
        client.secrets.kv.v2.create_or_update_secret("x", {"a": "b"}, mount_point="own")
    with team.node("vault-1", token=SecretStr(ROOT)) as api:
        assert api.get("/v1/own/data/x").json(dict)["data"]["data"] == {"a": "b"}
    with server.node("vault-1", token=SecretStr(ROOT)) as api:
        assert api.get("/v1/own/data/x").absent
        assert api.get("/v1/team/own/data/x").status == 200


# Nodes


def test_a_node_by_itself(server: VaultCluster):
    with server.node("vault-1") as api:
        health = api.get("/v1/sys/health").json(dict)

    assert health["sealed"] is False
    with pytest.raises(BadInput, match="none of its nodes"), server.node("vault-9"):
        pass


def test_a_node_of_another_ca_is_not_trusted(server: VaultCluster, authority: Authority):
    cluster = server.model_copy(update={"ca_file": str(authority.ca_file)})

    with pytest.raises(Untrusted):
        cluster.active()


def test_the_active_node_is_found_past_those_that_hang_or_sleep(server: VaultCluster):
    sealed = faults.answer(503, b'{"sealed": true}')
    standby = faults.answer(429, b'{"sealed": false, "standby": true}')
    with (
        FaultServer(faults.hang) as one,
        FaultServer(sealed) as two,
        FaultServer(standby) as three,
        FaultServer(faults.reset) as four,
    ):
        nodes = {str(n): s.url for n, s in enumerate([one, two, three, four])}
        cluster = server.model_copy(update={"nodes": nodes | server.nodes}, deep=True)

        with within(1):
            assert cluster.active() == "vault-1"
        assert cluster.active(["1", "2", "3"], deadline=1) is None
        assert cluster.active([]) is None
        with within(1):
            assert cluster.active(["0", "1"], deadline=1) is None
        lost = cluster.model_copy(update={"nodes": {"1": two.url}}, deep=True)
        with pytest.raises(NoLeader), lost.client(token=SecretStr("t")):
            pass


def test_an_expired_certificate_of_one_node_does_not_hide_the_active_one(
    server: VaultCluster, authority: Authority
):
    """And is said so if no node is active."""
    context = authority.server_context("old", days=(-10, -1))
    with FaultServer(faults.answer(), tls=context) as old:
        both = server.model_copy(update={"nodes": {"old": old.url} | server.nodes})

        assert both.active() == "vault-1"
        with pytest.raises(Untrusted):
            both.active(["old"])


def test_a_sealed_vault_may_pass():
    with FaultServer(faults.answer(503, b'{"errors":["Vault is sealed"]}')) as fault:
        cluster = VaultCluster(nodes={"v": fault.url})
        with cluster.node("v") as api, pytest.raises(Transient, match="Vault is sealed"):
            api.get("/v1/sys/mounts")


def test_a_login_that_hangs_ends_at_its_deadline():
    def behave(connection, request):
        if b"health" in request:
            faults.answer(200, b'{"sealed": false}')(connection, request)
        else:
            time.sleep(30)

    with FaultServer(behave) as fault:
        auth = AppRoleAuth(role_id="r", secret_id=SecretStr("s"))
        cluster = VaultCluster(nodes={"v": fault.url}, auth=auth, timeout_seconds=0.8)
        with within(1.6), pytest.raises(Unreachable):
            cluster.login()
