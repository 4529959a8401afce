"""An hvac client whose requests go through our `Api`."""

from __future__ import annotations

import io
import re
from typing import Any

import hvac
import requests
from hvac.adapters import Adapter
from pydantic import SecretStr

from blocks.http import Answer, Api

# Asked with PUT or POST, or under another verb than GET, and yet change nothing.
_READS = re.compile(
    r"auth/token/lookup(-self|-accessor)?$|sys/capabilities|sys/wrapping/lookup$|sys/leases/lookup$"
    r"|/(encrypt|decrypt|sign|verify|hmac|hash)(/|$)|sys/internal/"
)
# Answers that are no JSON: certificates, revocation lists, snapshots, metrics.
_RAW = (
    "application/gzip",
    "application/octet-stream",
    "application/pem",
    "application/pkix",
    "application/x-pem",
    "text/plain; version",
)


def client_through(api: Api, token: SecretStr) -> hvac.Client:
    """
    An `hvac.Client` that sends all through `api` and its headers.

    Answers of 200 are the parsed JSON, others a `requests.Response`.
    """
    return hvac.Client(
        url=api.base_url,
        # Given always, else hvac would look into the environment and ~/.vault-token.
        token=token.get_secret_value(),
        adapter=lambda **given: _Through(api, **given),
    )


class _Through(Adapter):  # type: ignore[misc]  # hvac carries no types
    def __init__(self, api: Api, **given: Any) -> None:
        super().__init__(**given)
        self._api = api

    def get_login_token(self, response: Any) -> str:
        return str(response["auth"]["client_token"])

    def request(
        self,
        method: str,
        url: str,
        headers: dict[str, str] | None = None,
        raise_exception: bool = True,
        *,
        json: Any = None,
        params: dict[str, Any] | None = None,
        data: bytes | None = None,
        wrap_ttl: Any = None,
        **_ignored: Any,  # `timeout` and `stream`: both are the Api's business
    ) -> Any:
        verb = method.upper()
        path = "/" + re.sub("/+", "/", url).strip("/")
        sent = dict(headers or {})
        if self.token:
            sent["X-Vault-Token"] = self.token
        if wrap_ttl:
            sent["X-Vault-Wrap-TTL"] = str(wrap_ttl)
        answer = self._api.request(
            verb,
            path,
            json=json,
            content=data,
            params={key: str(value) for key, value in (params or {}).items() if value is not None},
            headers=sent,
            mutates=verb not in {"GET", "LIST", "HEAD"} and not _READS.search(path),
            absent_ok=False,
            answers=() if raise_exception else tuple(range(300, 600)),
        )
        raw = answer.headers.get("content-type", "").startswith(_RAW)
        if answer.status == 200 and verb != "HEAD" and not raw:
            return answer.json(dict)
        return _response(answer)


def _response(answer: Answer) -> requests.Response:
    response = requests.Response()
    response.status_code = answer.status
    response.reason = answer.reason
    response.headers.update(answer.headers)
    response.raw = io.BytesIO(answer.body)
    response._content = answer.body  # noqa: SLF001  # there is no public way to make one
    return response
