"""
Programs out of Debian's archive, without root and with every signature checked.

apt does the work, with its state in a scratch folder and its mirror taken from the machine's own
configuration; the packages are unpacked into the lab's folder and never installed.
"""

import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The last Debian release that carries Consul. Its keys are in every later Debian's keyring.
CONSUL_RELEASE = "bullseye"
KEYRINGS = tuple(
    Path("/usr/share/keyrings") / name
    for name in (
        "debian-archive-keyring.gpg",
        "debian-archive-keyring.pgp",
        "debian-archive-bullseye-stable.gpg",
    )
)
APT_SECONDS = 300


class NotFetched(RuntimeError):
    """A package could not be had; the message is one line and says why."""


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """
    Yield a folder inside the target, so that a rename into place is atomic.

    Raises:
        NotFetched: whatever went wrong while it was used, in one line.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as name:
            yield Path(name)
    except (OSError, subprocess.SubprocessError) as error:
        raise NotFetched(_said(error)) from error


def fetch_consul(folder: Path) -> None:
    """Put `consul` into the folder, from the last release of Debian that has it."""
    keyring = next((path for path in KEYRINGS if path.exists()), None)
    if keyring is None:
        raise NotFetched("Debian's keyring is not here: install debian-archive-keyring")
    failures: list[subprocess.SubprocessError] = []
    with _scratch(folder) as scratch:
        for number, mirror in enumerate(_mirrors()):
            attempt = scratch / str(number)
            attempt.mkdir()
            sources = attempt / "sources.list"
            sources.write_text(f"deb [signed-by={keyring}] {mirror} {CONSUL_RELEASE} main\n")
            try:
                _download(attempt, "consul", sources=sources)
            except subprocess.SubprocessError as failed:
                failures.append(failed)
                continue
            (attempt / "tree/usr/bin/consul").replace(folder / "consul")
            return
        if failures:
            raise failures[0]
    raise NotFetched("apt's configuration on this machine names no mirror")


def _mirrors() -> list[str]:
    """List the mirrors this machine installs from, those of Debian first."""
    # apt itself reads its configuration: one-line lists, deb822, disabled entries and all.
    answer = _run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(COMPONENT)", "Created-By: Packages"]
    )
    targets = (line.split(" ") for line in answer.splitlines())
    uris = [uri for uri, component in targets if component == "main" and "security" not in uri]
    return sorted(dict.fromkeys(uris), key=lambda uri: "debian" not in uri)


def fetch_openssh(folder: Path) -> None:
    """Put `sshd` and `sftp-server` into the folder, from this machine's own release."""
    with _scratch(folder) as scratch:
        _download(scratch, "openssh-server", "openssh-sftp-server")
        tree = scratch / "tree"
        _complete(tree / "usr/sbin/sshd", scratch)
        if not _is_user("sshd"):
            # As root sshd insists on this user. It need not be added to the machine:
            # nss_wrapper shows a program another /etc/passwd.
            _download(scratch, "libnss-wrapper", update=False)
            entries = Path("/etc/passwd").read_text()
            entries += "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n"
            (tree / "passwd").write_text(entries)

        home = folder / "openssh"
        shutil.rmtree(home, ignore_errors=True)
        tree.rename(home)
        for name, lines in (
            ("sftp-server", 'exec "$here/usr/lib/openssh/sftp-server" "$@"'),
            ("sshd", _sshd_lines(home)),
        ):
            script = scratch / name
            script.write_text(
                f'#!/bin/sh\nhere="$(cd "$(dirname "$0")" && pwd)/openssh"\n{lines}\n'
            )
            script.chmod(0o755)
            script.replace(folder / name)


def _complete(program: Path, scratch: Path) -> None:
    """Add the libraries that the program needs and the machine lacks."""
    tried: set[str] = set()
    while missing := _lacks_libraries(program, scratch / "tree"):
        packages = _libraries_not_installed(scratch) - tried
        if not packages:
            raise NotFetched(f"no package brings {missing[0]} for {program.name}")
        tried |= packages
        _download(scratch, *sorted(packages), update=False)


