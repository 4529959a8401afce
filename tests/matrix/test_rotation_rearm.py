"""
A consumer falls ill while the old token is disarmed, and arming it again goes wrong (R2, R4, R5).

The consumer's process is stopped (SIGSTOP) when the old token has just been
disarmed. Whatever befalls the calls from then on, the old token works again at
the end of the run, or after kill -9 of the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deployments.lab.layout import DATACENTERS
from tests.harness import inject
from tests.harness.inject import Kind
from tests.harness.meanwhile import Halted
from tests.integration import changes
from tests.integration.tokens import Tokens, role
from tests.lab.machine import until
from tests.matrix.conftest import Tell
from tests.matrix.test_rotation_outages import DISARMED, finished, rotating, tokens

__all__ = ["tokens"]

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(600)]

ARMING = {"before": "PUT /v1/acl/token/", "nth": 2}
ARMED = {"after": "PUT /v1/acl/token/", "nth": 2}


@pytest.fixture
def mesh(tokens: Tokens) -> Path:
    """One role with its token, whose consumer in the secondary will fall ill."""
    mesh = tokens.declare(role(overlap_seconds=0, soak_seconds=20))
    changes.ends(tokens.rotate(mesh), 0, "verified")
    return mesh


@contextmanager
def ill(tokens: Tokens, run: Halted) -> Iterator[None]:
    """The consumer of a run that has just disarmed the old token; well again at the end."""
    run.wait()
    with tokens.lab.frozen("eu-app-1", "payment-processor"):
        run.go_on()
        yield
    path = "health/service/payment-processor"

    def well() -> bool:
        found = tokens.seen.consul("eu-consul-1", path, tokens.management, passing="1")
        return len(found.json()) == 1

    until(well, "the consumer to be well again")


def works(tokens: Tokens, held: dict[str, Any]) -> None:
    """A token works in every datacenter, at once in its own and replicated in the other."""
    for dc in DATACENTERS:
        until(lambda dc=dc: tokens.reads(dc, held["secret"]), f"it to work in {dc}", 5)  # type: ignore[misc]


def test_killed_before_and_after_it_is_armed(tokens: Tokens, mesh: Path, folder: Path) -> None:
    """Killed before, the next run finds it disarmed and its consumer ill, and arms it."""
    for name, halt in (("before", ARMING), ("after", ARMED)):
        before = tokens.document()
        run = rotating(tokens, folder / name, mesh, DISARMED, halt)
        with ill(tokens, run):
            run.wait(1)
            run.kill()
            if name == "before":
                assert [tokens.reads(dc, before["secret"]) for dc in DATACENTERS] == [False, False]
                again = tokens.rotate(mesh)
                changes.ends(again, 1, "failed")
                assert "payment-processor in eu-west-1 is not healthy" in str(again.problem)
            works(tokens, before)
            # As often as it is run: the old one is not taken away while the consumer is ill.
            again = rotating(tokens, folder / f"{name}-again", mesh, hasty=True).ended()
            changes.ends(again, 1, "failed")
            assert "to be healthy" in str(again.problem)
            works(tokens, before)
        finished(tokens, mesh, before)


@pytest.mark.parametrize("kind", ["lost", "hang", "reset", "500"])
def test_every_call_until_it_is_armed_goes_wrong_once(
    kind: Kind, tokens: Tokens, mesh: Path, folder: Path, tell: Tell
) -> None:
    """Each run ends with the old token armed, and says whose consumer is ill."""
    before = tokens.document()
    faults = folder / "faults"
    for number in range(8):
        hits = inject.hit(faults).total()
        fault = f"{kind}:{faults}"
        run = rotating(tokens, folder / str(number), mesh, DISARMED, ARMED, fault=fault)
        with ill(tokens, run):
            ran = run.ended()
            changes.ends(ran, 1, "failed")
            works(tokens, before)
        if inject.hit(faults).total() == hits:
            break
    else:
        raise AssertionError(f"never quiet:\n{inject.table(inject.hit(faults))}")
    assert "payment-processor in eu-west-1 is not healthy" in str(ran.problem), ran
    done = inject.hit(faults)
    assert any(this.what == "PUT /v1/acl/token/<uuid>" for this in done), inject.table(done)
    finished(tokens, mesh, before)
    tell(f"{kind} while an old token is armed again: {done.total()} calls, {number + 1} runs")
