"""A secret document kept in AWS Secrets Manager."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from pydantic import Field, HttpUrl

from blocks.aws import AwsAccount
from blocks.engine import Block
from blocks.errors import BadInput, NotConverged
from blocks.keys import parsed, same

if TYPE_CHECKING:
    from blocks.aws_secrets import SecretsManager

_PROBE = "mesh-probe"
_TOKENS = uuid.UUID("7d1c9b8e-0b5f-4f0e-9d55-5a1f2b6c3e47")


class AwsSecretStore(Block):
    """
    A secret of AWS Secrets Manager.

    Example:
        ```python
        from blocks import AwsSecretStore

        store = AwsSecretStore.load("BLOCK_NAME")
        store.probe(write=True)
        ```
    """

    _block_type_name = "Mesh AWS Secret Store"
    _block_type_slug = "mesh-aws-secret-store"
    _documentation_url = HttpUrl("https://docs.aws.amazon.com/secretsmanager/")

    account: AwsAccount | None = Field(default=None, description="Credentials of the account.")
    secret: str = Field(default="", description="Name of the secret.")
    region: str | None = Field(default=None, description="Region, if not the account's.")
    endpoint_url: str | None = Field(default=None, description="Endpoint of a stand-in of AWS.")

    @property
    def where(self) -> str:
        """The place."""
        region = self.region or (self.account and self.account.region) or "?"
        return f"AWS Secrets Manager {region} {self.secret}"

    def probe(self, *, write: bool = False) -> None:
        """
        Read it; with `write`, also add a version that nobody reads and take it back.

        A secret that is not there yet is then made, without a value: by its
        very name, for a policy may allow no other.
        """
        self.read()
        if not write:
            return
        client, label = self._client(), _PROBE
        if client.describe(self.secret) is None:
            client.create(self.secret, None, token=str(uuid.uuid5(_TOKENS, f"new {self.secret}")))
        written = json.dumps({_PROBE: str(uuid.uuid4())})
        version = client.put(self.secret, written, token=str(uuid.uuid4()), stages=(label,))
        try:
            if client.get(self.secret, stage=label) != written:
                raise NotConverged("a probe version is not read back", where=self.where)
        finally:
            client.unstage(self.secret, version, label)

    def read(self) -> dict[str, Any] | None:
        """The document."""
        text = self._client().get(self.secret)
        value = None if text is None else parsed(text.encode(), self.where)
        # AWS makes a secret's first version the current one, whatever its label.
        return None if value is not None and set(value) == {_PROBE} else value

    def write(self, value: dict[str, Any]) -> None:
        """
        Add a version and read it back.

        The version's id follows from the value and the version before it, so
        that a repeat after a lost answer adds none.
        """
        client, text = self._client(), json.dumps(value)
        if self.read() == value:
            return
        found = client.describe(self.secret)
        before = found.version() if found else None
        token = str(uuid.uuid5(_TOKENS, f"{self.secret} {before} {text}"))
        if found is None:
            client.create(self.secret, text, token=token)
        else:
            client.put(self.secret, text, token=token)
        same(self.read(), value, self.where)

    def _client(self) -> SecretsManager:
        if self.account is None or not self.secret:
            raise BadInput("AWS secret store: it names no account or no secret")
        return self.account.secrets(self.region, self.endpoint_url)
