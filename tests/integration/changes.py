"""Putting a lab into a state from which a test starts; hosts are off or on as each says."""

from __future__ import annotations

import base64
import copy
import datetime as dt
import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from deployments.lab.layout import certificate_path, key_path
from deployments.lab.pki import Authority, server_names
from tests.harness.lab import Lab, Ran
from tests.integration import watched
from tests.integration.outside import SECRET, Outside
from tests.lab.machine import until

# Labs that were seen to be up and verified, and not touched since.
HEALTHY: set[Path] = set()


def booted(lab: Lab, *, mesh: Path | None = None, **options: Any) -> Ran:
    """Cold-boot a lab, which must end verified; it counts as healthy from then on."""
    ran = ends(boot(lab, mesh=mesh, **options), 0, "verified")
    HEALTHY.add(lab.directory)
    return ran


def ends(ran: Ran, status: int, outcome: str) -> Ran:
    """Fail with all that was said unless a command ended so."""
    assert (ran.status, ran.outcome) == (status, outcome), f"{ran}\n{ran.err[-4000:]}"
    return ran


def boot(
    lab: Lab,
    *,
    mesh: Path | None = None,
    watch: Path | None = None,
    at: Sequence[dict[str, Any]] = (),
    **options: Any,
) -> Ran:
    """
    Cold-boot a lab, by another topology if `mesh` names one.

    `watch` is a file that gets all calls; `at` is what to do at some of them
    (see `watched`).
    """
    words = lab.arguments("cold-boot", options)
    if mesh:
        words += ["--mesh", str(mesh)]
    if not watch:
        return lab.mesh(*words)
    watch.unlink(missing_ok=True)
    module = f"tests.integration.watched {watch}"
    environ: dict[str, Any] = {watched.VARIABLE: json.dumps(list(at))}
    return lab.mesh(*words, module=module, **environ)


def until_sealed(lab: Lab) -> None:
    """Wait until every node of Vault answers that it is sealed."""
    seen = Outside(lab)
    for host in seen.vaults:
        until(lambda host=host: _health(seen, host) == 503, f"{host} to be sealed")  # type: ignore[misc]


def _health(seen: Outside, host: str) -> int:
    try:
        return seen.health(host)
    except httpx.TransportError:
        return 0


def day_zero(lab: Lab) -> None:
    """Cut the power and forget all that ever ran: no data, no shares, no tokens."""
    lab.power_cut()
    for host in lab.layout.hosts:
        for path in ("/opt/vault", "/opt/consul", "/var/log"):
            folder = lab.disk(host.name, path)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
        for aside in lab.disk(host.name, "/opt").glob("vault.*"):
            shutil.rmtree(aside)
    holders = lab.directory / "holders"
    shutil.rmtree(holders, ignore_errors=True)
    holders.mkdir(mode=0o700)
    delete_secret(lab)


def delete_secret(lab: Lab) -> None:
    """Take away what the holder in Secrets Manager has."""
    client = Outside(lab).clouds.aws("secretsmanager", "us-west-2")
    try:
        client.delete_secret(SecretId=SECRET, ForceDeleteWithoutRecovery=True)
    except client.exceptions.ResourceNotFoundException:
        return


def talkative(lab: Lab) -> None:
    """Have Vault's nodes log each share that they are given, from their next start on."""
    for host in lab.layout.with_role("vault"):
        config = lab.disk(host.name, "/etc/vault.d/vault.hcl")
        text = config.read_text()
        if "log_level" not in text:
            _replace(config, text + 'log_level = "debug"\n', 0o444)


def hold(lab: Lab, holder: str, change: Callable[[dict[str, Any]], object]) -> Callable[[], None]:
    """Change the document of a holder that keeps a file; gives what puts it back."""
    file = lab.directory / "holders" / f"{holder}.key"
    before = file.read_text()
    document = json.loads(before)
    change(document)
    _replace(file, json.dumps(document), 0o400)
    return lambda: _replace(file, before, 0o400)


def other_share() -> str:
    """A share as Vault makes them, of a key that opens nothing here."""
    return base64.b64encode(secrets.token_bytes(32) + b"\xa7").decode()


def variant(lab: Lab, change: Callable[[dict[str, Any]], object], name: str = "variant") -> Path:
    """The lab's topology with a change, in a file beside it; `--mesh` takes it."""
    document = copy.deepcopy(yaml.safe_load((lab.directory / "mesh.yaml").read_text()))
    change(document)
    file = lab.directory / f"{name}.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return file


def expire(lab: Lab, names: Iterable[str]) -> None:
    """Let the server certificates of hosts have ended an hour ago."""
    authority = Authority.load(lab.layout.pki)
    ended = dt.datetime.now(dt.UTC) - dt.timedelta(hours=1)
    for name in names:
        host = lab.layout.host(name)
        pair = authority.issue(server_names(lab.layout, host), not_after=ended)
        server = "vault" if "vault" in host.roles else "consul"
        for path, data in (
            (certificate_path(server), pair.certificate),
            (key_path(server), pair.key),
        ):
            _replace(lab.disk(name, path), data.decode(), 0o400)


def _replace(file: Path, text: str, mode: int) -> None:
    new = file.with_name(f".{file.name}.test")
    new.touch(mode=0o600)
    new.write_text(text)
    new.chmod(mode)
    new.replace(file)
