"""What `Api` makes of an answer, and of everything that is none."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blocks import calls, http_errors
from blocks.errors import (
    Absent,
    BadAnswer,
    BadInput,
    Forbidden,
    Invalid,
    MeshError,
    NoLeader,
    Refused,
    Transient,
    Unreachable,
    Untrusted,
)
from blocks.http import Answer, Api
from tests.blocks import faults
from tests.blocks.faults import FaultServer
from tests.blocks.pki import Authority

DEADLINE = 0.8
GRACE = 2.0  # what a busy machine may add; the faults last 60 s and more

CANARY = "c4nary-5ecret-token-0123456789"


@contextmanager
def within(deadline: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    assert took < deadline + GRACE, f"took {took:.2f} s with a deadline of {deadline} s"


@pytest.mark.parametrize(
    ("behave", "error"),
    [
        (faults.hang, Unreachable),
        (faults.answer_after(5), Unreachable),
        (faults.drip_head, Unreachable),
        (faults.drip_body, Unreachable),
        (faults.pour, (BadAnswer, Unreachable)),
        (faults.close, Unreachable),
        (faults.reset, Unreachable),
        (faults.reset_in_body, Unreachable),
        (faults.truncate, BadAnswer),
        (faults.truncate_chunks, BadAnswer),
        (faults.babble, BadAnswer),
        (faults.answer(502, b"<html>bad gateway</html>"), Unreachable),
        (faults.answer(503), Transient),
        (faults.answer(429), Transient),
        (faults.answer(302, b"", headers="Location: https://login.example\r\n"), BadAnswer),
    ],
)
def test_every_fault_is_a_named_error_before_its_deadline(behave, error):
    with (
        FaultServer(behave) as server,
        Api("thing", server.url, deadline=DEADLINE) as api,
        within(DEADLINE),
        pytest.raises(error) as caught,
    ):
        api.get("/v1/x")

    assert isinstance(caught.value, Transient)
    assert caught.value.where == "thing"
    assert "GET /v1/x" in caught.value.message


@pytest.mark.parametrize("behave", [faults.close, faults.hang, faults.answer(503), faults.reset])
def test_nothing_is_ever_sent_twice(behave):
    with FaultServer(behave) as server, Api("thing", server.url, deadline=0.3) as api:
        with pytest.raises(Transient):
            api.put("/v1/make", json={"name": "x"})
        time.sleep(0.1)

        assert len(server.requests) == 1


def test_refused_connection_is_unreachable_at_once():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with (
        Api("thing", f"http://127.0.0.1:{port}") as api,
        within(0.2),
        pytest.raises(Unreachable, match="connection refused"),
    ):
        api.get("/")


def test_a_connect_that_is_never_answered_ends_at_the_deadline():
    """A full backlog drops the SYN, as a host without power does."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(address)
        with (
            Api("thing", f"http://127.0.0.1:{address[1]}", deadline=DEADLINE) as api,
            within(DEADLINE),
            pytest.raises(Unreachable, match=r"no answer within 0\.8 s"),
        ):
            api.get("/")
        for one in waiting:
            one.close()


def test_a_tls_handshake_that_hangs_ends_at_the_deadline():
    with FaultServer(faults.hang, reads=False) as server:
        url = server.url.replace("http:", "https:")
        with (
            Api("thing", url, deadline=DEADLINE) as api,
            within(DEADLINE),
            pytest.raises(Unreachable),
        ):
            api.get("/")


def test_a_body_that_nobody_reads_ends_at_the_deadline():
    with (
        FaultServer(faults.hang, reads=False) as server,
        Api("thing", server.url, deadline=DEADLINE) as api,
        within(DEADLINE),
        pytest.raises(Unreachable),
    ):
        api.put("/", content=b"x" * 30_000_000)


def test_a_deadline_that_has_passed_sends_nothing(ledger: calls.Ledger):
    with FaultServer(faults.answer()) as server, Api("thing", server.url) as api:
        with pytest.raises(Unreachable, match="passed before"):
            api.put("/v1/x", deadline=0)

        assert server.connections == 0
    assert ledger.calls == 0


def test_a_kept_connection_that_the_server_closed_is_noticed():
    def once(connection, request):
        faults.answer()(connection, request)
        connection.close()

    with FaultServer(once) as server, Api("thing", server.url) as api:
        for _ in range(3):
            assert api.get("/").json(dict) == {}
            time.sleep(0.05)

        assert server.connections == 3


