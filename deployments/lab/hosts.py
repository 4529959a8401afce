"""
What every lab host's disk has before anything of the mesh is put on it.

A host is a folder, a loopback address and a real sshd. Its disk holds the
host key that the topology pins, the operator's key, sshd's configuration and a
`systemctl` of its own; sessions find that one first on their PATH. The
original disk of a host is never touched again once it is there, but for what
names programs of this machine, which may have moved.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blocks.errors import BadInput
from deployments.lab import binaries, host_systemctl, processes
from deployments.lab.layout import SSH_PORT, UNIT_DIR, LabHost, Layout

FOLDERS = (
    "etc/ssh",
    UNIT_DIR[1:],
    "opt",
    "root",
    "run",
    "tmp",
    "usr/bin",
    "usr/lib/mesh",
    "var/log",
)
ENABLED_DIR = f"{UNIT_DIR}/multi-user.target.wants"
SHADOW = Path("/etc/shadow")
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


# systemd tells in a millisecond what is active, and runbooks ask on every host at once: where
# all is clear from what `systemctl` noted at the start of a unit (its pid, which counts while
# it lives and carries this host's mark, see processes.py), no Python is started for it.
_QUICK = """\
mark() {
    found=
    while read -r line; do
        case $line in "Max realtime timeout"*) found=$line ;; esac
    done < "/proc/$1/limits"
} 2> /dev/null
quick() {
    [ "$1" = is-active ] && [ $# -gt 1 ] && shift && mark $$ && mine=$found told= status=0
    [ -n "$mine" ] || return 1
    for unit; do
        case $unit in -* | *.*) return 1 ;; esac
        if [ -e ROOT/run/$unit.service.status ]; then
            pid= rest=
            while read -r line; do
                case $line in MainPID=*) pid=${line#MainPID=} ;; *) rest=$line ;; esac
            done < ROOT/run/$unit.service.status
            [ -n "$pid" ] && [ -z "$rest" ] && read -r state < "/proc/$pid/stat" || return 1
            case ${state##*) } in Z* | X*) return 1 ;; esac
            mark "$pid" && [ "$found" = "$mine" ] || return 1
            told="${told}active\n"
        else
            told="${told}inactive\n" status=3
        fi
    done
    printf "$told"
    exit $status
} 2> /dev/null
quick "$@"
"""


@dataclass(frozen=True)
class Programs:
    """Programs of this machine that every host needs."""

    sshd: Path
    sftp_server: Path
    systemctl: Path


def programs() -> Programs:
    """
    Find them.

    Raises:
        MissingBinary: one is not there; the message says what to do.
    """
    return Programs(binaries.sshd(), binaries.sftp_server(), binaries.systemctl())


def user() -> str:
    """
    The user that sessions on the hosts run as: whoever runs the lab.

    Raises:
        BadInput: sshd would let this user in nowhere.
    """
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise BadInput(
            f"uid {os.geteuid()} has no name on this machine, and sshd lets in none without: "
            "add it to /etc/passwd"
        ) from None
    # Who can read this list has an sshd that can, and that keeps to it.
    if os.access(SHADOW, os.R_OK) and f"\n{name}:!" in f"\n{SHADOW.read_text()}":
        raise BadInput(
            f"the account {name} is locked on this machine, and sshd lets none in that is: "
            f"run the lab as another user, or unlock it with `usermod --password '*' {name}`"
        )
    return name


def prepare(layout: Layout, found: Programs) -> dict[str, str]:
    """
    Make every host's disk bootable; the hosts' public keys by name.

    Keys that are there stay as they are.
    """
    layout.pki.mkdir(mode=0o700, parents=True, exist_ok=True)
    operator = _key(layout.operator_key, "operator")
    optional = _optional_lines(found.sshd, layout)
    keys = {}
    for host in layout.hosts:
        root = layout.root(host.name)
        for folder in FOLDERS:
            (root / folder).mkdir(parents=True, exist_ok=True)
        keys[host.name] = _key(root / "etc/ssh/ssh_host_ed25519_key", host.name)
        (root / "etc/hostname").write_text(f"{host.name}\n")
        (root / "etc/ssh/authorized_keys").write_text(f"{operator} operator\n")
        _program(root / "usr/bin/systemctl", _systemctl(root, found.systemctl))
        _program(root / "usr/lib/mesh/session", _session(root))
        sshd_config(layout, host.name).write_text(_sshd_config(layout, host, found, optional))
    # The first call compiles what all later ones load.
    subprocess.run(
        [layout.root(layout.hosts[0].name) / "usr/bin/systemctl", "--version"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=60,
    )
    return keys


def sshd_config(layout: Layout, host: str) -> Path:
    """A host's sshd configuration."""
    return layout.root(host) / "etc/ssh/sshd_config"


def enabled_units(root: Path) -> list[str]:
    """The units that start with the host, in the order of their names."""
    folder = root / ENABLED_DIR[1:]
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def enable(root: Path, unit: str) -> None:
    """Have a unit start with its host, as `systemctl enable` does."""
    file = f"{unit}.service"
    link = root / ENABLED_DIR[1:] / file
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(f"{UNIT_DIR}/{file}")


def log_file(root: Path, unit: str) -> Path:
    """Where a unit's output goes; `sshd` and `boot` are the host's own."""
    name = unit.removesuffix(".service")
    journal = root / "var/log/journal" / f"{name}.service.log"
    return journal if journal.exists() else root / "var/log" / f"{name}.log"


def logs(root: Path) -> list[str]:
    """The units of a host that have written something."""
    folder = root / "var/log"
    files = [*folder.glob("*.log"), *folder.glob("journal/*.log")]
    return sorted({f.name.removesuffix(".log").removesuffix(".service") for f in files})


def main_pid(root: Path, unit: str) -> int | None:
    """The pid that `systemctl` noted for a unit when it started it."""
    try:
        lines = (root / "run" / f"{unit}.service.status").read_text().splitlines()
    except OSError:
        return None
    values = dict(line.partition("=")[::2] for line in lines)
    return int(values["MainPID"]) if values.get("MainPID", "").isdigit() else None


def _key(path: Path, comment: str) -> str:
    """The public half of a key, made if it is not there."""
    if not path.exists():
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        public = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        path.with_suffix(".pub").write_text(f"{public.decode()} {comment}\n")
        path.touch(mode=0o600)
        path.write_bytes(private)
    return " ".join(path.with_suffix(".pub").read_text().split()[:2])


def _program(path: Path, text: str) -> None:
    # Replaced, not rewritten: one that runs keeps what it has.
    new = path.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o755)
    new.replace(path)


