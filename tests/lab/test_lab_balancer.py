"""The balancer leads to Vault's active node, whichever that is."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from deployments.lab import balancer
from deployments.lab.balancer import Balancer
from deployments.lab.layout import VAULT_PORT, Layout
from deployments.lab.pki import Authority, server_names
from tests.lab.machine import free_network


class Node:
    """Stands for one node of Vault: a health code and its own name."""

    def __init__(self, layout: Layout, name: str, authority: Authority) -> None:
        self.code = 503
        node, host = self, layout.host(name)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                health = self.path == "/v1/sys/health"
                self.send_response(node.code if health else 200)
                self.end_headers()
                self.wfile.write(b"" if health else name.encode())

            def log_message(self, *args: object) -> None:
                pass

        files = layout.root(name)
        files.mkdir(parents=True)
        pair = authority.issue(server_names(layout, host))
        (files / "pem").write_bytes(pair.certificate + pair.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files / "pem")
        self.server = ThreadingHTTPServer((host.address, VAULT_PORT), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def layout(tmp_path: Path) -> Iterator[Layout]:
    with free_network() as network:
        yield Layout("full", network, tmp_path, "id")


@contextmanager
def serving(layout: Layout) -> Iterator[None]:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    served = Balancer(layout)
    asyncio.run_coroutine_threadsafe(served.start(), loop).result(5)
    try:
        yield
    finally:
        asyncio.run_coroutine_threadsafe(served.stop(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)


def test_follows_the_active_node(layout: Layout, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(balancer, "KNOWN_SECONDS", 0.0)
    authority = Authority.create(layout.pki)
    names = [h.name for h in layout.with_role("vault")]
    nodes = {name: Node(layout, name, authority) for name in names}
    trust = ssl.create_default_context(cafile=str(layout.ca_file))
    with serving(layout):

        def asked() -> str:
            with httpx.Client(verify=trust, trust_env=False) as client:
                return client.get(f"{layout.vault_url}/who").text

        assert asked() in names  # sealed all three: one of them says so itself
        for active in ("vault-3", "vault-1", "vault-2"):
            for name, node in nodes.items():
                node.code = 200 if name == active else 429
            assert asked() == active
        nodes["vault-2"].stop()
        nodes["vault-3"].code = 200
        assert asked() == "vault-3"
        for name in ("vault-1", "vault-3"):
            nodes[name].stop()
        with pytest.raises(httpx.TransportError):
            asked()
