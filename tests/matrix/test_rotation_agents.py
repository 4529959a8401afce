"""
kill -9 of a rotation of agents' tokens after each of its mutating calls, and all else at each call.

A server's, a client agent's, its default and the secondary's replication token.
Afterwards each agent has the one live token of its role, on its disk and in use.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from deployments.lab.layout import DATACENTERS
from tests.harness import chain, inject
from tests.harness.chain import Chain, Options
from tests.harness.inject import Kind
from tests.harness.lab import Lab
from tests.integration.outside import assert_up
from tests.integration.test_rotation_agents import Agents, Watcher, put_right
from tests.lab.machine import until
from tests.matrix.conftest import Tell

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(900)]

KILLED = ("agent-us-consul-1", "agent-eu-app-1", "default-eu-app-1", "replication-eu-west-1")
FAULTED = ("agent-eu-app-1", "default-eu-app-1", "replication-eu-west-1")
KINDS: tuple[Kind, ...] = ("lost", "hang", "reset", "truncated", "500", "503", "429")
HOSTS = ("us-consul-1", "eu-app-1")


def all_of(roles: tuple[str, ...]) -> Options:
    return {"roles": ",".join(roles), "older_than": 0, "soak": 0}


@pytest.fixture
def agents(healthy: Lab) -> Agents:
    """A booted lab whose agents carry what Vault has."""
    agents = Agents(healthy)
    agents.one_each()
    return agents


def left_well(agents: Agents, before: dict[str, dict[str, str]], roles: tuple[str, ...]) -> None:
    """One token a role, none of those before; the agents work with them, and no run has more to do."""
    agents.one_each()
    for name in roles:
        assert agents.kept(name)["accessor"] != before[name]["accessor"]
        secret = before[name]["secret"]
        assert [agents.self_status(dc, secret) for dc in DATACENTERS] == [403, 403]
    ran = agents.rotate(roles=",".join(roles))
    assert (ran.outcome, ran.mutating_calls) == ("nothing", 0), ran
    for host in HOSTS:
        until(lambda host=host: put_right(agents, host), f"{host} to have put its entry right", 150)  # type: ignore[misc]
    assert_up(agents.lab)


def test_agents_tokens_replaced(agents: Agents, folder: Path, tell: Tell) -> None:
    """Every role is due in every run, whatever the run before left of it."""
    options = all_of(KILLED)
    done = chain.reference(agents.lab, folder / "reference", "token-rotation", options)
    wanted = inject.answered(done.trace, mutating=True)
    assert wanted.total() >= 9 * len(KILLED)
    before = agents.all_kept()
    watcher = Watcher(agents)
    crashes = Chain(agents.lab, "crash", folder / "crash", "token-rotation")
    with watcher.watching():
        crashes.crash_everywhere(options, reference=wanted)

    left_well(agents, before, KILLED)
    tell(f"agents' tokens replaced, {crashes.summary()}; services healthy in {watcher.looks} looks")


@pytest.mark.parametrize("kind", KINDS)
def test_every_call(kind: Kind, agents: Agents, folder: Path, tell: Tell) -> None:
    """Every role is replaced, with each call going wrong once on the way."""
    options = all_of(FAULTED)
    done = chain.reference(agents.lab, folder / "reference", "token-rotation", options)
    wanted = inject.answered(done.trace, mutating=True)
    before = agents.all_kept()
    faults = Chain(agents.lab, kind, folder / kind, "token-rotation")
    faults.until_quiet(options, most=60)

    hit = chain.atoms(faults.hits)
    assert chain.atoms(wanted) - hit == set(), faults.told()
    left_well(agents, before, FAULTED)
    tell(f"agents' tokens replaced, {faults.summary()}")
