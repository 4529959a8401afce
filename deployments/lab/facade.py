"""
A facade in front of the lab's OpenBao: passes everything through and adds the Consul secrets engine.

OpenBao speaks Vault's API and has no such engine; HashiCorp's Vault has, and is
not to be had here. The facade says of itself that it is one: in the header
`Server`, in the warnings of what it answers itself, and in the list of mounts.
Who may do what is OpenBao's to say: each request of the engine's is asked about
at `sys/capabilities-self` with the caller's token.

    python -m deployments.lab.facade DIRECTORY

It ends when its standard input does, and so with the lab.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import ssl
import sys
import threading
import time
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from deployments.lab import state, vault_files
from deployments.lab.facade_engine import MOUNT, Asker, Engine, Refused
from deployments.lab.facade_store import Store
from deployments.lab.layout import VAULT_PORT, Layout
from deployments.lab.pki import Authority, Names

NAME = "mesh-lab-facade"
WARNING = "answered by the lab's facade: OpenBao has no Consul secrets engine"
UPSTREAM_SECONDS = 30.0
TICK_SECONDS = 0.1
_HOP = {"connection", "content-length", "date", "host", "keep-alive", "server", "transfer-encoding"}
_LEASES = "sys/leases/"
_NEEDS = {"GET": "read", "LIST": "list", "DELETE": "delete", "POST": "update", "PUT": "update"}


class Facade(ThreadingHTTPServer):
    """Listens at the layout's `facade_address`."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, layout: Layout) -> None:
        node = layout.with_role("vault")[0]
        data = Path(f"{layout.root(node.name)}{vault_files.DATA_DIR}")
        self.layout = layout
        self.engine = Engine(Store(data / "facade.json"))
        self.trust = ssl.create_default_context(cafile=str(layout.ca_file))
        super().__init__((layout.facade_address, VAULT_PORT), Handler)
        # Shaken hands with in each connection's own thread, or one that is silent stops all.
        self.socket = _context(layout).wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""

    def expire_forever(self) -> None:
        """End leases when they are over."""
        while True:
            with contextlib.suppress(OSError, ValueError):
                self.engine.expire()
            time.sleep(TICK_SECONDS)


