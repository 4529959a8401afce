"""A machine to log in to: a real sshd as an ordinary process, in a folder of its own."""

from __future__ import annotations

import getpass
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from blocks.topology import Host
from deployments.lab.binaries import sshd


def keygen(file: Path, kind: str = "ed25519") -> str:
    """Make a key pair; gives the public key without its comment."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", file], check=True)
    return " ".join(file.with_suffix(".pub").read_text().split()[:2])


class Machine:
    """One sshd that accepts the key `user` and certificates of `user_ca`."""

    def __init__(self, folder: Path, address: str, port: int = 2222) -> None:
        self.folder, self.address, self.port = folder, address, port
        self.root = folder / "root"
        self.host_key = keygen(folder / "host")
        self.user_key = keygen(folder / "user")
        self.stranger_key = keygen(folder / "stranger")
        self.ca_key = keygen(folder / "user_ca")
        self.authorized = folder / "authorized_keys"
        self.authorized.write_text(self.user_key + "\n")
        self.authorized.chmod(0o600)
        (folder / "sshd_config").write_text(
            f"ListenAddress {address}\nPort {port}\nHostKey {folder}/host\nPidFile none\n"
            f"AuthorizedKeysFile {self.authorized}\nTrustedUserCAKeys {folder}/user_ca.pub\n"
            "UsePAM no\nStrictModes no\nPasswordAuthentication no\nMaxStartups 100\n"
            "KbdInteractiveAuthentication no\nLogLevel VERBOSE\n"
        )
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def private(self, name: str) -> str:
        return (self.folder / name).read_text()

    def host(self, **fields: object) -> Host:
        known = {
            "name": "vault-1",
            "address": self.address,
            "ssh_port": self.port,
            "ssh_user": getpass.getuser(),
            "host_key": self.host_key,
            "root": str(self.root),
        }
        return Host.model_validate(known | fields)

    def power_on(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sshd(), "-D", "-e", "-f", self.folder / "sshd_config"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        ends = time.monotonic() + 10
        while f"listening on {self.address}" not in self.log.rpartition("power cut")[2]:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < ends, self.log
            time.sleep(0.02)

    def power_cut(self) -> None:
        """Kill sshd with all its sessions and what runs in them."""
        if self.process is None:
            return
        with suppress(psutil.NoSuchProcess):
            family = psutil.Process(self.process.pid)
            for process in [family, *family.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()
        self.process = None
        with (self.folder / "log").open("a") as log:
            log.write("power cut\n")

    def freeze(self) -> None:
        """Stop everything without closing anything, as a hung machine does."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        family = psutil.Process(self.process.pid)
        for process in [family, *family.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def runs(marker: str) -> bool:
    """Whether any process has `marker` as one of its arguments."""
    for process in psutil.process_iter(["cmdline"]):
        if marker in (process.info["cmdline"] or []):
            return True
    return False
