"""What an operator got wrong: a line a problem, exit status 2, and nothing touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.lab import Lab, Ran
from tests.integration.outside import Outside

pytestmark = pytest.mark.integration

Document = dict[str, Any]


class Operator:
    """Somebody at a dark lab, with files of their own."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.mesh, self.credentials = lab, folder / "m.yaml", folder / "c.yaml"
        self.change(lambda mesh, credentials: None)

    def change(self, spoil: Callable[[Document, Document], object]) -> None:
        """Write the lab's own files with something wrong in them."""
        mesh, credentials = (
            yaml.safe_load((self.lab.directory / name).read_text())
            for name in ("mesh.yaml", "credentials.yaml")
        )
        spoil(mesh, credentials)
        self.mesh.write_text(yaml.safe_dump(mesh))
        self.credentials.touch(0o600)
        self.credentials.write_text(yaml.safe_dump(credentials))

    def boot(self, *words: str, mesh: str = "") -> Ran:
        """`mesh run cold-boot` with those files."""
        return self.lab.mesh(
            *("run", "cold-boot", "--mesh", mesh or str(self.mesh), "--engine", "none", *words),
            MESH_CREDENTIALS=str(self.credentials),
        )


@pytest.fixture
def operator(dark: Lab, tmp_path: Path) -> Iterator[Operator]:
    """Whatever they do, no host of the lab is turned on by it, and no share is moved."""
    held = [Outside(dark).held(h) for h in ("ops-a", "ops-b", "ops-c")]
    yield Operator(dark, tmp_path)
    assert not any(Outside(dark).pids().values())
    assert [Outside(dark).held(h) for h in ("ops-a", "ops-b", "ops-c")] == held


def test_a_mesh_that_is_not_there(operator: Operator):
    ran = operator.boot(mesh="nowhere")

    assert (ran.status, ran.out) == (2, "")
    (line,) = ran.err.splitlines()
    assert line.startswith("mesh: nowhere: no such mesh (looked in ")


def shapeless(mesh: Document, _: Document) -> None:
    mesh["colour"] = "red"
    mesh["vault"]["key_threshold"] = "three"
    del mesh["datacenters"][0]["hosts"][0]["address"]


def senseless(mesh: Document, _: Document) -> None:
    mesh["primary"] = "us-west-9"
    mesh["datacenters"][0]["hosts"][1]["name"] = "us-app-1"
    mesh["vault"]["holders"][0]["shares"] = 4


@pytest.mark.parametrize(
    ("spoil", "wanted"),
    [
        (shapeless, ("colour", "key_threshold", "address")),
        (senseless, ("us-west-9", "us-app-1 is there 2 times", "ops-a")),
    ],
)
def test_a_malformed_topology_is_a_line_per_problem(
    operator: Operator, spoil: Callable[[Document, Document], object], wanted: tuple[str, ...]
):
    operator.change(spoil)
    ran = operator.boot()

    assert (ran.status, ran.out) == (2, "")
    lines = ran.err.splitlines()
    assert all(line.startswith("mesh: m.yaml: ") for line in lines), lines
    for word in wanted:
        assert [line for line in lines if word in line], (word, lines)


def test_an_unknown_parameter_and_a_wrong_value(operator: Operator):
    ran = operator.boot("--set", "initialize=true", "--set", "fallback=brk")

    assert (ran.status, ran.out) == (2, "")
    assert ran.err.splitlines() == [
        "mesh: initialize: unknown parameter; did you mean initialise?",
        "mesh: fallback: 'brk' is none of wait, break-glass, restore-vault",
    ]


def test_credentials_that_are_not_there_are_named_with_where_they_may_be(operator: Operator):
    operator.change(lambda _, credentials: credentials.pop("aws"))
    ran = operator.boot()

    assert (ran.status, ran.out) == (2, "")
    (line,) = ran.err.splitlines()
    assert line.startswith("mesh: aws: no credentials: neither (MESH_AWS_ACCESS_KEY_ID")
    assert str(operator.credentials) in line
    assert "Prefect block lab-aws" in line


def test_a_credentials_file_that_others_may_read_is_refused(operator: Operator):
    operator.credentials.chmod(0o644)
    ran = operator.boot()

    assert (ran.status, ran.out) == (2, "")
    assert ran.err == f"mesh: {operator.credentials}: mode 0644, must be 0400 or 0600\n"


def test_wrong_credentials_of_the_clouds(operator: Operator):
    def spoil(_: Document, credentials: Document) -> None:
        credentials["aws"] |= {"access_key_id": "AKIA0000000000000000"}
        credentials["proxmox"] |= {"token_value": "00000000-0000-0000-0000-000000000000"}

    operator.change(spoil)
    ran = operator.boot()

    assert ran.status == 2, ran
    told = ran.err
    assert told.count("may be off, and its cloud does not answer: ") == 2
    assert "does not answer: ec2 us-east-1: DescribeInstances" in told
    for cloud in ("aws", "proxmox"):
        assert told.count(f"; do: correct the {cloud} credentials or make its API reachable") == 1


def test_clouds_that_cannot_be_reached(operator: Operator):
    def spoil(mesh: Document, _: Document) -> None:
        primary, secondary = (dc["cloud"] for dc in mesh["datacenters"])
        primary["endpoint_url"] = primary["endpoint_url"].replace(":5000", ":5999")
        secondary["address"] = secondary["address"].replace(":8006", ":8999")

    operator.change(spoil)
    ran = operator.boot()

    assert ran.status == 2, ran
    told = ran.err
    assert told.count("its cloud does not answer") == 2
    assert told.count("connection refused") >= 2
