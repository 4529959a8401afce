"""Everything else that boots: the Prefect server, its database, a resolver."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from blocks.errors import MeshError
from blocks.http import Api
from blocks.topology import Component
from tasks import hosts, record
from tasks.planning.survey import Answers
from tasks.step import fan_out, step
from tasks.waiting import wait_until

if TYPE_CHECKING:
    from blocks.mesh import Connections


def look(connections: Connections, component: Component) -> Answers:
    """Whether a component answers; without a URL, whether its units are active."""
    if component.url:
        return "answering" if _answers(component) else "down"
    seen = hosts.look(connections, connections.topology.host(component.host), component.units)
    if seen.ssh != "ok":
        return "unknown"
    return "answering" if all(seen.units.values()) else "down"


def look_at_all(connections: Connections) -> dict[str, Answers]:
    """Every declared component by its name."""
    declared = connections.topology.components
    found = fan_out(lambda c: look(connections, c), declared)
    return {c.name: answers for c, answers in zip(declared, found, strict=True)}


def _answers(component: Component) -> bool:
    parts = urlsplit(component.url or "")
    try:
        with Api(component.name, f"{parts.scheme}://{parts.netloc}", deadline=3.0) as api:
            return api.get(parts.path or "/", absent_ok=False).status < 300
    except MeshError:
        return False


@step("wait for {component.name}")
def await_answering(
    connections: Connections, component: Component, *, deadline: float = 120.0
) -> None:
    """
    Wait until a component answers.

    Raises:
        NotConverged: not within `deadline` seconds.
    """
    wait_until(
        lambda: look(connections, component) == "answering",
        f"{component.name} to answer",
        deadline=deadline,
        where=component.host,
        stage="components",
        every=0.3,
        remedy=f"look at the log of {' '.join(component.units)} on {component.host}",
    )
    record.current().seen(component.host, f"{component.name} serving")