def test_connections_are_kept_between_calls():
    with FaultServer(faults.answer()) as server, Api("thing", server.url) as api:
        for _ in range(5):
            api.get("/")

        assert server.connections == 1


def test_a_large_answer_is_refused_not_swallowed():
    with (
        FaultServer(faults.answer(200, b"x" * 5000)) as server,
        Api("thing", server.url) as api,
        pytest.raises(BadAnswer, match="longer than 1000 bytes"),
    ):
        api.get("/", largest=1000)


# Statuses


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, "no", Forbidden),
        (403, "Permission denied", Forbidden),
        (400, "Bad request: missing Name", Invalid),
        (405, "", Invalid),
        (409, "", Invalid),
        (412, "", Invalid),
        (500, "No cluster leader", NoLeader),
        (500, "rpc error making call: No cluster leader", NoLeader),
        (500, "rpc error making call: Not ready to serve consistent reads", NoLeader),
        (500, '{"errors":["local node not active but active cluster node not found"]}', NoLeader),
        (500, "cluster not ready - no quorum?", NoLeader),
        (500, "Remote DC has no server currently reachable", Transient),
        (500, "No path to datacenter", Transient),
        (500, "rpc error making call: EOF", Transient),
        (500, "rpc error making call: i/o timeout", Transient),
        (500, "can't lock file '/run/lock/x' - got timeout", Transient),
        (500, "rpc error making call: Invalid Policy: a name is required", Invalid),
        (500, "Invalid service name", Invalid),
        (501, "", Invalid),
        (503, '{"errors":["Vault is sealed"]}', Transient),
        (504, "", Unreachable),
        (595, "No route to host", Unreachable),
    ],
)
def test_statuses_by_what_the_operator_does_next(status, body, error):
    behave = faults.answer(status, body.encode())
    with (
        FaultServer(behave) as server,
        Api("thing", server.url) as api,
        pytest.raises(MeshError) as caught,
    ):
        api.get("/v1/x")

    assert type(caught.value) is error
    assert f"GET /v1/x: {status}" in caught.value.message


def test_a_404_is_an_answer_unless_it_may_not_be():
    with FaultServer(faults.answer(404, b"")) as server, Api("thing", server.url) as api:
        found = api.get("/v1/kv/x")

        assert found.absent
        with pytest.raises(Absent):
            found.json(dict)
        with pytest.raises(Absent):
            api.get("/v1/kv/x", absent_ok=False)


def test_statuses_that_were_asked_for_are_answers():
    with (
        FaultServer(faults.answer(503, b'{"sealed": true}')) as server,
        Api("thing", server.url) as api,
    ):
        assert api.get("/health", answers=(429, 503)).json(dict) == {"sealed": True}


def test_a_404_that_was_asked_for_can_be_read():
    with FaultServer(faults.answer(404, b"[]")) as server, Api("thing", server.url) as api:
        assert api.get("/", answers=(404,)).json(list) == []


def test_the_reason_beside_the_status_is_said_when_the_body_says_nothing():
    behave = faults.answer(400, b'{"data": null}', reason="Parameter verification failed.")
    with (
        FaultServer(behave) as server,
        Api("thing", server.url) as api,
        pytest.raises(Invalid, match="400 Parameter verification failed"),
    ):
        api.get("/")


def test_messages_per_field_are_said():
    body = b'{"message": "Parameter verification failed.\\n", "errors": {"vmid": "too small"}}'
    with (
        FaultServer(faults.answer(400, body)) as server,
        Api("thing", server.url) as api,
        pytest.raises(Invalid, match=r"failed\.; vmid: too small"),
    ):
        api.get("/")


# JSON


@pytest.mark.parametrize(
    ("body", "expect"),
    [
        (b"<html>Sign in</html>", dict),
        (b"", dict),
        (b'{"a":', dict),
        (b"[]", dict),
        (b"{}", list),
        (b"null", dict),
        (b'"text"', (dict, list)),
        (b"[" * 100_000, list),
        (b"\xff\xfe\x00", dict),
    ],
)
def test_an_answer_of_another_shape_is_bad(body, expect):
    with (
        FaultServer(faults.answer(200, body)) as server,
        Api("thing", server.url) as api,
        pytest.raises(BadAnswer, match="GET /v1/x"),
    ):
        api.get("/v1/x").json(expect)