def _sshd_lines(home: Path) -> str:
    libraries = {f"$here/{path.parent.relative_to(home)}" for path in home.rglob("lib*.so*")}
    lines = [f'export LD_LIBRARY_PATH="{":".join(sorted(libraries))}"'] if libraries else []
    if (home / "passwd").exists():
        wrapper = next(home.rglob("libnss_wrapper.so")).relative_to(home)
        lines += [
            'if [ "$(id -u)" = 0 ]; then',
            '    export NSS_WRAPPER_PASSWD="$here/passwd" NSS_WRAPPER_GROUP=/etc/group',
            f'    export LD_PRELOAD="$here/{wrapper}"',
            "fi",
        ]
    command = 'exec "$here/usr/sbin/sshd"'
    # From 9.8 on sshd is several programs, which it looks for where the package puts them.
    for option, program in (("SshdSessionPath", "sshd-session"), ("SshdAuthPath", "sshd-auth")):
        if (home / "usr/lib/openssh" / program).exists():
            command += f' -o "{option}=$here/usr/lib/openssh/{program}"'
    return "\n".join([*lines, f'{command} "$@"'])


def _lacks_libraries(program: Path, tree: Path) -> list[str]:
    places = {str(path.parent) for path in tree.rglob("lib*.so*")}
    answer = _run(["ldd", str(program)], LD_LIBRARY_PATH=":".join(sorted(places)))
    return re.findall(r"^\s*(\S+) => not found", answer, re.MULTILINE)


def _libraries_not_installed(scratch: Path) -> set[str]:
    needed: set[str] = set()
    for package in scratch.glob("*.deb"):
        depends = _run(["dpkg-deb", "--field", str(package), "Depends"])
        needed |= set(re.findall(r"(?:^|[,|] )(lib[a-z0-9.+-]+)", depends))
    installed = _run(["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n"])
    return needed - {
        line.partition(" ")[0] for line in installed.splitlines() if line.endswith(" installed")
    }


def _download(
    scratch: Path, *packages: str, sources: Path | None = None, update: bool = True
) -> None:
    """Unpack packages into `tree`, with apt's state in the scratch folder."""
    settings = {
        "Dir::State::Lists": scratch / "lists",
        "Dir::Cache": scratch / "cache",
        "APT::Sandbox::User": _user(),
        "APT::Get::AllowUnauthenticated": "false",
        "Acquire::AllowInsecureRepositories": "false",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
        "Acquire::http::Timeout": "30",
    }
    if sources:
        settings |= {"Dir::Etc::SourceList": sources, "Dir::Etc::SourceParts": "/dev/null"}
        settings |= {"APT::Update::Error-Mode": "any"}  # one source: without it nothing follows
    apt = ["apt-get", "--quiet=2"]
    for setting, value in settings.items():
        apt += ["--option", f"{setting}={value}"]
    for partial in ("lists/partial", "cache/archives/partial"):
        (scratch / partial).mkdir(parents=True, exist_ok=True)
    if update:
        _run([*apt, "update"])
    _run([*apt, "download", *packages], at=scratch)
    for package in scratch.glob("*.deb"):
        _run(["dpkg-deb", "--extract", str(package), str(scratch / "tree")])


def _run(command: list[str], at: Path | None = None, **environment: str) -> str:
    """Run a program in plain English and give back what it wrote."""
    done = subprocess.run(
        command,
        cwd=at,
        env={**os.environ, "LC_ALL": "C", **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=APT_SECONDS,
    )
    return done.stdout


def _said(error: Exception) -> str:
    """Name the cause in one line: the first complaint of the program, if a program failed."""
    if isinstance(error, subprocess.CalledProcessError):
        lines = [line for line in str(error.stderr).splitlines() if line.strip()]
        complaints = [line for line in lines if line.startswith("E:")] or lines
        return f"{error.cmd[0]}: {complaints[0] if complaints else error.returncode}"
    if isinstance(error, FileNotFoundError):
        return f"{error.filename} is not on this machine"
    return " ".join(str(error).split())


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a container's arbitrary uid
        return "root"


def _is_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True
