"""
A balancer in front of Vault, as a cloud has one: it passes TLS through to the active node.

Consul keeps one Vault address for its CA, and a standby loses a write that
follows too soon on the mount it goes to. A node is active when `/v1/sys/health`
answers 200. With none active, connections go to whichever node takes them, so
that a sealed Vault says for itself that it is sealed.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ssl
import time

from deployments.lab.layout import VAULT_PORT, Layout

KNOWN_SECONDS = 0.5  # how long an answer about who is active is good
CHECK_SECONDS = 1.0


class Balancer:
    """Listens at the layout's `vault_balancer`; runs in the event loop it is started in."""

    def __init__(self, layout: Layout) -> None:
        self._listen = layout.vault_balancer
        self._nodes = [h.address for h in layout.with_role("vault")]
        self._order = self._nodes
        self._known_until = 0.0
        self._checking = asyncio.Lock()
        self._server: asyncio.Server | None = None
        # The loop holds its tasks weakly: one that only waits could be collected.
        self._open: set[asyncio.Task[None] | None] = set()

    async def start(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._serve, self._listen, VAULT_PORT)

    async def stop(self) -> None:
        """Accept no more; what is open ends with the process."""
        if self._server:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        self._open.add(task)
        try:
            await self._pass_through(reader, writer)
        finally:
            self._open.discard(task)

    async def _pass_through(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        for node in await self._by_preference():
            try:
                upstream, to_upstream = await asyncio.wait_for(
                    asyncio.open_connection(node, VAULT_PORT), CHECK_SECONDS
                )
            except (OSError, TimeoutError):
                self._known_until = 0.0
                continue
            try:
                await asyncio.gather(_copy(reader, to_upstream), _copy(upstream, writer))
                to_upstream.close()
                writer.close()
            except OSError:  # one side was reset: so is the other
                to_upstream.transport.abort()
                writer.transport.abort()
            return
        writer.transport.abort()  # a reset, as with nothing behind it

    async def _by_preference(self) -> list[str]:
        async with self._checking:
            if time.monotonic() > self._known_until and len(self._nodes) > 1:
                answers = await asyncio.gather(
                    *(asyncio.to_thread(_health, n) for n in self._nodes)
                )
                ranked = zip(answers, self._nodes, strict=True)
                self._order = [node for _, node in sorted(ranked, key=lambda r: r[0] != 200)]
                self._known_until = time.monotonic() + KNOWN_SECONDS
            return list(self._order)


def _health(node: str) -> int:
    """The status of a node's health endpoint; 0 if it does not answer."""
    # As with a real balancer, a health check is no place to decide whom to trust.
    context = ssl._create_unverified_context()  # noqa: S323, SLF001
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPSConnection(
            node, VAULT_PORT, timeout=CHECK_SECONDS, context=context
        )
        try:
            connection.request("GET", "/v1/sys/health")
            return connection.getresponse().status
        finally:
            connection.close()
    return 0


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass on what comes until it ends; a half-closed connection stays half open."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