def test_shapes_that_go_servers_write():
    assert Answer(200, b"null", {}).json(list) == []
    assert Answer(200, b"true", {}).json(bool) is True
    assert Answer(200, b'"10.0.0.1:8300"', {}).json(str) == "10.0.0.1:8300"


# TLS


def test_a_trusted_server_answers(authority: Authority):
    context = authority.server_context("good")
    with FaultServer(faults.answer(), tls=context) as server:
        with Api("thing", server.url, ca_file=str(authority.ca_file)) as api:
            assert api.get("/").status == 200
            assert api.get("/").status == 200
        with Api("thing", server.url, ca_pem=authority.ca_file.read_text()) as api:
            assert api.get("/").status == 200


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"days": (-10, -1)}, "expired"),
        ({"days": (1, 10)}, "not valid yet"),
        ({"addresses": ("127.0.0.2",)}, "another address"),
    ],
)
def test_a_bad_certificate_is_refused_with_what_to_do(authority: Authority, options, says):
    context = authority.server_context("bad", **options)
    with FaultServer(faults.answer(), tls=context) as server:
        with (
            Api("thing", server.url, ca_file=str(authority.ca_file)) as api,
            pytest.raises(Untrusted, match=says) as caught,
        ):
            api.put("/", json={})

        assert server.requests == []
    assert caught.value.remedy


def test_a_certificate_of_another_ca_is_refused(authority: Authority, tmp_path):
    other = Authority(tmp_path, "other-ca")
    with FaultServer(faults.answer(), tls=other.server_context("good")) as server:
        for trusted in (str(authority.ca_file), None):
            with (
                Api("thing", server.url, ca_file=trusted) as api,
                pytest.raises(Untrusted, match="not trusted"),
            ):
                api.get("/")


def test_tls_to_a_server_without_it_may_pass(authority: Authority):
    """Something else may answer at the address while a host boots."""
    with FaultServer(faults.babble, reads=False) as server:
        url = server.url.replace("http:", "https:")
        with (
            Api("thing", url, ca_file=str(authority.ca_file)) as api,
            pytest.raises(Unreachable),
        ):
            api.get("/")


def test_a_missing_client_certificate_is_refused(authority: Authority):
    context = authority.server_context("strict")
    context.verify_mode = 2  # type: ignore[assignment]  # CERT_REQUIRED
    context.load_verify_locations(authority.ca_file)
    mine = authority.issue("me")
    with FaultServer(faults.answer(), tls=context) as server:
        with (
            Api("thing", server.url, ca_file=str(authority.ca_file)) as api,
            pytest.raises((Untrusted, Unreachable)),
        ):
            api.get("/")
        pair = (str(mine[0]), str(mine[1]))
        with Api("thing", server.url, ca_file=str(authority.ca_file), certificate=pair) as api:
            assert api.get("/").status == 200


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:8500", "", "https://"])
def test_what_is_no_url_is_bad_input(url):
    with pytest.raises(BadInput, match="is no URL"):
        Api("thing", url)