class Handler(BaseHTTPRequestHandler):
    """One connection to it."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Facade

    def version_string(self) -> str:
        """What it calls itself in the header `Server`."""
        return NAME

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Stay silent: a path may name a lease."""

    def do_GET(self) -> None:
        """Answer by the engine, or pass it on."""
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path = unquote(url.path).removeprefix("/v1/")
        listing = parse_qs(url.query).get("list") == ["true"]
        verb = "LIST" if listing and self.command == "GET" else self.command
        try:
            if self._is_engines(path, content):
                self._allowed(verb, path)
                self._say(200, self._engine(verb, path, _body(content)))
            elif path == "sys/mounts" and verb == "GET":
                self._mounts()
            elif path == "auth/token/revoke-self":
                self._revoke_self(content)
            else:
                self._pass_on(content)
        except Refused as refused:
            self._say(refused.status, {"errors": refused.errors})
        except (OSError, http.client.HTTPException) as error:
            self._say(502, {"errors": [f"Vault does not answer: {type(error).__name__}"]})

    do_PUT = do_POST = do_DELETE = do_LIST = do_PATCH = do_HEAD = do_GET  # noqa: N815

    # What is the engine's own.

    def _is_engines(self, path: str, content: bytes) -> bool:
        if path.startswith(f"{MOUNT}/"):
            return True
        if not path.startswith(_LEASES):
            return False
        what, _, prefix = path.removeprefix(_LEASES).partition("/")
        lease = prefix or str(_body(content).get("lease_id") or "")
        known = {"lookup", "renew", "revoke", "revoke-prefix", "revoke-force"}
        return what in known and lease.startswith(f"{MOUNT}/")

    def _engine(self, verb: str, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if path.startswith(_LEASES):
            return self._lease(verb, path.removeprefix(_LEASES), body)
        engine, writes = self.server.engine, verb in {"POST", "PUT"}
        what, _, name = path.removeprefix(f"{MOUNT}/").rstrip("/").partition("/")
        match what, name:
            case "config", "access" if writes:
                engine.configure(body)
            case "config", "access" if verb == "GET":
                return {"data": _there(engine.configuration())}
            case "roles", "" if verb == "LIST":
                return {"data": {"keys": _there(engine.roles())}}
            case "roles", role if writes:
                engine.define(role, body)
            case "roles", role if verb == "GET":
                return {"data": _there(engine.role(role))}
            case "roles", role if verb == "DELETE":
                engine.undefine(role)
            case "creds", role if verb == "GET":
                return engine.mint(role, self._asker())
            case _:
                raise Refused(405 if what in {"config", "roles", "creds"} else 404)
        return None

    def _lease(self, verb: str, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        engine = self.server.engine
        what, _, rest = path.partition("/")
        id_ = str(body.get("lease_id") or rest)
        match what:
            case "lookup" if verb == "LIST":
                return {"data": {"keys": _there(engine.listed(rest))}}
            case "lookup":
                return {"data": engine.lookup(id_)}
            case "renew":
                return engine.renew(id_)
            case "revoke":
                engine.revoke([id_])
            case _:
                engine.revoke_prefix(rest)
        return None

    def _allowed(self, verb: str, path: str) -> None:
        """
        Raise a 403 unless OpenBao says that the caller may.

        Raises:
            Refused: it may not.
        """
        if verb == "LIST":
            path = path.rstrip("/") + "/"
        body = json.dumps({"paths": [path]})
        answer, said = self._upstream("POST", "/v1/sys/capabilities-self", body.encode())
        has = set(_body(said).get(path) or ()) if answer.status == 200 else set()
        needs = {_NEEDS.get(verb, "sudo")}
        if path.startswith(_LEASES) and (verb == "LIST" or "/revoke-" in path):
            needs.add("sudo")
        if answer.status not in {200, 403}:
            raise Refused(answer.status, "; ".join(map(str, _body(said).get("errors") or ())))
        if "root" not in has and not needs <= has:
            raise Refused(403, "permission denied")

    def _asker(self) -> Asker:
        answer, said = self._upstream("GET", "/v1/auth/token/lookup-self", b"")
        if answer.status != 200:
            raise Refused(answer.status, "permission denied")
        data = _body(said)["data"]
        ends = data.get("expire_time")
        at = datetime.fromisoformat(ends).timestamp() if ends else None
        return Asker(str(data["accessor"]), str(data.get("display_name") or ""), at)

    # What is OpenBao's.

    def _mounts(self) -> None:
        answer, said = self._upstream(self.command, self.path, b"")
        found = _body(said)
        if answer.status == 200:
            mount = {"type": "consul", "description": f"{NAME}, no engine of OpenBao's"}
            found["data"] = (found.get("data") or {}) | {f"{MOUNT}/": mount}
            found[f"{MOUNT}/"] = mount
        self._say(answer.status, found)

    def _revoke_self(self, content: bytes) -> None:
        """The leases that a token asked for end with it, as with Vault."""
        answer, said = self._upstream("GET", "/v1/auth/token/lookup-self", b"")
        status = self._pass_on(content)
        if answer.status == 200 and status < 300:
            self.server.engine.revoke_of(str(_body(said)["data"]["accessor"]))

    def _upstream(
        self, verb: str, path: str, content: bytes
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPSConnection(
            self.server.layout.vault_balancer,
            VAULT_PORT,
            timeout=UPSTREAM_SECONDS,
            context=self.server.trust,
        )
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        try:
            connection.request(verb, path, content or None, headers)
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def _pass_on(self, content: bytes) -> int:
        answer, said = self._upstream(self.command, self.path, content)
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        self._send(said)
        return answer.status

    def _say(self, status: int, found: dict[str, Any] | None) -> None:
        if found is None:
            self.send_response(204)
            self._send(b"")
            return
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        warnings = [*(found.get("warnings") or ()), WARNING]  # OpenBao says null for none
        self._send(json.dumps(found | {"warnings": warnings}).encode())

    def _send(self, content: bytes) -> None:
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _there(found: Any) -> Any:
    if not found:
        raise Refused(404)
    return found


def _body(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _context(layout: Layout) -> ssl.SSLContext:
    names = Names(NAME, ("localhost",), (layout.facade_address,))
    pair = Authority.load(layout.pki).issue(names)
    file = layout.directory / "facade.pem"
    file.unlink(missing_ok=True)
    file.touch(mode=0o600)
    file.write_bytes(pair.certificate + pair.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def main(directory: str) -> int:
    """Serve until standard input ends."""
    layout = state.read(Path(directory))
    assert layout is not None
    if layout.ca_file.exists():  # else its hosts have no servers, and there is no Vault
        facade = Facade(layout)
        for work in (facade.expire_forever, facade.serve_forever):
            threading.Thread(target=work, daemon=True).start()
    while os.read(sys.stdin.fileno(), 1):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