def bytecode() -> Path:
    """Where Python keeps what it compiled for labs, whatever the caller's settings say of that."""
    return binaries.folder() / "bytecode"


def _systemctl(root: Path, program: Path) -> str:
    module = importlib.util.find_spec("systemctl2.systemctl")
    if os.environ.get("MESH_SYSTEMCTL") or module is None or module.origin is None:
        command = [str(program), "--root", str(root)]
    else:
        # -S and -E: no site packages, no settings of the caller's Python.
        python = [sys.executable, "-S", "-E", "-X", f"pycache_prefix={bytecode()}"]
        command = [*python, str(Path(host_systemctl.__file__)), module.origin, str(root)]
    full = f'exec {shlex.join(command)} "$@"'
    return "#!/bin/sh\n" + _QUICK.replace("ROOT", shlex.quote(str(root))) + full + "\n"


def _session(root: Path) -> str:
    # sshd gives every session to this, so that neither the user's shell nor what it
    # reads at its start decides which `systemctl` a command finds.
    return f"""#!/bin/sh
PATH={root}/usr/bin:{SYSTEM_PATH}
export PATH
cd
if [ -z "$SSH_ORIGINAL_COMMAND" ]; then
    exec "${{SHELL:-/bin/sh}}"
fi
exec /bin/sh -c "$SSH_ORIGINAL_COMMAND"
"""


def _sshd_config(layout: Layout, host: LabHost, found: Programs, optional: list[str]) -> str:
    root = layout.root(host.name)
    # A home of its own: the user's shell reads nothing of the user's there.
    session = processes.environment(layout.id, host.name) | {"HOME": f"{root}/root"}
    lines = [
        f"ListenAddress {host.address}:{SSH_PORT}",
        f'HostKey "{root}/etc/ssh/ssh_host_ed25519_key"',
        f'PidFile "{root}/run/sshd.pid"',
        f'AuthorizedKeysFile "{root}/etc/ssh/authorized_keys"',
        # It would refuse a key in a folder below /tmp. Only this user can write the file.
        "StrictModes no",
        "UsePAM no",
        "PasswordAuthentication no",
        "KbdInteractiveAuthentication no",
        "PermitRootLogin prohibit-password",
        "AllowAgentForwarding no",
        "X11Forwarding no",
        "PrintMotd no",
        "UseDNS no",
        # Every client of a lab comes from 127.0.0.1.
        "MaxStartups 200:30:400",
        "PerSourceMaxStartups none",
        "MaxSessions 100",
        *optional,
        "SetEnv " + " ".join(f'"{name}={value}"' for name, value in session.items()),
        "PermitUserRC no",
        f'ForceCommand "{root}/usr/lib/mesh/session"',
        f'Subsystem sftp "{found.sftp_server}"',
        "LogLevel VERBOSE",
    ]
    return "\n".join(lines) + "\n"


def _optional_lines(sshd: Path, layout: Layout) -> list[str]:
    """Those of the lines that not every version of sshd knows."""
    key = layout.root(layout.hosts[0].name) / "etc/ssh/ssh_host_ed25519_key"
    key.parent.mkdir(parents=True, exist_ok=True)
    _key(key, layout.hosts[0].name)

    def known(line: str) -> bool:
        option = line.replace(" ", "=", 1)
        command = [str(sshd), "-t", "-f", "/dev/null", "-h", str(key), "-o", option]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=10
        )
        return done.returncode == 0

    # Without it a few refused logins shut out 127.0.0.1, which is everybody.
    return [line for line in ["PerSourcePenalties no"] if known(line)]