def test_a_ca_file_that_is_none_is_bad_input(tmp_path):
    (tmp_path / "empty").write_text("nothing")
    for file in (tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(BadInput, match="CA file"):
            Api("thing", "https://x", ca_file=str(file))


def test_a_name_that_does_not_resolve_is_unreachable():
    with (
        Api("thing", "http://nowhere.invalid", deadline=5) as api,
        pytest.raises(Unreachable, match="resolve"),
    ):
        api.get("/")


# Secrets and the record of calls


def test_no_error_repeats_a_secret_of_the_request():
    def echo(connection, request):
        body = b"denied: " + request.replace(b"\r\n", b" ")
        faults.answer(403, body)(connection, request)

    headers = {"X-Vault-Token": CANARY, "Authorization": f"Bearer {CANARY[::-1]}"}
    with (
        FaultServer(echo) as server,
        Api("thing", server.url, headers=headers) as api,
        pytest.raises(Forbidden) as caught,
    ):
        api.put("/v1/x", json={"keys": [CANARY.upper()], "password": "short"}, secrets=("short",))

    said = f"{caught.value} {caught.value!r} {caught.value.__cause__} {caught.value.__context__}"
    assert "denied" in said
    for secret in (CANARY, CANARY[::-1], CANARY.upper(), "short"):
        assert secret not in said
        assert secret not in repr(api)


@pytest.mark.parametrize(
    "known",
    [
        "7d1f0b9e-3c52-4a6b-9c1d-0b1e2f3a4b5c",
        "7D1F0B9E-3C52-4A6B-9C1D-0B1E2F3A4B5C",
        "s.CAESIJlU02LQZq6bQ1yPz4",
        "hvs.CAESIJlU02LQZq6bQ1yPz4",
        "hvb.AAAAAQJlU02L-Zq6bQ1y_z4",
    ],
)
def test_no_error_repeats_a_token_that_the_server_knew_by_itself(known: str):
    accessor = "0f3c1b52-6a1d-4a8e-8d39-6f1c2a3b4c5d"
    body = f"token {known} of {accessor} is in use on s.example.org".encode()
    with (
        FaultServer(faults.answer(500, body)) as server,
        Api("thing", server.url) as api,
        pytest.raises(Invalid) as caught,
    ):
        api.get(f"/v1/acl/token/{accessor}")

    assert f"token *** of {accessor} is in use on s.example.org" in str(caught.value)


def test_long_texts_are_cut_and_control_characters_dropped():
    body = b"\x1b[31m<script>" + b"x" * 5000
    with (
        FaultServer(faults.answer(400, body)) as server,
        Api("thing", server.url) as api,
        pytest.raises(Invalid) as caught,
    ):
        api.get("/")

    assert len(caught.value.message) < 2 * http_errors.LONGEST_TEXT
    assert "\x1b" not in caught.value.message


@pytest.mark.parametrize("token", ["with\nbreak", "end ", "gr\u00fcn"])
def test_a_token_that_cannot_be_sent_is_named_and_not_shown(token):
    with pytest.raises(BadInput) as caught:
        Api("thing", "http://127.0.0.1:1", headers={"X-Consul-Token": token})

    assert "X-Consul-Token" in str(caught.value)
    assert token.strip() not in str(caught.value)


def test_neither_body_nor_headers_of_an_answer_show():
    answer = Answer(200, CANARY.encode(), {"x-token": CANARY}, what="GET /")

    assert CANARY not in f"{answer} {answer!r}"


def test_calls_are_on_record_with_what_they_change(ledger: calls.Ledger):
    with FaultServer(faults.answer()) as server, Api("thing", server.url) as api:
        api.get("/v1/a", params={"token": CANARY})
        api.put("/v1/b")
        api.put("/v1/c", mutates=False)
        api.request("LIST", "/v1/d", mutates=False)

    assert ledger.calls == 4
    assert [(c.server, c.what) for c in ledger.mutating] == [("thing", "PUT /v1/b")]


def test_a_call_counts_even_if_its_answer_is_lost(ledger: calls.Ledger):
    with (
        FaultServer(faults.close) as server,
        Api("thing", server.url) as api,
        pytest.raises(Unreachable),
    ):
        api.put("/v1/b")

    assert len(ledger.mutating) == 1


# What is sent


def test_path_query_body_and_headers_arrive_as_given():
    with (
        FaultServer(faults.answer()) as server,
        Api("t", server.url, params={"dc": "us"}, headers={"X-Consul-Token": "abc"}) as api,
    ):
        api.put("/v1/kv/a b/ü", json={"k": "ü"}, params={"cas": "0"})
        api.get("/v1/self", params={"dc": ""})

    first, second = (request.decode() for request in server.requests)
    assert first.startswith("PUT /v1/kv/a%20b/%C3%BC?dc=us&cas=0 HTTP/1.1\r\n")
    assert json.loads(first.partition("\r\n\r\n")[2]) == {"k": "ü"}
    assert "X-Consul-Token: abc" in first
    assert "Content-Type: application/json" in first
    assert second.startswith("GET /v1/self HTTP/1.1\r\n")


def test_a_proxy_is_used_when_there_is_one():
    with (
        FaultServer(faults.answer(200, b'{"by": "proxy"}')) as proxy,
        Api("t", "http://far.example:8500", proxy=proxy.url) as api,
    ):
        assert api.get("/v1/x").json(dict) == {"by": "proxy"}

    assert proxy.requests[0].startswith(b"GET http://far.example:8500/v1/x HTTP/1.1\r\n")


def test_the_kinds_of_error_a_step_repeats():
    assert issubclass(Untrusted, Refused)
    assert not issubclass(Untrusted, Transient)
