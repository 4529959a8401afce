"""The connection to a Vault (or OpenBao) cluster, node by node or at the active one."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, Field, HttpUrl, PrivateAttr, SecretStr

from blocks.engine import Block
from blocks.errors import BadAnswer, BadInput, Forbidden, Invalid, NoLeader, Refused, Transient
from blocks.http import Api
from blocks.kept import Kept

if TYPE_CHECKING:
    import hvac

# What /v1/sys/health says by its status: active, standby, recovery secondary,
# performance standby, uninitialised, sealed.
HEALTH = (200, 429, 472, 473, 501, 503)
HEALTH_SECONDS = 5.0


class TokenAuth(BaseModel):
    """A token that was issued by somebody else."""

    kind: Literal["token"] = "token"
    token: SecretStr = Field(description="The token itself.")


class AppRoleAuth(BaseModel):
    """Log in as an AppRole."""

    kind: Literal["approle"] = "approle"
    role_id: str = Field(description="RoleID of the AppRole.")
    secret_id: SecretStr = Field(description="SecretID of the AppRole.")
    mount: str = Field(default="approle", description="Path of the auth method.")


class CertificateAuth(BaseModel):
    """Log in with a TLS client certificate."""

    kind: Literal["cert"] = "cert"
    cert_file: str = Field(description="File of the client certificate.")
    key_file: str = Field(description="File of its private key.")
    name: str | None = Field(
        default=None, description="Role to log in as; any that fits if absent."
    )
    mount: str = Field(default="cert", description="Path of the auth method.")


Auth = TokenAuth | AppRoleAuth | CertificateAuth


class VaultCluster(Block):
    """
    Nodes of one Vault cluster and how to log in to it.

    A node is spoken to directly where it matters which one it is (unsealing,
    health); everything else goes to the active node.

    Example:
        ```python
        from blocks import VaultCluster

        vault = VaultCluster.load("BLOCK_NAME")
        with vault.client() as client:
            client.secrets.kv.v2.read_secret_version(path="app", mount_point="mesh")
        ```
    """

    _block_type_name = "Vault Cluster"
    _block_type_slug = "vault-cluster"
    _documentation_url = HttpUrl("https://developer.hashicorp.com/vault/api-docs")

    nodes: dict[str, str] = Field(
        default={}, description="Base URL of each node's API, by the name of its host."
    )
    namespace: str | None = Field(default=None, description="Namespace of all requests.")
    ca_file: str | None = Field(
        default=None, description="File with the CA that signed the nodes' certificates."
    )
    ca_pem: str | None = Field(default=None, description="The same CA as text.")
    # Not `Annotated[...] | None`: Prefect would not see the secrets inside, and show them.
    auth: Auth | None = Field(
        default=None,
        discriminator="kind",
        description="How to log in; absent only before Vault is initialised.",
    )
    timeout_seconds: float = Field(
        default=10.0, gt=0, description="Limit on each whole call, in seconds."
    )

    _kept: Kept = PrivateAttr(default_factory=Kept)

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._kept = Kept()  # noqa: SLF001 - its own class
        return copied

    @contextmanager
    def node(
        self,
        host: str,
        token: SecretStr | None = None,
        deadline: float | None = None,
        *,
        certificate: tuple[str, str] | None = None,
        in_namespace: bool | None = None,
    ) -> Iterator[Api]:
        """
        An `Api` that speaks to one node directly, without a token unless one is given.

        Requests are about the block's namespace if `in_namespace`, by default
        where there is a token. What concerns the node itself, such as its
        health, its seal and raft, exists outside of namespaces only.
        """
        if host not in self.nodes:
            raise BadInput(f"vault: {host} is none of its nodes ({', '.join(sorted(self.nodes))})")
        headers = {"X-Vault-Request": "true"}
        if token:
            headers["X-Vault-Token"] = token.get_secret_value()
        if self.namespace and (in_namespace if in_namespace is not None else bool(token)):
            headers["X-Vault-Namespace"] = self.namespace
        with Api(
            f"vault {host}",
            self.nodes[host],
            ca_file=self.ca_file,
            ca_pem=self.ca_pem,
            certificate=certificate,
            headers=headers,
            deadline=deadline or self.timeout_seconds,
        ) as api:
            yield api

    def active(
        self, nodes: Iterable[str] | None = None, deadline: float | None = None
    ) -> str | None:
        """
        The host of the active node, `None` if there is none now.

        All nodes are asked at once, so that one that hangs delays nothing. An
        error that waiting does not cure, such as an expired certificate, is
        raised only if no other node is active.
        """
        hosts = list(self.nodes if nodes is None else nodes)
        limit = min(self.timeout_seconds, HEALTH_SECONDS) if deadline is None else deadline

        def is_active(host: str) -> bool:
            with self.node(host, deadline=limit) as api:
                answer = api.get("/v1/sys/health", answers=HEALTH)
                return answer.status == 200 and answer.json(dict).get("sealed") is False

        if not hosts:
            return None
        pool = ThreadPoolExecutor(len(hosts))
        refused: Refused | None = None
        try:
            asked = {pool.submit(contextvars.copy_context().run, is_active, h): h for h in hosts}
            for done in as_completed(asked):
                try:
                    if done.result():
                        return asked[done]
                except Transient:
                    continue
                except Refused as error:
                    refused = error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if refused:
            raise refused
        return None

    def _active(self) -> str:
        host = self.active()
        if host is None:
            raise NoLeader("no node is active", where="vault")
        return host

    def login(self) -> SecretStr:
        """
        Log in at the active node and give the token; with a token as credential, that.

        A token is kept, and given again while it is good and less than four
        fifths of its life are over.

        Raises:
            NoLeader: no node is active.
            Forbidden: the credential is wrong, or there is none.
        """
        with self._kept.lock:
            held: tuple[SecretStr, float] | None = self._kept.get("login")
            if held and self._still_good(*held):
                return held[0]
            self._kept.pop("login", None)
            find = self._kept.get("credential")
            auth: Auth | None = self.auth or (find and find())
            if auth is None:
                raise Forbidden(
                    "this connection holds no credential",
                    where="vault",
                    remedy="it is made when Vault is set up; before that only the initial root "
                    "token or key shares help",
                )
            if isinstance(auth, TokenAuth):
                return auth.token
            held = self._kept["login"] = self._log_in(auth)
            return held[0]

    def _still_good(self, token: SecretStr, until: float) -> bool:
        """Whether a token lives on; a restored snapshot or a colleague may have ended it."""
        if time.monotonic() >= until:
            return False
        with self.node(self._active(), token=token) as api:
            answer = api.get("/v1/auth/token/lookup-self", absent_ok=False, answers=(403,))
            return answer.status == 200

    def find_credential(self, credential: Callable[[], Auth | None]) -> None:
        """Ask `credential` at each login, where the block itself holds none."""
        self._kept["credential"] = credential

    def _log_in(self, auth: AppRoleAuth | CertificateAuth) -> tuple[SecretStr, float]:
        body: dict[str, Any] = {}
        certificate: tuple[str, str] | None = None
        if isinstance(auth, AppRoleAuth):
            body = {"role_id": auth.role_id, "secret_id": auth.secret_id.get_secret_value()}
        else:
            body = {"name": auth.name} if auth.name else {}
            certificate = (auth.cert_file, auth.key_file)
        path = f"/v1/auth/{auth.mount.strip('/')}/login"
        with self.node(self._active(), certificate=certificate, in_namespace=True) as api:
            try:
                # A login changes nothing that the mesh runs on.
                answer = api.put(path, json=body, mutates=False, absent_ok=False)
            except Invalid as error:
                # "invalid role or secret ID" is a 400.
                raise Forbidden(
                    error.message,
                    where=error.where,
                    remedy=f"check the {auth.kind} credential of this connection",
                ) from None
            found = answer.json(dict).get("auth")
            token = found.get("client_token") if isinstance(found, dict) else None
            if not isinstance(token, str) or not token:
                raise BadAnswer(f"{answer.what}: it gives no token", where=api.server)
            life = found.get("lease_duration")
            seconds = 0.8 * life if isinstance(life, int) and life > 0 else float("inf")
            return SecretStr(token), time.monotonic() + seconds

    def logout(self) -> None:
        """Revoke the token of the block's own login, if there is one."""
        with self._kept.lock:
            held = self._kept.pop("login", None)
        if held:
            with self.node(self._active(), token=held[0]) as api:
                api.post("/v1/auth/token/revoke-self", mutates=False, answers=(403,))

    @contextmanager
    def client(
        self, token: SecretStr | None = None, deadline: float | None = None
    ) -> Iterator[hvac.Client]:
        """
        An `hvac.Client` at the active node, logged in unless a token is given.

        It sends through `Api`: deadline, record of calls and errors are ours,
        never `requests`' or hvac's.
        """
        from blocks.vault_hvac import client_through

        own = token is None
        token = token or self.login()
        with self.node(self._active(), token=token, deadline=deadline) as api:
            try:
                yield client_through(api, token)
            except Forbidden:
                if own:
                    self._kept.pop("login", None)  # revoked under us: the next logs in anew
                raise
