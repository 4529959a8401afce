"""The connection to one AWS account: its instances and its secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, HttpUrl, PrivateAttr, SecretStr

from blocks.engine import Block
from blocks.errors import BadInput
from blocks.kept import Kept

if TYPE_CHECKING:
    from blocks.aws_ec2 import Ec2
    from blocks.aws_secrets import SecretsManager

DEADLINE = 10.0


class AwsAccount(Block):
    """
    Credentials of one AWS account.

    Not `prefect_aws.AwsCredentials`: that block gives a plain boto3 client,
    which repeats a request by itself (a lost answer to a create makes two) and
    bounds each read but not the call, and it brings the clients of ECS, Batch
    and Lambda with it.

    Example:
        ```python
        from blocks import AwsAccount

        account = AwsAccount.load("BLOCK_NAME")
        account.ec2("us-east-1").instances(["vault-1"], mesh="acme")
        ```
    """

    _block_type_name = "AWS Account"
    _block_type_slug = "aws-account"
    _documentation_url = HttpUrl("https://docs.aws.amazon.com/IAM/latest/UserGuide/")

    access_key_id: str | None = Field(default=None, description="Access key ID.")
    secret_access_key: SecretStr | None = Field(default=None, description="Secret access key.")
    session_token: SecretStr | None = Field(
        default=None, description="Session token, with temporary credentials."
    )
    profile: str | None = Field(
        default=None,
        description="Profile of the machine's own AWS configuration, instead of a key.",
    )
    default_chain: bool = Field(
        default=False,
        description="Use what the machine offers, such as an instance role, instead of a key.",
    )
    region: str | None = Field(default=None, description="Region where none is named.")
    endpoint_url: str | None = Field(
        default=None, description="Endpoint of a stand-in of AWS, where none is named."
    )
    timeout_seconds: float = Field(
        default=DEADLINE, gt=0, description="Limit on each whole call, in seconds."
    )

    _kept: Kept = PrivateAttr(default_factory=Kept)

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._kept = Kept()  # noqa: SLF001 - its own class
        return copied

    def ec2(self, region: str | None = None, endpoint_url: str | None = None) -> Ec2:
        """The instances of one region."""
        from blocks.aws_ec2 import Ec2

        made: Ec2 = self._one("ec2", Ec2, region, endpoint_url)
        return made

    def secrets(self, region: str | None = None, endpoint_url: str | None = None) -> SecretsManager:
        """The secrets of one region."""
        from blocks.aws_secrets import SecretsManager

        made: SecretsManager = self._one("secretsmanager", SecretsManager, region, endpoint_url)
        return made

    def _one(self, service: str, kind: Any, region: str | None, endpoint_url: str | None) -> Any:
        # Making a boto3 client takes a quarter of a second; it serves many threads.
        region, endpoint = self._region(region), endpoint_url or self.endpoint_url
        with self._kept.lock:
            key = (service, region, endpoint or "")
            if key not in self._kept:
                self._kept[key] = kind(self._session(), region, endpoint, self.timeout_seconds)
            return self._kept[key]

    def _region(self, region: str | None) -> str:
        if not (region or self.region):
            raise BadInput("aws: no region is named, neither in the topology nor in the connection")
        return region or self.region or ""

    def _session(self) -> Any:
        import boto3
        import botocore.exceptions

        if self.access_key_id and self.secret_access_key:
            token = self.session_token.get_secret_value() if self.session_token else None
            return boto3.Session(
                aws_access_key_id=self.access_key_id,
                aws_secret_access_key=self.secret_access_key.get_secret_value(),
                aws_session_token=token,
            )
        if not self.profile and not self.default_chain:
            raise BadInput("aws: this connection holds neither a key nor the name of a profile")
        try:
            return boto3.Session(profile_name=self.profile)
        except botocore.exceptions.ProfileNotFound:
            raise BadInput(f"aws: this machine has no profile {self.profile}") from None
