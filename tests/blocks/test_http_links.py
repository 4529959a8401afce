"""What may come over one connection, read whole and no further; and what is never sent."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from blocks.errors import BadAnswer, Invalid, MeshError, Unreachable
from blocks.http import Api
from tests.blocks.faults import FaultServer

Serve = Callable[[socket.socket, bytes], None]


def saying(*pieces: bytes, closes: bool = False) -> Serve:
    """A server that sends these, one packet each, to every request."""

    def behave(connection: socket.socket, request: bytes) -> None:
        for piece in pieces:
            connection.sendall(piece)
            threading.Event().wait(0.01)
        if closes:
            connection.close()

    return behave


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("behave", "body", "connections"),
    [
        (saying(OK + b"Content-Length: 4\r\n\r\nbody"), b"body", 1),
        (saying(OK + b"Content-Le", b"ngth: 4\r\n\r\nbo", b"dy"), b"body", 1),
        (saying(OK + b"content-length:4\r\n\r", b"\nbody"), b"body", 1),
        (saying(b"HTTP/1.1 100 Continue\r\n\r\n", OK + b"Content-Length: 2\r\n\r\nok"), b"ok", 1),
        (saying(b"HTTP/1.1 103 H\r\nLink: x\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n"), b"", 1),
        (saying(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2;x=1\r\ndy\r\n0\r\n\r\n"), b"body", 1),
        (
            saying(OK + b"Transfer-Encoding: chunked\r\n\r\nA\r\n0123456", b"789\r\n0\r\n", b"X: y\r\n\r\n"),
            b"0123456789",
            1,
        ),
        (saying(b"HTTP/1.1 204 No Content\r\n\r\n"), b"", 1),
        (saying(OK + b"Connection: close\r\nContent-Length: 4\r\n\r\nbody"), b"body", 3),
        (saying(b"HTTP/1.0 200 OK\r\nContent-Length: 4\r\n\r\nbody"), b"body", 3),
        (saying(OK + b"\r\nunt", b"il the end", closes=True), b"until the end", 3),
        (saying(OK + b"Content-Length: 4\r\n\r\nbodyMORE"), b"body", 3),  # who knows what that is
        (saying(b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nok"), b"ok", 1),
    ],
)  # fmt: skip
def test_an_answer_is_read_whole_and_its_connection_used_again_if_it_may_be(
    behave: Serve, body: bytes, connections: int
):
    with FaultServer(behave) as server, Api("thing", server.url) as api:
        for _ in range(3):
            assert api.get("/v1/x").body == body

        assert (server.connections, len(server.requests)) == (connections, 3)


def test_an_answer_to_head_has_no_body_whatever_it_says():
    with (
        FaultServer(saying(OK + b"Content-Length: 4000\r\n\r\n")) as server,
        Api("thing", server.url, deadline=2) as api,
    ):
        for _ in range(2):
            assert api.request("HEAD", "/v1/x", mutates=False).body == b""

        assert server.connections == 1


@pytest.mark.parametrize(
    ("behave", "error"),
    [
        (saying(OK + b"Content-Length: many\r\n\r\nbody"), BadAnswer),
        (saying(OK + b"Content-Length: -4\r\n\r\nbody"), BadAnswer),
        (saying(OK + b"no header\r\n\r\n"), BadAnswer),
        (saying(OK + b" folded: x\r\n\r\n"), BadAnswer),
        (saying(b"HTTP/2 200\r\n\r\n"), BadAnswer),
        (saying(OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"), BadAnswer),
        (saying(OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nbody\r\n0\r\n\r\n"), BadAnswer),
        (saying(OK + b"X: " + b"x" * 70_000 + b"\r\n", b"y" * 70_000), BadAnswer),
        (saying(OK + b"X: y\r\n", closes=True), BadAnswer),
        (saying(closes=True), Unreachable),
    ],
)
def test_what_is_no_answer_is_said_to_be_none(behave: Serve, error: type[MeshError]):
    with (
        FaultServer(behave) as server,
        Api("thing", server.url, deadline=2) as api,
        pytest.raises(error, match="GET /v1/x"),
    ):
        api.get("/v1/x")


@pytest.mark.parametrize("name", ["X-A\r\nX-B", ""])
def test_a_header_that_would_be_two_is_not_sent(name: str):
    with FaultServer(saying(OK + b"Content-Length: 0\r\n\r\n")) as server:
        with Api("thing", server.url) as api, pytest.raises(Invalid, match="not valid HTTP"):
            api.exchange(
                "GET", server.url, what="GET /", headers={name: "v"}, content=None, mutates=False
            )

        assert server.requests == []


def test_a_value_or_target_that_would_be_two_lines_is_not_sent():
    with FaultServer(saying(OK + b"Content-Length: 0\r\n\r\n")) as server:
        with Api("thing", server.url) as api:
            for url, headers in (
                (server.url + "/a b", {}),
                (server.url, {"X-A": "v\r\nX-B: w"}),
                (server.url, {"X-A": "gr\u00fcn"}),
            ):
                with pytest.raises(Invalid, match="not valid HTTP"):
                    api.exchange(
                        "GET", url, what="GET /", headers=headers, content=None, mutates=False
                    )

        assert server.requests == []


def test_many_threads_have_a_connection_each_and_keep_it():
    with (
        FaultServer(saying(OK + b"Content-Length: 2\r\n\r\nok")) as server,
        Api("thing", server.url) as api,
    ):
        at_once = threading.Barrier(8)

        def work() -> None:
            for _ in range(5):
                at_once.wait(5)
                assert api.get("/").body == b"ok"

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert (server.connections, len(server.requests)) == (8, 40)
