"""
A boto3 client that keeps our promises.

botocore signs, serialises and parses; the sending is ours, so that one
deadline bounds a call, nothing is sent twice, each call is on record, and all
errors are `MeshError`s.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import boto3
import botocore.exceptions
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config
from botocore.parsers import ResponseParserError
from botocore.utils import get_environ_proxies

from blocks.errors import (
    Absent,
    BadAnswer,
    BadInput,
    Forbidden,
    Invalid,
    MeshError,
    Transient,
    Unreachable,
)
from blocks.http import Api
from blocks.http_errors import LONGEST_TEXT, one_line


@dataclass(frozen=True)
class _Doing:
    what: str
    mutates: bool
    ends: float
    secrets: tuple[str, ...]


_doing: ContextVar[_Doing] = ContextVar("doing")


class Client:
    """
    One service of one region, through botocore.

    `client` is the boto3 client; use it only inside `doing`.
    """

    def __init__(
        self,
        session: boto3.Session,
        service: str,
        region: str,
        endpoint_url: str | None,
        limit: float,
    ) -> None:
        self.server = f"{service} {region}"
        self.limit = limit
        try:
            self.client: Any = session.client(  # type: ignore[call-overload]  # the name varies
                service,
                region_name=region,
                endpoint_url=endpoint_url,
                config=Config(
                    # Only the sending is ours; what else botocore fetches (a role's
                    # credentials) keeps to these.
                    connect_timeout=limit,
                    read_timeout=limit,
                    retries={"total_max_attempts": 1, "mode": "standard"},
                ),
            )
        except (ValueError, botocore.exceptions.BotoCoreError) as error:
            raise BadInput(f"{self.server}: {error}") from None
        self._apis: dict[str, Api] = {}
        self.client.meta.events.register("before-send", self._send)

    @contextmanager
    def doing(
        self,
        what: str,
        *,
        mutates: bool,
        deadline: float | None = None,
        secrets: tuple[str, ...] = (),
    ) -> Iterator[Any]:
        """
        The boto3 client for one operation, all of whose calls share one deadline.

        `secrets` is what no error may repeat.

        Raises:
            Unreachable, Transient: no answer in time, throttled, or a server error.
            Forbidden: the credentials are unknown or lack the permission.
            Absent, Invalid: the request is refused.
            BadAnswer: an answer that is not AWS's.
        """
        ends = time.monotonic() + (self.limit if deadline is None else deadline)
        token = _doing.set(_Doing(what, mutates, ends, secrets))
        try:
            yield self.client
        except MeshError:
            raise
        except botocore.exceptions.ClientError as error:
            raise self._error(what, error, secrets) from None
        except (
            botocore.exceptions.NoCredentialsError,
            botocore.exceptions.PartialCredentialsError,
            botocore.exceptions.CredentialRetrievalError,
        ) as error:
            raise Forbidden(
                f"{what}: no credentials: {error}",
                where=self.server,
                remedy="check the credentials of this connection",
            ) from None
        except botocore.exceptions.ParamValidationError as error:
            raise Invalid(
                f"{what}: {one_line(str(error), LONGEST_TEXT)}", where=self.server
            ) from None
        except (
            botocore.exceptions.BotoCoreError,
            ResponseParserError,
            KeyError,
            TypeError,
            ValueError,
        ) as error:
            # A page of a proxy is parsed to whatever it resembles, and fails where it is read.
            raise BadAnswer(
                f"{what}: the answer is not AWS's ({type(error).__name__})", where=self.server
            ) from None
        finally:
            _doing.reset(token)

    def _send(self, request: AWSPreparedRequest, **_event: Any) -> AWSResponse:
        doing = _doing.get()
        scheme, _, rest = request.url.partition("://")
        base = f"{scheme}://{rest.partition('/')[0]}"
        if base not in self._apis:
            self._apis[base] = Api(
                self.server, base, proxy=get_environ_proxies(request.url).get(scheme)
            )
        headers: Any = request.headers  # botocore has bytes where the signature is
        body: Any = request.body
        answer = self._apis[base].exchange(
            request.method or "POST",
            request.url,
            what=doing.what,
            headers={
                name: value.decode() if isinstance(value, bytes) else str(value)
                for name, value in headers.items()
            },
            content=body.encode() if isinstance(body, str) else body,
            mutates=doing.mutates,
            deadline=doing.ends - time.monotonic(),
        )
        return AWSResponse(
            request.url,
            answer.status,
            HTTPHeaders.from_dict(dict(answer.headers)),
            _Raw(answer.body),
        )

    def _error(
        self, what: str, error: botocore.exceptions.ClientError, secrets: tuple[str, ...]
    ) -> MeshError:
        said = error.response.get("Error", {})
        code, text = str(said.get("Code", "")), str(said.get("Message", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        for secret in secrets:
            text = text.replace(secret, "***")
        message = f"{what}: {code}" + (f" {one_line(text, LONGEST_TEXT)}" if text else "")
        if code in _FORBIDDEN or status == 401:
            return Forbidden(
                message, where=self.server, remedy="give this role the permission, or check its key"
            )
        if code in _PASSING or "Throttl" in code:
            return Transient(message, where=self.server)
        if code in {"ResourceNotFoundException", "InvalidInstanceID.NotFound"}:
            return Absent(message, where=self.server)
        if status in {502, 504}:
            return Unreachable(message, where=self.server)
        if status == 429 or status >= 500:
            return Transient(message, where=self.server)
        if status < 400 or not code or code.isdigit():  # a status alone is no answer of AWS
            return BadAnswer(message, where=self.server)
        return Invalid(message, where=self.server)


_FORBIDDEN = {
    "AccessDenied",
    "AccessDeniedException",
    "AuthFailure",
    "DecryptionFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "MissingAuthenticationToken",
    "OptInRequired",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnauthorizedOperation",
    "UnrecognizedClientException",
}
_PASSING = {
    "IncorrectInstanceState",  # it is still stopping
    "InsufficientInstanceCapacity",
    "InternalError",
    "InternalFailure",
    "InternalServiceError",
    "LimitExceededException",
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "TooManyRequestsException",
    "Unavailable",
}


class _Raw(io.BytesIO):
    """A body as botocore wants it."""

    def stream(self) -> Iterator[bytes]:
        yield self.read()


def shaped(answer: Any, key: str, kind: type, what: str, server: str) -> Any:
    """One field of an answer; `BadAnswer` if it is not there or of another type."""
    value = answer.get(key) if isinstance(answer, dict) else None
    if not isinstance(value, kind):
        raise BadAnswer(f"{what}: the answer has no {key}", where=server)
    return value
