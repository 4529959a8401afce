"""
`mesh` whose servers answer errors that quote all they know: run as a module.

    python -m tests.harness.echo FOLDER -- run token-rotation --mesh lab

Each call at which a secret goes over the line is once answered 500 with its own
headers and body, and with what the server had really answered: it is carried
out. `FOLDER` is kept over several runs, as of `inject`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from blocks import calls, engine, http
from tests.harness import inject

SECRET_CALLS = ("/v1/acl/token", "/v1/mesh/data/", "/v1/auth/", "/v1/session/", "/v1/kv/")
# Where the secret stands in an answer; what is before it would fill the error's one line.
SECRET_FIELDS = (b'"SecretID"', b'"secret"', b'"client_token"', b'"ID"')
QUOTED = 100


def quoted(headers: dict[str, str], content: bytes | None, answered: bytes) -> bytes:
    """An error that a careless server would write."""
    token = next((v for k, v in headers.items() if k.lower().endswith("-token")), "")
    body = content or b""
    places = [found for field in SECRET_FIELDS if (found := answered.find(field)) >= 0]
    here = answered[min(places, default=0) :][:QUOTED]
    sent = [body[found:][:QUOTED] for f in SECRET_FIELDS if (found := body.find(f)) >= 0]
    return b"failed for " + token.encode() + b" " + here + b" " + b" ".join(sent)


def _echo(injector: inject.Injector) -> None:
    exchange = http.Api.exchange

    def wrapped(self: http.Api, verb: str, url: str, **options: Any) -> http.Answer:
        call = calls.Call(self.server, options["what"], options["mutates"])
        answer = exchange(self, verb, url, **options)
        if not any(path in call.what for path in SECRET_CALLS) or not injector._take(call):
            return answer
        said = quoted(options["headers"], options["content"], answer.body)
        return http.Answer(500, said, {}, "injected", call.what, call.server)

    http.Api.exchange = wrapped  # type: ignore[method-assign]


def main(words: list[str]) -> int:
    """Run `mesh` so; its exit status."""
    folder, dashes, *arguments = words
    assert dashes == "--", "FOLDER -- ARGUMENTS of mesh"
    engine.do_without_prefect()  # before any block is imported, as `mesh run` does
    injector = inject.Injector("500", Path(folder))
    _echo(injector)
    calls.observe(injector)
    from deployments.cli import main as mesh

    return mesh(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
