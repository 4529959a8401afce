"""States of the session's small lab that tests start from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy import server as servers
from tests.deploy.server import PrefectServer
from tests.harness.lab import Lab
from tests.integration import changes
from tests.integration.outside import Outside


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_known() -> None:
    """Another module may have left a lab in any state."""
    changes.HEALTHY.clear()


@pytest.fixture
def prefect(tmp_path: Path) -> Iterator[PrefectServer]:
    """A Prefect server of this test alone."""
    running = servers.start(tmp_path)
    try:
        yield running
    finally:
        servers.end(running.process)


@pytest.fixture
def healthy(small_lab: Lab) -> Lab:
    """The small lab, up and verified."""
    if small_lab.directory not in changes.HEALTHY:
        small_lab.boot()
    changes.HEALTHY.discard(small_lab.directory)
    return small_lab


@pytest.fixture
def dark(small_lab: Lab) -> Lab:
    """The small lab, set up once, without power."""
    if not Outside(small_lab).held("runbooks"):
        changes.booted(small_lab, initialise=True)
    changes.HEALTHY.discard(small_lab.directory)
    small_lab.power_cut()
    return small_lab


@pytest.fixture
def lit(dark: Lab) -> Lab:
    """The same with power: Vault listens, sealed, and everything else is down."""
    dark.power_on()
    changes.until_sealed(dark)
    return dark


@pytest.fixture
def blank(small_lab: Lab) -> Iterator[Lab]:
    """The small lab as if it never ran, without power; after the test too, unless it is up then."""
    changes.HEALTHY.discard(small_lab.directory)
    changes.day_zero(small_lab)
    yield small_lab
    if small_lab.directory not in changes.HEALTHY:
        changes.day_zero(small_lab)
