"""A Vault that another one unseals: no share is given, and the sealer comes first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deployments.lab import vault_files
from tests.harness.lab import Lab
from tests.integration import changes, watched
from tests.integration.outside import Outside, assert_up
from tests.integration.sealer import KEY, Sealer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
UNIT = "/etc/systemd/system/vault.service"
ENVIRONMENT = "/etc/vault.d/sealer.env"


@dataclass
class Sealed:
    """A lab whose Vault unseals itself by another one, and its topology that says so."""

    lab: Lab
    sealer: Sealer
    mesh: Path


@pytest.fixture
def auto(fresh_lab: Lab) -> Iterator[Sealed]:
    """It never ran; the sealer serves."""
    sealer = Sealer(fresh_lab.directory / "sealer", f"{fresh_lab.network}.0.30")
    sealer.start()
    try:
        token = sealer.initialise()
        for host in fresh_lab.layout.with_role("vault"):
            seal = vault_files.TransitSeal(sealer.url, key_name=KEY)
            config = vault_files.config(fresh_lab.layout, host, seal)
            fresh_lab.disk(host.name, vault_files.CONFIG_PATH).unlink()
            fresh_lab.disk(host.name, vault_files.CONFIG_PATH).write_text(config)
            secret = fresh_lab.disk(host.name, ENVIRONMENT)
            secret.touch(mode=0o600)
            secret.write_text(f"VAULT_TOKEN={token}\n")
            unit = fresh_lab.disk(host.name, UNIT)
            text = unit.read_text()
            unit.unlink()
            unit.write_text(
                text.replace("[Service]\n", f"[Service]\nEnvironmentFile={ENVIRONMENT}\n")
            )

        def transit(mesh: dict[str, Any]) -> None:
            mesh["vault"] |= {"seal": "transit", "seal_address": sealer.url}

        yield Sealed(fresh_lab, sealer, changes.variant(fresh_lab, transit))
    finally:
        sealer.stop()


def shares_given(file: Path) -> int:
    return sum(c.what.endswith("/v1/sys/unseal") for c in watched.read(file))


def test_a_mesh_whose_vault_unseals_itself(auto: Sealed, tmp_path: Path):
    """Day 0 with recovery keys, a boot without a share; and with the sealer gone, a refusal."""
    lab, calls = auto.lab, tmp_path / "calls"
    seen = Outside(lab)

    first = changes.boot(lab, mesh=auto.mesh, watch=calls, initialise=True)

    changes.ends(first, 0, "verified")
    assert_up(lab)
    assert shares_given(calls) == 0
    assert seen.seal_status("vault-1")["type"] == "transit"
    assert len(seen.shares()) == 5  # recovery keys: they generate root tokens, and open nothing
    assert seen.root_tokens() == 0

    lab.power_cut()
    second = changes.boot(lab, mesh=auto.mesh, watch=calls)

    changes.ends(second, 0, "verified")
    assert_up(lab)
    assert shares_given(calls) == 0

    lab.power_cut()
    auto.sealer.stop()
    refused = changes.boot(lab, mesh=auto.mesh, watch=calls)

    changes.ends(refused, 3, "refused")
    assert f"transit seal cannot be reached at {auto.sealer.url}" in str(refused.problem)
    assert [c.what for c in watched.read(calls) if c.mutates] == []
    assert [h.name for h in lab.layout.hosts if lab.processes_of(h.name)] == []

    auto.sealer.start()  # sealed: it answers and cannot unseal anybody
    changes.ends(changes.boot(lab, mesh=auto.mesh), 3, "refused")

    # The machines came up before the sealer did: Vault's process lives and nothing listens.
    lab.power_on()
    auto.sealer.unseal()
    third = changes.boot(lab, mesh=auto.mesh, watch=calls)

    changes.ends(third, 0, "verified")
    assert_up(lab)
    assert shares_given(calls) == 0
