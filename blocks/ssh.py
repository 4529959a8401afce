"""Access to the machines themselves: commands, files and connections over SSH."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, HttpUrl, SecretStr

from blocks.engine import Block
from blocks.errors import BadInput
from blocks.files import read_secret
from blocks.topology import Host

if TYPE_CHECKING:
    from paramiko import PKey

    from blocks.ssh_session import Ssh


class HostAccess(Block):
    """
    The key that opens the mesh's machines over SSH.

    A machine is spoken to only if it proves to have the host key that the
    topology pins.

    Example:
        ```python
        from blocks import HostAccess

        access = HostAccess.load("BLOCK_NAME")
        with access.connect(host) as ssh:
            ssh.run("systemctl is-active consul", mutates=False, deadline=10)
        ```
    """

    _block_type_name = "Host Access"
    _block_type_slug = "host-access"
    _documentation_url = HttpUrl("https://man.openbsd.org/sshd.8")

    user: str | None = Field(
        default=None, description="Log in as this user instead of the topology's `ssh_user`."
    )
    private_key: SecretStr | None = Field(
        default=None, description="Private key, in OpenSSH's or PEM format, without passphrase."
    )
    key_file: str | None = Field(
        default=None, description="File of the private key, mode 0400 or 0600."
    )
    certificate: str | None = Field(
        default=None, description="User certificate for the key, such as Vault's SSH engine signs."
    )
    timeout_seconds: float = Field(
        default=10.0, gt=0, description="Limit on connecting, in seconds."
    )

    @contextmanager
    def connect(self, host: Host, deadline: float | None = None) -> Iterator[Ssh]:
        """
        One connection to one host, closed at the end of the block.

        Raises:
            Refused: the topology pins no key for this host.
            Untrusted: the host has another key than the pinned one.
            Forbidden: the host does not accept our key.
            Unreachable: no connection within `deadline` seconds.
        """
        from blocks.ssh_session import Ssh

        ssh = Ssh(host, self.user or host.ssh_user, self.key(), self.timeout_seconds)
        try:
            ssh.open(deadline or self.timeout_seconds)
            yield ssh
        finally:
            ssh.close()

    @contextmanager
    def pool(self) -> Iterator[SshPool]:
        """Connections to many hosts, each opened when first used and kept for the block."""
        pool = SshPool(self.user, self.key, self.timeout_seconds)
        try:
            yield pool
        finally:
            pool.close()

    def key(self) -> PKey:
        """The private key, with its certificate if there is one; `BadInput` if it is unusable."""
        import paramiko

        where = "private_key"
        if self.private_key:
            text = self.private_key.get_secret_value()
        elif self.key_file:
            where = self.key_file
            data = read_secret(Path(self.key_file).expanduser())
            if data is None:
                raise BadInput(f"hosts: {where}: there is no such file")
            text = data.decode(errors="replace")
        else:
            raise BadInput("hosts: neither private_key nor key_file is given")
        kinds = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)
        for kind in kinds:
            try:
                key = kind.from_private_key(io.StringIO(text.strip() + "\n"))
            except paramiko.PasswordRequiredException:
                raise BadInput(f"hosts: {where}: the key has a passphrase") from None
            except (paramiko.SSHException, ValueError, TypeError, IndexError):
                continue
            return self._certified(key)
        raise BadInput(f"hosts: {where}: no private key of kind Ed25519, ECDSA or RSA")

    def _certified(self, key: PKey) -> PKey:
        if not self.certificate:
            return key
        certificate = self.certificate.strip()
        # The library would take a path too, and then read whatever file it names.
        if not re.match(r"\S+-cert-v01@openssh\.com \S+", certificate):
            raise BadInput("hosts: certificate: not an OpenSSH user certificate")
        try:
            key.load_certificate(certificate)
        except (ValueError, TypeError) as error:
            raise BadInput(f"hosts: certificate: {error}") from None
        return key


class SshPool:
    """One connection a host, for a whole run and all its threads."""

    def __init__(self, user: str | None, key: Callable[[], PKey], deadline: float = 10.0) -> None:
        self._user = user
        self._find_key = key
        self._key: PKey | None = None
        self._deadline = deadline
        self._lock = threading.Lock()
        self._open: dict[Host, Ssh] = {}

    def on(self, host: Host) -> Ssh:
        """The connection to `host`; it is opened when first used."""
        with self._lock:
            if self._key is None:
                self._key = self._find_key()
            if host not in self._open:
                from blocks.ssh_session import Ssh

                user = self._user or host.ssh_user
                self._open[host] = Ssh(host, user, self._key, self._deadline)
            return self._open[host]

    @contextmanager
    def connect(self, host: Host, deadline: float | None = None) -> Iterator[Ssh]:
        """The connection to `host`, which answers within `deadline` seconds; it is kept open."""
        ssh = self.on(host)
        ssh.open(deadline)
        yield ssh

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            opened = list(self._open.values())
            self._open.clear()
        if opened:  # each takes its own tenth of a second to hang up
            with ThreadPoolExecutor(len(opened)) as pool:
                list(pool.map(lambda ssh: ssh.close(), opened))
