"""
One HTTP server, spoken to under an overall deadline, with named errors.

Every client of an HTTP API is built on `Api`. It never repeats a request by
itself: whether a repeat is safe is known only to the caller.
"""

from __future__ import annotations

import json as jsonlib
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack
from urllib.parse import quote, urlencode, urlsplit

import httpcore

from blocks import calls, wire
from blocks.errors import Absent, BadAnswer, BadInput, Invalid, Unreachable
from blocks.http_errors import error_of, long_strings
from blocks.http_links import Links
from blocks.http_proxy import ThroughProxy

DEADLINE = 10.0
LARGEST_BODY = 64 * 2**20
KEEP_SECONDS = 5.0  # an idle connection; a server that went away meanwhile costs a call


@dataclass(frozen=True)
class Answer:
    """What a server answered; neither body nor headers show in a log."""

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)  # names in lower case
    reason: str = ""  # what stood beside the status
    what: str = ""
    where: str = ""
    expected: bool = field(default=False, repr=False)  # the caller asked for this status

    @property
    def absent(self) -> bool:
        """Whether the server knows no such thing."""
        return self.status == 404

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode(errors="replace")

    def json(self, expect: type | tuple[type, ...] = (dict, list)) -> Any:
        """
        The body as JSON of the expected type; an empty list also when written as `null`.

        Raises:
            Absent: this is a 404 that the caller did not ask for.
            BadAnswer: not JSON, or of another type: a proxy's page, a cut body.
        """
        if self.absent and not self.expected:
            raise Absent(f"{self.what}: there is no such thing", where=self.where)
        try:
            value = jsonlib.loads(self.body)
        except (ValueError, RecursionError):
            raise BadAnswer(f"{self.what}: the answer is not JSON", where=self.where) from None
        if value is None and expect is list:
            return []  # Go writes an empty list so
        if not isinstance(value, expect):
            kinds = expect if isinstance(expect, tuple) else (expect,)
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise BadAnswer(
                f"{self.what}: the answer is JSON of type {type(value).__name__}, not {wanted}",
                where=self.where,
            )
        return value


class Options(TypedDict, total=False):
    """What can be said about one request."""

    json: Any  # a body to be sent as JSON
    content: bytes | None  # a body to be sent as it is
    params: Mapping[str, str] | None  # an empty value takes away one that goes with every request
    headers: Mapping[str, str] | None
    deadline: float | None  # seconds for the whole call
    mutates: bool | None  # None: whether the verb is another than GET
    absent_ok: bool  # whether 404 is an answer; it is by default
    answers: tuple[int, ...]  # other statuses that are answers
    secrets: tuple[str, ...]  # what no error may repeat, beside headers and long strings of `json`
    largest: int  # bytes of the answer


