"""
The lab's services: small HTTP programs that say who answered.

`/health` is for checks; every other path answers JSON `{service, datacenter,
host}` and leaves a line in the log. Standard library only.

    python -m deployments.lab.apps SERVICE --address IP --port N --datacenter DC --host NAME
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType


class Server(ThreadingHTTPServer):
    """Answers as one service instance."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], identity: dict[str, str]) -> None:
        super().__init__(address, Handler)
        self.answer = json.dumps(identity).encode()


class Handler(BaseHTTPRequestHandler):
    """One connection to it."""

    protocol_version = "HTTP/1.1"
    server: Server
    # Answers are small, and a kept connection would wait 40 ms for each without it.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Say that it is well, or who it is."""
        health = self.path == "/health"
        body = b'{"status": "ok"}' if health else self.server.answer
        if not health:
            self._record(200, len(body))  # first, so that who has the answer finds the line
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Take what is sent and answer as to a GET."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.do_GET()

    def _record(self, status: int, size: int) -> None:
        caller = self.headers.get("X-Forwarded-Client-Cert", "")
        line = {"at": round(time.time(), 4), "method": self.command, "path": self.path}
        line |= {"status": status, "bytes": size, "caller": caller.rpartition("URI=")[2]}
        print(json.dumps(line), flush=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Stay silent: `_record` writes the log."""


def main() -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description="A service of the lab")
    parser.add_argument("service")
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--datacenter", required=True)
    parser.add_argument("--host", required=True)
    args = parser.parse_args()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    identity = {"service": args.service, "datacenter": args.datacenter, "host": args.host}
    with Server((args.address, args.port), identity) as server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
