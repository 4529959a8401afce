"""Secrets of AWS Secrets Manager."""

from __future__ import annotations

from dataclasses import dataclass

import boto3

from blocks.aws_client import Client, shaped
from blocks.errors import Absent


@dataclass(frozen=True)
class Description:
    """What is known of a secret without reading it."""

    arn: str
    versions: dict[str, tuple[str, ...]]  # version id -> its stages
    deleted: bool  # scheduled for deletion

    def version(self, stage: str = "AWSCURRENT") -> str | None:
        """The id of the version that has a stage."""
        return next((v for v, stages in self.versions.items() if stage in stages), None)


class SecretsManager:
    """The secrets of one region. No error ever repeats a value."""

    def __init__(
        self, session: boto3.Session, region: str, endpoint_url: str | None, limit: float
    ) -> None:
        self._client = Client(session, "secretsmanager", region, endpoint_url, limit)
        self.server = self._client.server

    def describe(self, name: str) -> Description | None:
        """What is known of a secret, `None` if there is none."""
        what = f"DescribeSecret {name}"
        try:
            with self._client.doing(what, mutates=False) as client:
                answer = client.describe_secret(SecretId=name)
                versions = answer.get("VersionIdsToStages") or {}
                return Description(
                    shaped(answer, "ARN", str, what, self.server),
                    {version: tuple(stages) for version, stages in versions.items()},
                    "DeletedDate" in answer,
                )
        except Absent:
            return None

    def get(self, name: str, *, stage: str = "AWSCURRENT") -> str | None:
        """The value of a secret, `None` if it has none."""
        what = f"GetSecretValue {name}"
        try:
            with self._client.doing(what, mutates=False) as client:
                answer = client.get_secret_value(SecretId=name, VersionStage=stage)
                return str(shaped(answer, "SecretString", str, what, self.server))
        except Absent:
            return None

    def create(self, name: str, value: str | None, *, token: str) -> str:
        """
        Create a secret and give its ARN; without a value it is empty.

        The same `token` (a UUID) with the same value again changes nothing, so
        a lost answer may be repeated.
        """
        what = f"CreateSecret {name}"
        with self._client.doing(what, mutates=True, secrets=_not_none(value)) as client:
            content = {} if value is None else {"SecretString": value}
            answer = client.create_secret(Name=name, ClientRequestToken=token, **content)
            return str(shaped(answer, "ARN", str, what, self.server))

    def put(
        self, name: str, value: str, *, token: str, stages: tuple[str, ...] = ("AWSCURRENT",)
    ) -> str:
        """
        Add a version to a secret, give it these stages, and give its id, which is `token`.

        The same `token` with the same value again changes nothing.
        """
        what = f"PutSecretValue {name}"
        with self._client.doing(what, mutates=True, secrets=(value,)) as client:
            answer = client.put_secret_value(
                SecretId=name,
                SecretString=value,
                ClientRequestToken=token,
                VersionStages=list(stages),
            )
            return str(shaped(answer, "VersionId", str, what, self.server))

    def unstage(self, name: str, version: str, stage: str) -> None:
        """Take a stage from a version; one without any stage is deleted by AWS in time."""
        with self._client.doing(f"UpdateSecretVersionStage {name}", mutates=True) as client:
            client.update_secret_version_stage(
                SecretId=name, VersionStage=stage, RemoveFromVersionId=version
            )


def _not_none(value: str | None) -> tuple[str, ...]:
    return () if value is None else (value,)
