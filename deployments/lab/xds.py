"""
What tells Envoy what to do: xDS over HTTP on a Unix socket, held open until something changes.

Envoy could read files, but watches each with an inotify instance of its own,
of which many machines give a user 128 for everything; and a sidecar's private
key would lie on the disk. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import socketserver
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from deployments.lab.envoy_resources import HOLD_SECONDS, TYPES, Resource

Resources = dict[str, list[Resource]]
_PATHS = {"/v3/discovery:listeners": "lds", "/v3/discovery:clusters": "cds"}
_SECRETS = "/v3/discovery:secrets"


class Xds(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """
    Serves the latest resources of every kind at a socket that only its owner may use.

    A request for what Envoy has already is answered when there is something
    new, or not at all within `HOLD_SECONDS`: 304.
    """

    daemon_threads = True
    request_queue_size = 32

    def __init__(self, path: Path) -> None:
        self._answers: dict[str, tuple[str, bytes]] = {}
        self._changed = threading.Condition()
        # A socket's path has 108 characters at most, a lab's directory may have more.
        here = Path.cwd()
        os.chdir(path.parent)
        try:
            super().__init__(path.name, _Handler)
        finally:
            os.chdir(here)

    def start(self) -> None:
        """Answer from now on; who asked before is waiting."""
        threading.Thread(target=self.serve_forever, args=(1.0,), daemon=True).start()

    def tell(self, resources: Resources) -> list[str]:
        """Offer these from now on; which kinds have changed."""
        changed = []
        with self._changed:
            for kind, found in resources.items():
                version = hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
                if version != self._answers.get(kind, ("", b""))[0]:
                    self._answers[kind] = version, _document(kind, found, version)
                    changed.append(kind)
            if changed:
                self._changed.notify_all()
        return changed

    def answer(self, kind: str, known: str) -> bytes | None:
        """A kind's resources once they are others than the version known; None if they stay."""

        def news() -> bool:
            return self._answers.get(kind, (known, b""))[0] != known

        with self._changed:
            if self._changed.wait_for(news, HOLD_SECONDS):
                return self._answers[kind][1]
            return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Xds

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked: dict[str, Any] = json.loads(body or b"{}")
        kind = _PATHS.get(self.path)
        if self.path == _SECRETS:
            (kind,) = asked["resource_names"]
        if kind not in TYPES:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        answer = self.server.answer(kind, asked.get("version_info", ""))
        self.send_response(HTTPStatus.NOT_MODIFIED if answer is None else HTTPStatus.OK)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer or b"")))
        self.end_headers()
        self.wfile.write(answer or b"")

    def address_string(self) -> str:
        return "envoy"  # a Unix socket's client has no address

    def log_message(self, *args: object) -> None:
        pass


def _document(kind: str, resources: list[Resource], version: str) -> bytes:
    typed = [{"@type": TYPES[kind], **resource} for resource in resources]
    return json.dumps(
        {"version_info": version, "type_url": TYPES[kind], "resources": typed}
    ).encode()
