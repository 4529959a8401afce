"""
A rotation of the gossip key, killed, faulted and deserted at its calls, and then again (R13).

All the while somebody looks who is a living member and calls services through
the mesh. In the end every agent and every disk has one key, a new one.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.harness import chain, inject
from tests.harness.chain import Chain
from tests.harness.inject import Identity, Kind
from tests.harness.lab import Lab
from tests.integration import changes
from tests.integration.gossip import OPTIONS, Gossip, Watch, watching
from tests.matrix.conftest import Booted, Tell

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(900)]

KINDS: tuple[Kind, ...] = ("lost", "hang", "reset", "truncated", "500", "503", "429")
ALL = OPTIONS | {"soak": 0.2}
API = "/v1/operator/keyring"
HOST = "eu-app-1"


@pytest.fixture
def gossip(healthy: Lab) -> Gossip:
    """A lab whose agents are all there."""
    gossip = Gossip(healthy)
    gossip.all_alive()
    return gossip


@pytest.fixture(scope="module")
def wanted(booted: Booted, tmp_path_factory: pytest.TempPathFactory) -> Counter[Identity]:
    """Every call of a rotation that changes something, and how often it is made."""
    lab = booted.lab
    assert lab.run("cold-boot").status == 0
    assert lab.run("token-rotation", {"roles": "gossip-key"}).status == 0
    done = chain.reference(lab, tmp_path_factory.mktemp("reference"), "token-rotation", ALL)
    found = inject.answered(done.trace, mutating=True)
    for verb in ("POST", "PUT", "DELETE"):
        assert found[Identity("consul us-east-1", f"{verb} {API}")] >= 1
    assert sum(n for this, n in found.items() if "write /etc" in this.what) == len(
        Gossip(lab).hosts
    )
    return found


def ended(gossip: Gossip, before: str, watch: Watch, crashes: Chain) -> str:
    """One key everywhere, nobody dropped out, and one more run finds nothing to do."""
    assert watch.failures == [], crashes.told()
    assert gossip.one_key() != before
    ran = gossip.rotate(older_than=1)
    assert (ran.outcome, ran.mutating_calls) == ("nothing", 0), ran
    return f"{crashes.summary()}; {watch.looks} looks, all alive"


def test_killed_after_every_call(
    gossip: Gossip, wanted: Counter[Identity], folder: Path, tell: Tell
) -> None:
    before = gossip.one_key()
    crashes = Chain(gossip.lab, "crash", folder / "crash", "token-rotation")
    with watching(gossip) as watch:
        crashes.crash_everywhere(ALL, reference=wanted)

    tell(f"gossip key, {ended(gossip, before, watch, crashes)}")


@pytest.mark.parametrize("kind", KINDS)
def test_every_call(
    kind: Kind, gossip: Gossip, wanted: Counter[Identity], folder: Path, tell: Tell
) -> None:
    before = gossip.one_key()
    faults = Chain(gossip.lab, kind, folder / kind, "token-rotation")
    with watching(gossip) as watch:
        faults.until_quiet(ALL, most=80)

    met = {
        this for this in wanted if not (kind in inject.STATUSES and this.server.startswith("ssh "))
    }
    assert chain.atoms(met) - chain.atoms(faults.hits) == set()
    tell(f"gossip key, {ended(gossip, before, watch, faults)}")


@pytest.mark.parametrize("verb", ["PUT", "DELETE"])
def test_a_host_loses_power_after_the_others_have_gone_on(
    verb: str, gossip: Gossip, wanted: Counter[Identity], folder: Path
) -> None:
    """Between use and remove both keys stay; after remove it has the new one, and the run ends."""
    assert Identity("consul us-east-1", f"{verb} {API}") in wanted
    before = gossip.one_key()
    cut = {"after": f"{verb} {API}", "do": gossip.power_cut(HOST)}

    ran = gossip.rotate_watched(folder / "calls", cut)

    changes.ends(ran, 1, "failed")
    assert HOST in ran.problem["details"][0]
    assert (before in gossip.installed()) is (verb == "PUT")
    gossip.lab.power_on(HOST)
    assert gossip.lab.run("cold-boot").status == 0
    gossip.all_alive()
    changes.ends(gossip.rotate(), 0, "verified")
    assert gossip.one_key() != before
