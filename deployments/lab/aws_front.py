"""
What stands before moto: it knows one access key, and Secrets Manager forgets nothing.

moto takes any credential and keeps everything in memory. Here a request with
another access key than the lab's is refused in the words of AWS (signatures
are not checked), and a secret is on disk before its writer hears that it is
kept: a share of Vault's key must outlive the lab's supervisor.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from moto.secretsmanager.models import FakeSecret, secretsmanager_backends

StartResponse = Callable[..., Any]
_CREDENTIAL = re.compile(r"Credential=([^/,]+)/[^/]+/([^/]+)/([^/]+)/")


class RequestHandler(MotoRequestHandler):
    """Answers requests and keeps quiet about it."""

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
        """Keep only what went wrong."""
        if type == "error":
            super().log(type, message, *args)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """One line a request is noise in a lab's log."""


class Front:
    """A WSGI application that passes what it lets through to moto."""

    def __init__(self, access_key: str, secrets_file: Path) -> None:
        self._access_key = access_key
        self._file = secrets_file
        self._lock = threading.Lock()
        self._moto = DomainDispatcherApplication(create_backend_app)
        if secrets_file.exists():
            _restore(json.loads(secrets_file.read_text()))

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        key, region, service = _credential(environ)
        # Keys that start with ASIA are sessions, which moto's STS hands out.
        if key and key != self._access_key and not key.startswith("ASIA"):
            return _refuse(service, start_response)
        answer: Iterable[bytes] = self._moto(environ, start_response)
        if service == "secretsmanager" and _writes(environ):
            answer = list(answer)  # moto has carried it out when its answer is there
            self._keep(region)
        return answer

    def _keep(self, region: str) -> None:
        with self._lock:
            kept = json.loads(self._file.read_text()) if self._file.exists() else {}
            secrets = secretsmanager_backends[DEFAULT_ACCOUNT_ID][region].secrets
            kept[region] = [
                {k: v for k, v in vars(s).items() if k != "replicas"}
                for s in dict.values(secrets)
                if isinstance(s, FakeSecret)
            ]
            new = self._file.with_suffix(".new")
            new.touch(mode=0o600)
            with new.open("w") as file:
                json.dump(kept, file, default=_text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._file)


def _credential(environ: dict[str, Any]) -> tuple[str, str, str]:
    found = _CREDENTIAL.search(environ.get("HTTP_AUTHORIZATION", ""))
    return (found[1], found[2], found[3]) if found else ("", "", "")


def _writes(environ: dict[str, Any]) -> bool:
    action = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
    return not action.startswith(("Get", "BatchGet", "Describe", "List", "Validate"))


def _restore(kept: dict[str, list[dict[str, Any]]]) -> None:
    for region, secrets in kept.items():
        backend = secretsmanager_backends[DEFAULT_ACCOUNT_ID][region]
        for values in secrets:
            secret: FakeSecret = object.__new__(FakeSecret)
            vars(secret).update(values, replicas=[])
            backend.secrets[secret.name] = secret


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _refuse(service: str, start_response: StartResponse) -> list[bytes]:
    if service == "ec2":
        status, kind = "401 Unauthorized", "text/xml"
        body = (
            "<Response><Errors><Error><Code>AuthFailure</Code><Message>AWS was not able to "
            "validate the provided access credentials</Message></Error></Errors>"
            "<RequestID>lab</RequestID></Response>"
        )
    elif service in {"sts", "iam", "autoscaling", "elasticloadbalancing"}:
        status, kind = "403 Forbidden", "text/xml"
        body = (
            "<ErrorResponse><Error><Type>Sender</Type><Code>InvalidClientTokenId</Code><Message>"
            "The security token included in the request is invalid.</Message></Error>"
            "<RequestId>lab</RequestId></ErrorResponse>"
        )
    else:
        status, kind = "400 Bad Request", "application/x-amz-json-1.1"
        body = json.dumps(
            {
                "__type": "UnrecognizedClientException",
                "message": "The security token included in the request is invalid.",
            }
        )
    start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
    return [body.encode()]
