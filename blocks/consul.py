"""The connection to one Consul datacenter."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from pydantic import Field, HttpUrl, PrivateAttr, SecretStr

from blocks.engine import Block
from blocks.errors import BadAnswer
from blocks.http import Api


class Version(NamedTuple):
    """What an agent is, for the few things that depend on it."""

    number: tuple[int, int, int]
    enterprise: bool


class ConsulDatacenter(Block):
    """
    Addresses and token of one Consul datacenter.

    The token is never a flow parameter or a task result: steps receive this
    block and open the client where they use it.

    Example:
        ```python
        from blocks import ConsulDatacenter

        dc = ConsulDatacenter.load("BLOCK_NAME")
        with dc.client() as consul:
            consul.get("/v1/status/leader").json(str)
        ```
    """

    _block_type_name = "Consul Datacenter"
    _block_type_slug = "consul-datacenter"
    _documentation_url = HttpUrl("https://developer.hashicorp.com/consul/api-docs")

    datacenter: str = Field(default="", description="Consul's own name for the datacenter.")
    address: str = Field(
        default="https://localhost:8501", description="Base URL of the HTTP API to ask first."
    )
    addresses: list[str] = Field(default=[], description="Base URLs of all servers.")
    token: SecretStr | None = Field(
        default=None, description="ACL token; absent only before the ACL bootstrap."
    )
    ca_file: str | None = Field(
        default=None, description="File with the CA that signed the servers' certificates."
    )
    ca_pem: str | None = Field(default=None, description="The same CA as text.")
    timeout_seconds: float = Field(
        default=10.0, gt=0, description="Limit on each whole call, in seconds."
    )

    _versions: dict[str, Version] = PrivateAttr(default_factory=dict)

    @contextmanager
    def client(
        self,
        address: str | None = None,
        token: SecretStr | None = None,
        dc: str | None = None,
        deadline: float | None = None,
    ) -> Iterator[Api]:
        """
        An `Api` that speaks to one agent as this block and raises `MeshError`s.

        Every request carries `?dc=` of this datacenter, or of another; with
        `dc=""` none, and the agent's own is meant. `token` stands in for the
        block's; `deadline` is in seconds for each call.
        """
        token = token or self.token
        with Api(
            f"consul {self.datacenter}" if self.datacenter else "consul",
            address or self.address,
            ca_file=self.ca_file,
            ca_pem=self.ca_pem,
            headers={"X-Consul-Token": token.get_secret_value()} if token else {},
            params={"dc": self.datacenter if dc is None else dc},
            deadline=deadline or self.timeout_seconds,
        ) as api:
            yield api

    def version(self, api: Api) -> Version:
        """Version and edition of the agent that `api` speaks to; asked once an agent."""
        if api.base_url not in self._versions:
            answer = api.get("/v1/agent/self", absent_ok=False)
            config = answer.json(dict).get("Config")
            said = config.get("Version") if isinstance(config, dict) else None
            if not isinstance(said, str) or not (match := re.match(r"(\d+)\.(\d+)\.(\d+)", said)):
                raise BadAnswer(f"{answer.what}: it names no version", where=api.server)
            edition = f"{said} {config.get('VersionMetadata', '')}"
            self._versions[api.base_url] = Version(
                (int(match[1]), int(match[2]), int(match[3])),
                enterprise=bool(re.search(r"\bent\b", edition)),
            )
        return self._versions[api.base_url]
