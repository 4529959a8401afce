"""The lab's services say who they are, and note who asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import httpx
import pytest

from deployments.lab.apps import Server

IDENTITY = {"service": "payment-processor", "datacenter": "eu-west-1", "host": "eu-app-1"}


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with Server(("127.0.0.1", 0), IDENTITY) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with httpx.Client(base_url=url, trust_env=False) as client:
            yield client
        server.shutdown()


def test_says_who_answered(client: httpx.Client):
    assert client.get("/anything").json() == IDENTITY
    assert client.post("/pay", content=b"10 EUR").json() == IDENTITY


def test_is_well_and_does_not_note_that_it_was_asked(
    client: httpx.Client, capsys: pytest.CaptureFixture[str]
):
    assert client.get("/health").status_code == 200
    assert capsys.readouterr().out == ""


def test_notes_when_and_by_whom_it_was_called(
    client: httpx.Client, capsys: pytest.CaptureFixture[str]
):
    client.get("/pay", headers={"X-Forwarded-Client-Cert": "URI=spiffe://td/svc/web-portal"})

    line = json.loads(capsys.readouterr().out)
    assert (
        line["path"],
        line["status"],
        line["caller"],
    ) == ("/pay", 200, "spiffe://td/svc/web-portal")
    assert line["at"] > 1_700_000_000
