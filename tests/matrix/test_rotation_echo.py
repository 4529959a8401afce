"""Servers whose errors quote every secret they were sent or know: none of it is told on (R11)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.harness import inject
from tests.integration import changes
from tests.integration.tokens import Tokens, role
from tests.matrix.conftest import Tell
from tests.matrix.test_rotation_outages import tokens

__all__ = ["tokens"]

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(600)]

VAULTS = re.compile(r"\b(?:hv[sbr]|[sbr])\.[\w-]{20,}")


def test_no_error_tells_a_secret_on(tokens: Tokens, folder: Path, tell: Tell) -> None:
    """Each call goes wrong once; all that was printed and written down is searched in the end."""
    mesh = tokens.declare(role(overlap_seconds=0, soak_seconds=0))
    changes.ends(tokens.rotate(mesh), 0, "verified")  # so that there is one to disarm
    words = [*tokens.lab.arguments("token-rotation", {"older_than": 0}), "--mesh", str(mesh)]
    credential = json.loads((tokens.lab.directory / "holders" / "runbooks.key").read_text())
    secrets = {tokens.management, str(credential["secret_id"]), tokens.document()["secret"]}
    told: list[str] = []
    for _ in range(60):
        before = inject.hit(folder).total()
        ran = tokens.lab.forked("tests.harness.echo", str(folder), "--", *words)
        told += [ran.out, ran.err]
        assert ran.status in {0, 1, 2, 3}, f"{ran}\n{ran.err[-3000:]}"
        assert not ran.problem.get("error", "").startswith("a defect"), ran
        held = tokens.seen.vault("mesh/data/services/payments", tokens.seen.token())
        if held.status_code == 200:
            found = held.json()["data"]["data"]
            parts = [found, found.get("pending") or {}, found.get("previous") or {}]
            secrets |= {part["secret"] for part in parts if part.get("secret")}
        if ran.status == 0 and inject.hit(folder).total() == before:
            break
    else:
        raise AssertionError(f"never quiet:\n{inject.table(inject.hit(folder))}")

    told += [file.read_text() for file in sorted((tokens.lab.directory / "reports").iterdir())]
    told.append((tokens.lab.directory / "journal.jsonl").read_text())
    everything = "\n".join(told)
    hits = {this.what for this in inject.hit(folder)}
    for what in ("PUT /v1/acl/token", "PUT /v1/acl/token/<uuid>", "GET /v1/acl/token/<uuid>"):
        assert what in hits
    assert "POST /v1/mesh/data/services/payments" in hits
    # They were quoted: what is left of it shows where they stood.
    assert everything.count("failed for *** ") > 5
    assert len(secrets) > 4
    assert [s for s in secrets if s in everything] == []
    assert VAULTS.findall(everything) == []
    tokens.one_live("payments")
    tell(f"servers that quote secrets: {len(hits)} different calls, none told on")
