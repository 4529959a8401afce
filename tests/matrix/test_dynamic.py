"""
kill -9 and every fault at every call of a rotation at Vault's Consul secrets engine (R1, R4-R6).

Consumers use their leases 20 times a second through all kills. Afterwards the
servers are asked: one access token, which the engine mints with, and no minted
token without a lease.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from deployments.lab.layout import DATACENTERS
from tests.harness import chain, inject
from tests.harness.chain import Chain, Options
from tests.harness.inject import Kind
from tests.harness.lab import Lab
from tests.integration.engine import BOTH, ROLE, Engine, Leased, asking
from tests.integration.tokens import consuming
from tests.lab.machine import until
from tests.matrix.conftest import Tell

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(900)]

FIRST: Options = {"roles": BOTH}
ALL: Options = {**FIRST, "older_than": 0, "soak": 0.5}
KINDS: tuple[Kind, ...] = ("lost", "hang", "reset", "truncated", "500", "503", "429")


@pytest.fixture
def engine(healthy: Lab) -> Iterator[Engine]:
    """An engine that was never set up, but for what the facade keeps of earlier tests."""
    engine = Engine(healthy)
    forget(engine)
    yield engine
    forget(engine)


@pytest.fixture
def hasty(engine: Engine) -> Iterator[Engine]:
    """The same, with an overlap for nobody: that consumers notice nothing is the crashes' to show."""
    file = engine.lab.directory / "mesh.yaml"
    sound = file.read_text()
    document = yaml.safe_load(sound)
    (role,) = [t for t in document["tokens"] if t["role"] == ROLE]
    role["overlap_seconds"] = 0.2
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    yield engine
    file.write_text(sound)


def forget(engine: Engine) -> None:
    """No access token, no role, no lease."""
    engine.tidy()
    with engine.seen.root() as root:
        engine.seen.vault("mesh/metadata/consul/engines/consul", root, verb="DELETE")
        engine.ask(f"consul/roles/{ROLE}", root, verb="DELETE")


def left_alone(engine: Engine) -> None:
    """One access token, what killed runs asked for is over, and one more run finds nothing to do."""
    until(lambda: not engine.leases() and not engine.minted(), "leases to be over", 30)
    engine.as_it_should_be()
    ran = engine.rotate(roles=BOTH)
    assert (ran.outcome, ran.mutating_calls) == ("nothing", 0), ran


def test_first_access_token(engine: Engine, folder: Path, tell: Tell) -> None:
    """A mount that the runbook sets up: its role, its access token, a first credential."""
    done = chain.reference(engine.lab, folder / "reference", "token-rotation", FIRST)
    wanted = inject.answered(done.trace, mutating=True)
    forget(engine)
    crashes = Chain(engine.lab, "crash", folder / "crash", "token-rotation")
    crashes.crash_everywhere(FIRST, reference=wanted, again=lambda: forget(engine))
    left_alone(engine)
    tell(f"secrets engine, first token, {crashes.summary()}")


def test_access_token_replaced(engine: Engine, folder: Path, tell: Tell) -> None:
    """It is due in every run, and so are all leases, whatever the run before left."""
    assert engine.rotate(roles=BOTH).status == 0
    before = engine.held()
    at_work = [Leased(engine, dc) for dc in DATACENTERS]
    with consuming(*at_work):
        done = chain.reference(engine.lab, folder / "reference", "token-rotation", ALL)
        # How many leases there are to end is the consumers' doing.
        wanted = inject.answered(done.trace, mutating=True)
        wanted = type(wanted)({this: min(n, 2) for this, n in wanted.items()})
        crashes = Chain(engine.lab, "crash", folder / "crash", "token-rotation")
        crashes.crash_everywhere(ALL, reference=wanted)

    assert [c.failures for c in at_work] == [[], []], crashes.told()
    assert engine.held()["accessor"] != before["accessor"]
    assert [engine.self_status(dc, before["secret"]) for dc in DATACENTERS] == [403, 403]
    left_alone(engine)
    uses = sum(c.uses for c in at_work)
    tell(f"secrets engine, token replaced, {crashes.summary()}; {uses} uses, none failed")


@pytest.mark.parametrize("kind", KINDS)
def test_every_call(kind: Kind, hasty: Engine, folder: Path, tell: Tell) -> None:
    """The access token is replaced, with each call going wrong once on the way."""
    engine = hasty
    assert engine.rotate(roles=BOTH).status == 0
    before = engine.held()
    faults = Chain(engine.lab, kind, folder / kind, "token-rotation")
    with asking(engine):
        done = chain.reference(engine.lab, folder / "reference", "token-rotation", ALL)
        wanted = inject.answered(done.trace, mutating=True)
        faults.until_quiet(ALL, most=80)

    assert chain.atoms(wanted) - chain.atoms(faults.hits) == set()
    now = engine.held()
    assert now["accessor"] != before["accessor"]
    assert engine.access() == [now["accessor"]]
    left = engine.rotate(roles=BOTH)
    assert (left.outcome, left.mutating_calls) == ("nothing", 0), left
    # What nobody could give back is under a lease all the same.
    engine.every_minted_is_leased()
    tell(f"secrets engine, {faults.summary()}")
