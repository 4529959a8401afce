"""
Many runs of `mesh`, each in a process of its own, without each starting Python anew.

A matrix runs `mesh` hundreds of times. A process that has imported everything
forks for each run; what forks is killed or ends like any other process.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from blocks import engine

# What a run imports sooner or later.
_EARLY = (
    "blocks.aws_ec2",
    "blocks.aws_secrets",
    "blocks.consul",
    "blocks.keys",
    "blocks.keys_aws",
    "blocks.mesh",
    "blocks.proxmox",
    "blocks.proxmox_api",
    "blocks.ssh",
    "blocks.ssh_session",
    "blocks.vault",
    "deployments.cli",
    "deployments.display",
    "deployments.engine",
    "flows.cold_boot",
    "flows.execution",
    "flows.snapshot",
    "flows.token_rotation",
    "flows.vault_maintenance",
    "tests.harness.echo",
    "tests.harness.inject",
)


class Ended(NamedTuple):
    """A run that has ended."""

    status: int  # negative: the signal that killed it
    out: str
    err: str


class Forks:
    """A process that forks for each run; it ends when it is closed."""

    def __init__(self, cwd: Path, environ: Mapping[str, str]) -> None:
        self._folder = cwd
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.harness.forks"],
            cwd=cwd,
            env=dict(environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, module: str, words: Sequence[str], *, timeout: float) -> Ended:
        """
        `python -m MODULE WORDS` to its end.

        Raises:
            AssertionError: it does not end within `timeout` seconds; it is killed.
        """
        out, err = self._folder / "run.out", self._folder / "run.err"
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([module, list(words), str(out), str(err)]) + "\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], timeout)
        if not ready:
            self.close()
            said = out.read_text(errors="replace")[-3000:] + err.read_text(errors="replace")[-3000:]
            raise AssertionError(f"{' '.join(words)}: not ended after {timeout:g} s\n{said}")
        line = self._process.stdout.readline()
        assert line, "the process that forks has ended"
        return Ended(int(line), out.read_text(errors="replace"), err.read_text(errors="replace"))

    def close(self) -> None:
        """End it, and a run that is under way."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        finally:
            self._process.wait()


def _serve() -> None:
    engine.do_without_prefect()
    for name in _EARLY:
        importlib.import_module(name)
    gc.freeze()
    for line in sys.stdin:
        module, words, out, err = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _child(module, words, out, err)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _child(module: str, words: list[str], out: str, err: str) -> None:
    status = 70
    try:
        for number, path in ((0, os.devnull), (1, out), (2, err)):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(path, flags, 0o600), number)
        sys.argv = [module, *words]
        status = importlib.import_module(module).main(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - it ends here, as it would in Python's own main
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