class Api:
    """
    One HTTP server.

    `server` names it in errors and in the record of calls, such as
    "consul us-east-1". `deadline` is in seconds, for a whole call: connecting,
    sending and reading the last byte. `params` go with every request. `dial`
    opens connections in another way, such as through SSH (without TLS);
    `proxy` is the URL of an HTTP proxy to go through.
    """

    def __init__(
        self,
        server: str,
        base_url: str,
        *,
        ca_file: str | None = None,
        ca_pem: str | None = None,
        certificate: tuple[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        deadline: float = DEADLINE,
        dial: wire.Dial = wire.dial,
        proxy: str | None = None,
    ) -> None:
        self.server = server
        self.base_url = base_url.rstrip("/")
        self.deadline = deadline
        self._params = dict(params or {})
        self._headers = {"Accept": "application/json", "User-Agent": "mesh-runbooks"}
        self._headers |= headers or {}
        self._secrets = set(_check(server, self._headers))
        tls = _tls(server, base_url, ca_file, ca_pem, certificate)
        backend = wire.Backend(server, dial)
        self._links: Links | ThroughProxy = (
            ThroughProxy(proxy, backend, tls, KEEP_SECONDS)
            if proxy
            else Links(backend, tls, KEEP_SECONDS)
        )

    def __repr__(self) -> str:
        return f"Api({self.server!r}, {self.base_url!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._links.close()

    def get(self, path: str, **options: Unpack[Options]) -> Answer:
        """`request("GET", ...)`."""
        return self.request("GET", path, **options)

    def put(self, path: str, **options: Unpack[Options]) -> Answer:
        """`request("PUT", ...)`."""
        return self.request("PUT", path, **options)

    def post(self, path: str, **options: Unpack[Options]) -> Answer:
        """`request("POST", ...)`."""
        return self.request("POST", path, **options)

    def delete(self, path: str, **options: Unpack[Options]) -> Answer:
        """`request("DELETE", ...)`."""
        return self.request("DELETE", path, **options)

    def request(self, verb: str, path: str, **options: Unpack[Options]) -> Answer:
        """
        Send one request once, and give its answer if its status is 2xx.

        Raises:
            Unreachable: no whole answer within the deadline.
            Untrusted: the server could not prove who it is.
            NoLeader, Transient: it cannot serve now.
            Forbidden, Absent, Invalid: it will not serve this request.
            BadAnswer: what came is no HTTP, was cut short, or is a redirection.
        """
        json, content = options.get("json"), options.get("content")
        headers = dict(options.get("headers") or {})
        answers = options.get("answers", ())
        secrets = {*self._secrets, *options.get("secrets", ()), *_check(self.server, headers)}
        if json is not None:
            headers["Content-Type"] = "application/json"
            content = jsonlib.dumps(json).encode()
        mutates = options.get("mutates")
        answer = self.exchange(
            verb,
            self._url(path, options.get("params")),
            what=f"{verb} {path}",
            headers=self._headers | headers,
            content=content,
            mutates=verb != "GET" if mutates is None else mutates,
            deadline=options.get("deadline"),
            largest=options.get("largest", LARGEST_BODY),
        )
        if answer.status in answers:
            return replace(answer, expected=True)
        if 200 <= answer.status < 300 or (answer.absent and options.get("absent_ok", True)):
            return answer
        raise error_of(
            answer.status,
            answer.text,
            answer.reason,
            what=answer.what,
            where=answer.where,
            secrets=secrets | set(long_strings(json)),
        )

    def exchange(
        self,
        verb: str,
        url: str,
        *,
        what: str,
        headers: Mapping[str, str],
        content: bytes | None,
        mutates: bool,
        deadline: float | None = None,
        largest: int = LARGEST_BODY,
    ) -> Answer:
        """Send one request as it stands and give the answer whatever its status."""
        limit = self.deadline if deadline is None else deadline
        if limit <= 0:
            raise Unreachable(f"{what}: the deadline passed before it", where=self.server)
        began = time.monotonic()
        with calls.call(self.server, what, mutates=mutates):
            status = 0  # until the head of an answer has come
            try:
                with (
                    wire.deadline(limit),
                    self._links.stream(verb, url, headers, content) as answer,
                ):
                    status = answer.status
                    body = self._body(answer.chunks(), what, largest)
                    return Answer(status, body, answer.headers, answer.reason, what, self.server)
            except httpcore.TimeoutException as error:
                doing = "the answer did not end" if status else "no answer"
                raise Unreachable(
                    f"{what}: {doing} within {limit:g} s", where=self.server
                ) from error
            except httpcore.NetworkError as error:
                waited = time.monotonic() - began
                raise Unreachable(
                    f"{what}: {error} (after {waited:.1f} s)", where=self.server
                ) from error
            except httpcore.RemoteProtocolError as error:
                if status:
                    raise BadAnswer(
                        f"{what}: the answer was cut short", where=self.server
                    ) from error
                if "disconnected" in str(error):
                    raise Unreachable(
                        f"{what}: it closed the connection without an answer", where=self.server
                    ) from error
                raise BadAnswer(f"{what}: the answer is not HTTP", where=self.server) from error
            except httpcore.ProtocolError:
                # The cause's text may hold a header, and so a token.
                raise Invalid(f"{what}: the request is not valid HTTP", where=self.server) from None

    def _body(self, chunks: Iterator[bytes], what: str, largest: int) -> bytes:
        received = bytearray()
        for chunk in chunks:
            received += chunk
            if len(received) > largest:
                raise BadAnswer(
                    f"{what}: the answer is longer than {largest} bytes", where=self.server
                )
        return bytes(received)

    def _url(self, path: str, params: Mapping[str, str] | None) -> str:
        query = {k: v for k, v in (self._params | dict(params or {})).items() if v != ""}
        url = self.base_url + quote(path, safe="/:@!$&'()*+,;=~%")
        return f"{url}?{urlencode(query)}" if query else url


def _check(server: str, headers: Mapping[str, str]) -> Iterator[str]:
    """Yield what is secret in the headers; `BadInput` if one cannot be sent."""
    for name, value in headers.items():
        if not value.isascii() or not value.isprintable() or value != value.strip():
            # Most often the line break at the end of a file.
            raise BadInput(f"{server}: the value for {name} has blanks or unprintable characters")
        if re.search("token|authorization|secret|cookie|key", name, re.IGNORECASE):
            yield from (part for part in {value, *value.split()} if len(part) > 5)


def _tls(
    server: str,
    base_url: str,
    ca_file: str | None,
    ca_pem: str | None,
    certificate: tuple[str, str] | None,
) -> ssl.SSLContext | None:
    parts = urlsplit(base_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise BadInput(f"{server}: {base_url} is no URL such as https://host:8501")
    if parts.scheme == "http":
        return None
    try:
        context = ssl.create_default_context(cafile=ca_file, cadata=ca_pem)
    except (OSError, ValueError) as error:
        why = wire.reason(error) if isinstance(error, OSError) else "not PEM"
        raise BadInput(f"{server}: CA file {ca_file or '(given as text)'}: {why}") from None
    if certificate:
        try:
            context.load_cert_chain(*certificate)
        except OSError as error:
            raise BadInput(
                f"{server}: client certificate {certificate[0]}: {wire.reason(error)}"
            ) from None
    return context
