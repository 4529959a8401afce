"""HTTP through a proxy, by httpcore: how one is spoken to for TLS is more than `http_links` knows."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import httpcore

from blocks import wire


class Proxied:
    """An answer whose head has come; its body is read by `chunks`."""

    def __init__(self, response: httpcore.Response) -> None:
        self._response = response
        self.status = response.status
        self.reason = response.extensions.get("reason_phrase", b"").decode("latin-1")
        self.headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in response.headers
        }

    def chunks(self) -> Iterator[bytes]:
        """The body, piece by piece."""
        return self._response.iter_stream()


class ThroughProxy:
    """The connections to one server through a proxy. Safe to use from many threads."""

    def __init__(
        self, proxy: str, backend: wire.Backend, tls: ssl.SSLContext | None, keep_seconds: float
    ) -> None:
        self._pool = httpcore.HTTPProxy(
            proxy, ssl_context=tls, network_backend=backend, keepalive_expiry=keep_seconds
        )

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    @contextmanager
    def stream(
        self, verb: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> Iterator[Proxied]:
        """Send one request; what came back, its body to be read inside. As `http_links.Links`."""
        with self._pool.stream(
            verb,
            url,
            headers=list(headers.items()),
            content=content,
            extensions={"timeout": {"pool": wire.left()}},
        ) as response:
            yield Proxied(response)
