"""
Keeping up with what a local Consul agent answers, for as long as it takes.

Each watch is a thread with a connection of its own and a blocking query. An
agent that is not there yet, has no token yet or has lost its servers is asked
again, forever; what it last said stands meanwhile. Standard library only.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

WAIT_SECONDS = 50
# Nothing may mean that ACLs hid it: a query that was asked before the agent had its token is
# answered as an anonymous one with the newest index, and would block on that until its end.
_WAIT_FOR_FIRST = 1
_PAUSE_UNREACHABLE = 0.25  # a connection refused costs nobody anything
_PAUSE_REFUSED = 0.5
_PAUSE_BETWEEN = 0.02  # bounds the rate of an index that moves all the time
_PAUSE_WITHOUT_INDEX = 0.5  # Consul 1.8 answers a match of intentions without one: no blocking


class Agent:
    """The HTTPS API of the host's own agent; without a token, so that the agent's own is used."""

    def __init__(self, url: str, ca_file: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._ca_file = ca_file
        self._context: ssl.SSLContext | None = None

    def connect(self) -> http.client.HTTPSConnection:
        """A new connection; it outlasts a blocking query."""
        if self._context is None:
            self._context = ssl.create_default_context(cafile=self._ca_file)
        timeout = WAIT_SECONDS * 1.25
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=timeout, context=self._context
        )


class Watch(threading.Thread):
    """
    The latest answer to one query, in `value`; None until there is one.

    `changed` is set after each change, and `problem` says what stands in the
    way while nothing new arrives.
    """

    def __init__(
        self,
        agent: Agent,
        path: str,
        decode: Callable[[Any], Any],
        changed: threading.Event,
    ) -> None:
        super().__init__(name=path, daemon=True)
        self.path = path
        self.value: Any = None
        self.problem = "not asked yet"
        self._agent, self._decode, self._changed = agent, decode, changed
        self._index = 0
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Give up the watch; its thread ends after the query under way."""
        self._stopped.set()

    def run(self) -> None:
        """Ask until stopped."""
        connection: http.client.HTTPSConnection | None = None
        while not self._stopped.is_set():
            try:
                connection = connection or self._agent.connect()
                self._ask(connection)
                pause = _PAUSE_BETWEEN if self._index else _PAUSE_WITHOUT_INDEX
            except (
                OSError,
                http.client.HTTPException,
                ValueError,
                LookupError,
                TypeError,
            ) as error:
                self._say(f"{type(error).__name__}: {error}")
                if connection:
                    connection.close()
                connection, self._index = None, 0
                pause = _PAUSE_UNREACHABLE if isinstance(error, OSError) else _PAUSE_REFUSED
            self._stopped.wait(pause)

    def _ask(self, connection: http.client.HTTPSConnection) -> None:
        wait = WAIT_SECONDS if self.value else _WAIT_FOR_FIRST
        query = f"index={self._index}&wait={wait}s" if self._index else ""
        mark = "&" if "?" in self.path else "?"
        connection.request("GET", self.path + (mark + query if query else ""))
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != http.HTTPStatus.OK:
            raise ValueError(f"{answer.status} {body[:120].decode(errors='replace').strip()}")
        index = int(answer.headers.get("X-Consul-Index") or 0)
        self._index = index if index >= self._index else 0
        value = self._decode(json.loads(body))
        self._say("")
        if value != self.value:
            self.value = value
            self._changed.set()

    def _say(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._changed.set()
