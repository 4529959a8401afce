"""All connections of one mesh, each ready to use, however its credential came here."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr, ValidationError

from blocks.credentials import (
    AWS,
    CONSUL,
    HOSTS,
    PROXMOX,
    VAULT,
    Credentials,
    Kind,
    find_file,
)
from blocks.errors import BadInput, Invalid
from blocks.meshes import MeshTopology, load_mesh, read_mesh
from blocks.topology import AwsCloud, Holder, Mesh, ProxmoxCloud

if TYPE_CHECKING:
    from blocks.aws import AwsAccount
    from blocks.consul import ConsulDatacenter
    from blocks.engine import Block
    from blocks.keys import SecretStore
    from blocks.proxmox import ProxmoxCluster
    from blocks.ssh import SshPool
    from blocks.vault import Auth, VaultCluster

T = TypeVar("T")
B = TypeVar("B", bound="Block")

__all__ = ["Connections", "MeshTopology", "connect", "load_mesh", "read_mesh"]


class Connections:
    """
    The connections of one mesh. Safe to use from many threads.

    Each is made once. `close` closes what was kept open: SSH connections, clients at work.
    """

    def __init__(self, topology: Mesh, credentials: Credentials) -> None:
        self.topology = topology
        self._credentials = credentials
        self._made: dict[Any, Any] = {}
        self._lock = threading.RLock()
        self._kept: set[str] = set()
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was kept open; what is used afterwards is opened anew."""
        with self._lock:
            while self._kept:
                self._made.pop(self._kept.pop(), None)
            self._closing.close()

    def check(self) -> None:
        """Find every credential that the topology calls for; `BadInput` with a line for each missing."""
        problems: list[str] = []

        def tried(find: Callable[[], object]) -> None:
            try:
                find()
            except BadInput as error:
                problems.extend(line for line in error.problems if line not in problems)

        tried(self.hosts)
        for datacenter in self.topology.datacenters:
            match datacenter.cloud:
                case AwsCloud() as cloud:
                    tried(lambda name=cloud.connection: self.aws(name))  # type: ignore[misc]
                case ProxmoxCloud() as cloud:
                    tried(lambda c=cloud: self.proxmox(c.connection, c))  # type: ignore[misc]
        for holder in self._holders():
            if holder.store == "aws-secrets-manager":
                tried(lambda name=holder.connection: self.aws(name))  # type: ignore[misc]
        if problems:
            raise BadInput(problems)

    def vault(self) -> VaultCluster:
        """
        The Vault cluster; how to log in to it is looked for at each login.

        Explicit credentials go first, then the store `vault.credential`, which
        has them from when Vault is set up, then Prefect's block document.
        """
        return self._once("vault", self._vault)

    def consul(self, datacenter: str) -> ConsulDatacenter:
        """One datacenter's Consul, with a token only if one was given explicitly."""
        return self._once(("consul", datacenter), lambda: self._consul(datacenter))

    def aws(self, name: str) -> AwsAccount:
        """An AWS account by the name of its connection."""
        from blocks.aws import AwsAccount

        return self._once(("aws", name), lambda: self._block(name, AWS, AwsAccount))

    def proxmox(self, name: str, cloud: ProxmoxCloud) -> ProxmoxCluster:
        """A Proxmox VE cluster by the name of its connection."""
        from blocks.proxmox import ProxmoxCluster

        def make() -> ProxmoxCluster:
            found = self._block(name, PROXMOX, ProxmoxCluster)
            where = {"address": cloud.address, "ca_file": self._path(cloud.ca_file)}
            return found.model_copy(update={k: v for k, v in where.items() if v})

        return self._once(("proxmox", name, cloud.address), make)

    def hosts(self) -> SshPool:
        """SSH connections to the mesh's hosts, one kept for each."""
        from blocks.ssh import HostAccess

        def make() -> AbstractContextManager[SshPool]:
            access = self._block("hosts", HOSTS, HostAccess)
            if access.key_file:
                access = access.model_copy(update={"key_file": self._path(access.key_file)})
            return access.pool()

        return self.keep("hosts", make)

    def keep(self, name: str, make: Callable[[], AbstractContextManager[T]]) -> T:
        """What `make` opens: opened when it is first asked for, closed with the connections."""

        def opened() -> T:
            found = self._closing.enter_context(make())
            self._kept.add(name)
            return found

        return self._once(name, opened)

    def store(self, holder: Holder) -> SecretStore:
        """Where a holder keeps its document."""
        return self._once(("store", holder.name, holder.store), lambda: self._store(holder))

    # How each is made

    def _once(self, key: Any, make: Callable[[], T]) -> T:
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            found: T = self._made[key]
            return found

    def _path(self, file: str | None) -> str | None:
        """A file of the topology; a relative path starts where the topology lies."""
        if not file:
            return None
        path, origin = Path(file).expanduser(), self.topology.origin
        return str(origin.parent / path if origin else path)

    def _block(self, connection: str, kind: Kind, block: type[B]) -> B:
        fields = self._credentials.fields(connection, kind)
        if fields is not None:
            try:
                return block.model_validate(fields)
            except ValidationError as error:
                raise BadInput(
                    f"{connection}.{'.'.join(map(str, e['loc']))}: {e['msg']}"
                    for e in error.errors(include_input=False)
                ) from None
        found = self._credentials.document(connection, block)
        if found is None:
            raise BadInput(self._credentials.missing(connection, kind))
        return found

    def _vault(self) -> VaultCluster:
        from blocks.vault import VaultCluster

        spec = self.topology.vault
        scheme = urlsplit(spec.address).scheme or "https"
        cluster = VaultCluster(
            nodes={
                name: f"{scheme}://{self.topology.host(name).address}:{spec.port}"
                for name in spec.nodes
            },
            namespace=spec.namespace,
            ca_file=self._path(spec.ca_file),
        )
        cluster.find_credential(self._vault_auth)
        return cluster

    def _vault_auth(self) -> Auth | None:
        from blocks.vault import AppRoleAuth, CertificateAuth, TokenAuth, VaultCluster

        fields = self._credentials.fields("vault", VAULT)
        holder = self.topology.vault.credential
        if fields is None and holder is not None and (kept := self.store(holder).read()):
            if not kept.get("role_id") or not kept.get("secret_id"):
                raise Invalid("it holds no role_id and secret_id", where="vault.credential")
            fields = {name: str(kept[name]) for name in ("role_id", "secret_id")}
        if fields is None:
            found = self._credentials.document("vault", VaultCluster)
            return found.auth if found else None
        where = {name: fields[name] for name in ("mount", "name") if name in fields}
        if "token" in fields:
            return TokenAuth(token=SecretStr(fields["token"]))
        if "role_id" in fields:
            where.pop("name", None)
            secret = SecretStr(fields["secret_id"])
            return AppRoleAuth(role_id=fields["role_id"], secret_id=secret, **where)
        return CertificateAuth(
            cert_file=self._path(fields["cert_file"]) or "",
            key_file=self._path(fields["key_file"]) or "",
            **where,
        )

    def _consul(self, datacenter: str) -> ConsulDatacenter:
        from blocks.consul import ConsulDatacenter

        spec = self.topology.datacenter(datacenter).consul
        addresses = [
            f"https://{self.topology.host(name).address}:{spec.https_port}" for name in spec.servers
        ]
        token = (self._credentials.fields("consul", CONSUL) or {}).get("token")
        return ConsulDatacenter(
            datacenter=datacenter,
            address=addresses[0],
            addresses=addresses,
            token=SecretStr(token) if token else None,
            ca_file=self._path(spec.ca_file),
        )

    def _holders(self) -> list[Holder]:
        vault = self.topology.vault
        return [*vault.holders, *(h for h in (vault.credential, vault.issuing_ca) if h)]

    def _store(self, holder: Holder) -> SecretStore:
        match holder.store:
            case "file":
                from blocks.keys import FileStore

                return FileStore(path=self._path(holder.path) or "")
            case "aws-secrets-manager":
                from blocks.keys_aws import AwsSecretStore

                return AwsSecretStore(
                    account=self.aws(holder.connection),
                    secret=holder.secret or "",
                    region=holder.region,
                    endpoint_url=holder.endpoint_url,
                )
            case "block":
                from blocks.keys_block import BlockStore

                return BlockStore(document=holder.block or "")
            case "prompt":
                from blocks.keys_prompt import PromptStore

                vault = self.topology.vault
                return PromptStore(
                    holder=holder.name,
                    shares=holder.shares if holder in vault.holders else 0,
                    fields=["role_id", "secret_id"] if holder == vault.credential else [],
                )


def connect(
    mesh: Mesh,
    *,
    credentials_file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    use_prefect: bool = False,
) -> Connections:
    """
    The connections of a mesh, their credentials found.

    They are looked for in the environment (`MESH_<CONNECTION>_<FIELD>`), in
    the credentials file (given here, by `MESH_CREDENTIALS`, or `credentials.yaml`
    beside the topology) and, with `use_prefect`, in the Prefect block documents
    `<mesh>-<connection>`.

    Raises:
        BadInput: one line for each credential that is missing, half, or in a
            file that others may read.
    """
    file = credentials_file or find_file(mesh.origin, environ)
    connections = Connections(mesh, Credentials(mesh.name, environ, file, use_prefect))
    connections.check()
    return connections
