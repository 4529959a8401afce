"""What each health code of a Vault node counts as (B6), those of Vault Enterprise included."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any, cast

import pytest

from blocks.vault import VaultCluster
from tasks import vault

pytestmark = pytest.mark.integration


class Node(BaseHTTPRequestHandler):
    """A node with one health code; sealed if the code says so."""

    code = 200

    def do_GET(self) -> None:
        health = self.path.startswith("/v1/sys/health")
        sealed = self.code in {501, 503}
        status = {"sealed": sealed, "t": 3, "n": 5, "progress": 1, "nonce": "abc", "type": "shamir"}
        body = json.dumps(status).encode()
        self.send_response(self.code if health else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep quiet."""


@pytest.fixture
def node() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Node) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("code", "state", "unsealed"),
    [
        (200, "active", True),
        (429, "standby", True),
        (472, "standby", True),  # disaster recovery secondary
        (473, "standby", True),  # performance standby
        (501, "uninitialised", False),
        (503, "sealed", False),
    ],
)
def test_what_a_health_code_counts_as(
    node: HTTPServer, monkeypatch: pytest.MonkeyPatch, code: int, state: str, unsealed: bool
):
    """A standby of any kind is unsealed: it is never given a share."""
    monkeypatch.setattr(Node, "code", code)
    cluster = VaultCluster(nodes={"vault-1": f"http://127.0.0.1:{node.server_port}"})
    connections = cast(Any, SimpleNamespace(vault=lambda: cluster))

    seen = vault.look(connections, "vault-1")

    assert (seen.state, seen.unsealed) == (state, unsealed)


def test_a_code_that_no_node_gives_is_no_state(node: HTTPServer, monkeypatch: pytest.MonkeyPatch):
    """What answers something else is not taken for a node that serves."""
    monkeypatch.setattr(Node, "code", 204)
    cluster = VaultCluster(nodes={"vault-1": f"http://127.0.0.1:{node.server_port}"})
    connections = cast(Any, SimpleNamespace(vault=lambda: cluster))

    assert not vault.look(connections, "vault-1").unsealed


class Proxy(Node):
    """Something between us and the node answers once in its place."""

    answers: list[int]

    def do_GET(self) -> None:
        if not self.answers:
            super().do_GET()
            return
        self.send_response(self.answers.pop(0))
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_proxys_own_answer_is_no_nodes_state(
    node: HTTPServer, monkeypatch: pytest.MonkeyPatch, status: int
):
    """A 503 that no node gave must not make a serving one look sealed, nor be restarted for it."""
    monkeypatch.setattr(Proxy, "answers", [status], raising=False)
    node.RequestHandlerClass = Proxy
    cluster = VaultCluster(nodes={"vault-1": f"http://127.0.0.1:{node.server_port}"})
    connections = cast(Any, SimpleNamespace(vault=lambda: cluster))

    assert vault.look(connections, "vault-1").state == "active"
    assert Proxy.answers == []
