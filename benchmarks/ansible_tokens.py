"""An Ansible playbook that creates, stores and deletes tokens, in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

HERE = Path(__file__).parent / "ansible"
LONGEST = 600.0


def install(directory: Path) -> Path:
    """The programs of Ansible and its collections, by the hashes of the lock; slow but once."""
    place = directory / "ansible-venv"
    if not (place / "done").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(place)], check=True)
        subprocess.run(
            [
                str(place / "bin" / "python"), "-m", "pip", "install", "--quiet",
                "--disable-pip-version-check", "--require-hashes",
                "-r", str(HERE / "requirements.lock"),
            ],
            check=True, stderr=subprocess.DEVNULL, timeout=LONGEST,
        )  # fmt: skip
        (place / "done").touch()
    return place / "bin"


def measure(programs: Path, mesh_file: str, policy: str, count: int) -> float:
    """
    Seconds a token of the whole command, its start included.

    Addresses and tokens travel in the environment, as Ansible's look-ups take them.
    """
    from blocks.mesh import connect, load_mesh
    from tasks import consul, token_survey

    mesh = load_mesh(mesh_file)
    with connect(mesh) as connections:
        vault = connections.vault()
        primary = mesh.datacenter(mesh.primary)
        at = urlsplit(consul.url(connections, primary.consul.servers[0]))
        environ = os.environ | {
            "CONSUL_HOST": str(at.hostname),
            "CONSUL_PORT": str(at.port),
            "CONSUL_TOKEN": token_survey.management(connections).get_secret_value(),
            "CA_FILE": vault.ca_file or "",
            "VAULT_URL": vault.nodes[vault.active() or ""],
            "VAULT_TOKEN": vault.login().get_secret_value(),
            "ANSIBLE_PYTHON_INTERPRETER": str(programs / "python"),
            "ANSIBLE_HOME": str(programs.parent / "home"),
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        }
        began = time.monotonic()
        done = subprocess.run(
            [
                str(programs / "ansible-playbook"), str(HERE / "tokens.yml"),
                "-e", f"count={count}", "-e", f"policy={policy}",
            ],
            env=environ, capture_output=True, text=True, timeout=LONGEST, check=False,
        )  # fmt: skip
        seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"ansible-playbook: {done.stdout[-3000:]}\n{done.stderr[-1000:]}")
    return seconds / count
