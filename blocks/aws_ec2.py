"""EC2 instances, found by their names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import boto3

from blocks.aws_client import Client, shaped
from blocks.errors import BadAnswer, Invalid

GONE = ("shutting-down", "terminated")
MOST_NAMES = 200  # values that one filter of DescribeInstances takes

State = Literal["pending", "running", "stopping", "stopped", "shutting-down", "terminated"]


@dataclass(frozen=True)
class Instance:
    """One machine as EC2 sees it."""

    id: str
    state: State
    address: str  # private; empty while it has none


class Ec2:
    """The instances of one region."""

    def __init__(
        self, session: boto3.Session, region: str, endpoint_url: str | None, limit: float
    ) -> None:
        self._client = Client(session, "ec2", region, endpoint_url, limit)

    def instances(
        self, names: Iterable[str], mesh: str, deadline: float | None = None
    ) -> dict[str, Instance]:
        """
        The instances with these `Name` tags and the tag `mesh`, by name.

        Terminated ones are none. A name that no instance has is not in the answer.

        Raises:
            Invalid: two instances have the same name.
        """
        wanted = list(dict.fromkeys(names))
        found: dict[str, Instance] = {}
        what = "DescribeInstances"
        with self._client.doing(what, mutates=False, deadline=deadline) as ec2:
            for start in range(0, len(wanted), MOST_NAMES):
                pages = ec2.get_paginator("describe_instances").paginate(
                    Filters=[
                        {"Name": "tag:Name", "Values": wanted[start : start + MOST_NAMES]},
                        {"Name": "tag:mesh", "Values": [mesh]},
                    ]
                )
                for page in pages:
                    for group in shaped(page, "Reservations", list, what, self._client.server):
                        for entry in group["Instances"]:
                            self._add(found, entry)
        return found

    def _add(self, found: dict[str, Instance], entry: dict[str, object]) -> None:
        state = entry["State"]["Name"]  # type: ignore[index]  # `doing` says what a KeyError means
        if state in GONE:
            return
        tags = {tag["Key"]: tag["Value"] for tag in entry["Tags"]}  # type: ignore[attr-defined]
        one = Instance(str(entry["InstanceId"]), state, str(entry.get("PrivateIpAddress") or ""))
        if (other := found.get(tags["Name"])) is not None:
            raise Invalid(
                f"two instances are called {tags['Name']}: {other.id} and {one.id}",
                where=self._client.server,
                remedy="take the tag Name or mesh from the one that is not this host",
            )
        found[tags["Name"]] = one

    def start(self, ids: Iterable[str], deadline: float | None = None) -> dict[str, State]:
        """Start instances; gives each one's state now. One that runs is left as it is."""
        return self._change("StartInstances", "StartingInstances", ids, deadline)

    def stop(self, ids: Iterable[str], deadline: float | None = None) -> dict[str, State]:
        """Stop instances; gives each one's state now. One that is stopped is left as it is."""
        return self._change("StopInstances", "StoppingInstances", ids, deadline)

    def _change(
        self, operation: str, key: str, ids: Iterable[str], deadline: float | None
    ) -> dict[str, State]:
        wanted = list(ids)
        if not wanted:
            return {}
        what = f"{operation} {' '.join(wanted)}"
        with self._client.doing(what, mutates=True, deadline=deadline) as ec2:
            call = ec2.start_instances if operation == "StartInstances" else ec2.stop_instances
            answer = call(InstanceIds=wanted)
            states = {
                entry["InstanceId"]: entry["CurrentState"]["Name"]
                for entry in shaped(answer, key, list, what, self._client.server)
            }
        if set(states) != set(wanted):
            raise BadAnswer(
                f"{what}: the answer is about other instances", where=self._client.server
            )
        return states
