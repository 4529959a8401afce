"""
The lock of a mesh in its own Consul: for those who work on it from several machines.

A key that a session holds (https://developer.hashicorp.com/consul/docs/dynamic-app-config/sessions).
The session ends by its TTL if nobody renews it, so a holder that was killed
holds nobody up for long; one that cannot renew stops itself before that. The
key's `LockIndex` counts who took it: the fence against a plan that is stale.
"""

from __future__ import annotations

import base64
import contextvars
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import SecretStr

from blocks.errors import BadAnswer, MeshError, Transient, Unsafe
from tasks import stopping
from tasks.step import step
from tasks.token_clients import Clients

if TYPE_CHECKING:
    from blocks.http import Api
    from blocks.mesh import Connections

KEY = "/v1/kv/mesh-runbooks/lock"
# Consul ends a session after one to two times its TTL, and begins to count anew with each leader.
TTL_SECONDS = 30
RENEW_SECONDS = 5.0
LOST_SECONDS = 20.0  # without a renewal: longer than an election, and less than the TTL
FREE_SECONDS = 2 * TTL_SECONDS
_LOOKS = 5


class Standing(NamedTuple):
    """Who holds the lock, and how often it was taken until now."""

    fence: int = 0
    holder: Mapping[str, Any] = {}  # as whoever took it wrote it; empty if it is free
    session: str = ""


class Taken(Unsafe):
    """Somebody else holds the lock."""

    holder: Mapping[str, Any] = {}


@step("look at the lock in Consul")
def look(connections: Connections, management: SecretStr) -> Standing:
    """Who holds the mesh by its lock in the primary; nothing is changed."""
    with Clients(connections, management) as clients:
        return _look(clients.primary)


def _look(api: Api) -> Standing:
    answer = api.get(KEY, params={"consistent": "1"})
    if answer.absent:
        return Standing()
    (entry,) = answer.json(list)
    session, holder = str(entry.get("Session") or ""), {}
    if session:
        with suppress(ValueError):
            found = json.loads(base64.b64decode(entry.get("Value") or ""))
            holder = found if isinstance(found, dict) else {}
    return Standing(int(entry["LockIndex"]), holder, session)


@contextmanager
def holding(
    connections: Connections,
    management: SecretStr,
    holder: Mapping[str, Any],
    seen: Standing,
    *,
    dead: bool = False,
) -> Iterator[None]:
    """
    Hold the lock, as it was `seen` before the plan was made.

    `dead`: whoever was seen to hold it lives no more, and is not waited for.
    If the lock is lost meanwhile, the run is asked to stop.

    Raises:
        Taken: somebody else holds it.
        Unsafe: somebody held it since it was seen: what is planned may be done already.
    """
    session = _Session(connections, management, holder)
    try:
        _take(session, seen, dead)
        session.start()
        yield
    finally:
        session.over()
        # Not released, it ends by itself.
        with stopping.shielded(), suppress(MeshError):
            _release(session)


class _Session:
    """A session of Consul, renewed by a thread of its own; no dataclass: Prefect walks through those."""

    def __init__(
        self, connections: Connections, management: SecretStr, holder: Mapping[str, Any]
    ) -> None:
        self.connections, self.management, self.holder = connections, management, holder
        self.id = ""
        self.good = 0.0  # when it was surely good last
        self._over = threading.Event()
        self._stop = stopping.current()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._renew,), daemon=True
        )

    def start(self) -> None:
        """Renew it from now on."""
        self._thread.start()

    def over(self) -> None:
        """Renew it no more."""
        self._over.set()

    def _renew(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            began = time.monotonic()
            gone = False
            try:
                with Clients(self.connections, self.management) as clients:
                    path = f"/v1/session/renew/{self.id}"
                    # It prolongs what is there, and changes nothing that others see.
                    answer = clients.primary.put(path, mutates=False, deadline=RENEW_SECONDS)
                gone = answer.absent
                self.good = self.good if gone else began
            except Exception:  # noqa: BLE001, S110 - whatever it is, the clock below decides
                pass
            if gone or time.monotonic() - self.good > LOST_SECONDS:
                if self._stop and not self._over.is_set():
                    self._stop.request("the loss of the mesh's lock in Consul")
                return


@step("take the lock in Consul")
def _take(session: _Session, seen: Standing, dead: bool) -> None:
    with Clients(session.connections, session.management) as clients:
        api = clients.primary
        if dead:
            api.put(f"/v1/session/destroy/{seen.session}", mutates=False)
        if not session.id:
            session.good = time.monotonic()
            # Bound to no check of the agent that happens to be asked. The delay after a holder's
            # loss is not needed: one that lives stops itself before its session ends.
            body = {
                "Name": "mesh-runbooks",
                "TTL": f"{TTL_SECONDS}s",
                "Behavior": "release",
                "LockDelay": "0s",
                "Checks": [],
                "NodeChecks": [],
            }
            # A lock changes nothing of the mesh, and falls by itself.
            made = api.put("/v1/session/create", json=body, mutates=False).json(dict)
            session.id = str(made.get("ID") or "")
            if not session.id:
                raise BadAnswer("PUT /v1/session/create: it names no session", where=api.server)
        value = json.dumps(dict(session.holder)).encode()
        for _ in range(_LOOKS):
            taken = api.put(KEY, params={"acquire": session.id}, content=value, mutates=False)
            if taken.json(bool):
                break
            if (now := _look(api)).session not in {"", session.id}:
                error = Taken("somebody else holds the lock of the mesh in Consul")
                error.holder = now.holder
                raise error
        else:
            raise Transient("the lock in Consul is free and cannot be taken", where=api.server)
        if (now := _look(api)).session != session.id:
            raise Transient("the lock in Consul was lost at once", where=api.server)
        if now.fence != seen.fence + 1:
            raise Unsafe(
                "another run held the mesh since this one looked at it",
                remedy="run it again: it looks at what is there now",
            )


@step("give the lock in Consul back")
def _release(session: _Session) -> None:
    if session.id:
        with Clients(session.connections, session.management) as clients:
            clients.primary.put(f"/v1/session/destroy/{session.id}", mutates=False)
