"""
Talking to a lab that runs: one line of JSON each way on a socket in its directory.

Only the user who runs the lab can open the socket.
"""

from __future__ import annotations

import json
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SOCKET = "control.sock"
POLL_SECONDS = 0.1  # how soon the server notices that it is to close
Handler = Callable[[dict[str, Any]], dict[str, Any]]


class ControlFailed(RuntimeError):
    """The lab did not do what it was asked; the message says why."""


def request(directory: Path, do: str, *, timeout: float = 60.0, **arguments: Any) -> dict[str, Any]:
    """
    Have the lab of a directory do something; its answer.

    Raises:
        ControlFailed: nobody answers in `timeout` seconds, or the lab refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            with _short(directory) as path:
                connection.connect(path)
            connection.sendall(json.dumps({"do": do, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as stream:
                line = stream.readline()
    except OSError as error:
        raise ControlFailed(
            f"the lab in {directory} does not answer ({error}): `mesh lab down` ends it"
        ) from error
    answer = json.loads(line) if line else {"error": "it ended without an answer"}
    if "error" in answer:
        raise ControlFailed(str(answer["error"]))
    return dict(answer)


class Server(socketserver.ThreadingUnixStreamServer):
    """Answers requests in threads; `handler` gets each and gives back the answer."""

    daemon_threads = True
    allow_reuse_address = False

    def __init__(self, directory: Path, handler: Handler) -> None:
        self.handler = handler
        self.file = directory / SOCKET
        self.file.unlink(missing_ok=True)
        with _short(directory) as path:
            super().__init__(path, _Connection)
        self.file.chmod(0o600)

    def serve(self) -> None:
        """Begin to answer, in a thread."""
        threading.Thread(target=self.serve_forever, args=(POLL_SECONDS,), daemon=True).start()

    def close(self) -> None:
        """Answer no more."""
        self.shutdown()
        self.server_close()
        self.file.unlink(missing_ok=True)


class _Connection(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        line = self.rfile.readline()
        if not line:
            return
        try:
            answer = self.server.handler(json.loads(line))
        except Exception as error:  # noqa: BLE001 - whoever asked is told, and the lab goes on
            answer = {"error": f"{type(error).__name__}: {error}"}
        self.wfile.write(json.dumps(answer).encode() + b"\n")


@contextmanager
def _short(directory: Path) -> Iterator[str]:
    """The socket's path in a form that fits the 107 bytes a socket address has."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET}"
    finally:
        os.close(descriptor)
