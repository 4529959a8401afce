"""Clients that workers hand on to each other: which are used again, and which are not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from blocks.credentials import Credentials
from blocks.errors import NoLeader, Unreachable
from blocks.mesh import Connections
from tasks import token_clients
from tasks.stopping import Stopped
from tasks.token_clients import Clients, at_work
from tests.planning.tokens import declared, mesh

MESH = mesh(declared("web"))
OURS, OTHERS = SecretStr("ours"), SecretStr("another's")


class Closing:
    """Stands in a client's list of what it closes."""

    def __init__(self) -> None:
        self.closed = False

    def __enter__(self) -> Closing:
        return self

    def __exit__(self, *_error: object) -> None:
        self.closed = True


@pytest.fixture
def connections() -> Iterator[Connections]:
    with Connections(MESH, Credentials(MESH.name, {}, None, False)) as made:
        yield made


def worked(connections: Connections, token: SecretStr = OURS) -> tuple[Clients, Closing]:
    with at_work(connections, token) as clients:
        return clients, clients._closing.enter_context(Closing())


def test_the_next_worker_is_handed_what_the_last_one_had(connections: Connections):
    first, closing = worked(connections)
    first.seen_well.add(("web", "us-east-1"))
    second, _ = worked(connections)

    assert second is first
    assert not closing.closed
    assert second.seen_well == set()  # that was another piece of work


def test_two_at_once_have_clients_of_their_own(connections: Connections):
    with at_work(connections, OURS) as one, at_work(connections, OURS) as other:
        assert one is not other


def test_clients_that_stumbled_are_closed_and_not_handed_on(connections: Connections):
    """Whoever repeats the work is to look anew who serves."""
    first, closing = worked(connections)
    with pytest.raises(Unreachable), at_work(connections, OURS):
        raise Unreachable("reset", where="vault")

    assert closing.closed
    assert worked(connections)[0] is not first


def test_old_clients_are_not_handed_on(connections: Connections, monkeypatch: pytest.MonkeyPatch):
    """Their login ends some day, and who leads changes."""
    first, closing = worked(connections)
    monkeypatch.setattr(token_clients, "KEEP_SECONDS", 0.0)

    assert worked(connections)[0] is not first
    assert closing.closed


def test_clients_of_another_token_are_not_handed_on(connections: Connections):
    first, _ = worked(connections, OTHERS)

    assert worked(connections)[0] is not first


def test_nothing_stays_open_when_the_connections_close():
    with Connections(MESH, Credentials(MESH.name, {}, None, False)) as connections:
        first, closing = worked(connections)

    assert closing.closed
    assert worked(connections)[0] is not first


def test_who_serves_is_looked_at_once_for_all_who_begin_together_and_anew_after_an_error(
    connections: Connections,
):
    looked: list[int] = []

    def look() -> int:
        looked.append(len(looked))
        return looked[-1]

    with at_work(connections, OURS) as one, at_work(connections, OURS) as other:
        assert one._crew.seen("vault", look) == other._crew.seen("vault", look) == 0
    with pytest.raises(Unreachable), at_work(connections, OURS):
        raise Unreachable("reset", where="vault")
    with at_work(connections, OURS) as again:
        assert again._crew.seen("vault", look) == 1


def test_a_stop_is_not_remembered_for_what_puts_back(connections: Connections):
    def stopped() -> int:
        raise Stopped("stopped by SIGTERM")

    with pytest.raises(Stopped), at_work(connections, OURS) as clients:
        clients._crew.seen("vault", stopped)
    with at_work(connections, OURS) as clients:
        assert clients._crew.seen("vault", lambda: 1) == 1


def test_of_many_who_wait_for_what_does_not_come_one_waits(connections: Connections):
    waited: list[int] = []

    def look() -> int:
        waited.append(1)
        raise NoLeader("no node is active", where="vault")

    for _ in range(3):
        with pytest.raises(NoLeader), at_work(connections, OURS) as clients:
            clients._crew.seen("vault", look)

    assert len(waited) == 1
