"""What the documentation shows exists: commands, options, links, fields, examples."""

from __future__ import annotations

import argparse
import re
import shlex
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from blocks import boot_graph, declared_tokens, topology
from blocks.mesh import read_mesh
from deployments import apply, cli, words
from flows import registry
from flows.cold_boot import rows
from flows.options import parse_all
from tasks.planning.cold_boot import plan_cold_boot
from tasks.planning.overview import overview
from tasks.planning.survey import SnapshotSeen, dark
from tests.docs.pages import PAGES, ROOT, Command, anchors, commands, field_tables, links

EXAMPLES = sorted((ROOT / "deployments" / "meshes").glob("*.yaml"))
# What stands for something in a synopsis, and a value that it could stand for.
PLACEHOLDERS = {
    "RUNBOOK": "cold-boot",
    "NAME": "acme",
    "MESH": "acme",
    "FILE": "acme.yaml",
    "HOST": "vault-1",
    "UNIT": "vault",
    "DC": "eu-west-1",
}
MESH_COMMANDS = list(commands("mesh"))
MAKE_COMMANDS = list(commands("make"))


def _models() -> dict[str, type[BaseModel]]:
    return {
        name: model
        for module in (topology, declared_tokens)
        for name, model in vars(module).items()
        if isinstance(model, type)
        and issubclass(model, BaseModel)
        and model.__module__ == module.__name__
        and not name.startswith("_")
        and name != "CarriedToken"  # made of a declaration, and in no document
    }


def test_the_pages_show_commands_at_all():
    assert len(MESH_COMMANDS) > 30
    assert len(MAKE_COMMANDS) > 5


@pytest.mark.parametrize("command", MESH_COMMANDS, ids=str)
def test_every_mesh_command_shown_is_one(command: Command):
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(command.text)[1:]]
    name, rest = words[0], words[1:]
    parser = cli.Parser(prog=f"mesh {name}", add_help=name != "run")

    match name:
        case "lab":
            from deployments.lab.commands import add_commands

            add_commands(parser)
            parser.parse_args(rest)
        case "deploy":
            apply.parser().parse_args(rest)
        case "run":
            cli._run_command(parser)
            _check_run(parser.parse_args(rest))
        case "runbooks" | "validate" | "journal":
            getattr(cli, f"_{name}_command")(parser)
            if rest or name != "validate":  # `mesh validate` alone is the command's name
                parser.parse_args(rest)
        case _:
            pytest.fail(f"{command}: no such command")


def _check_run(given: argparse.Namespace) -> None:
    if given.runbook is None:
        return
    assert given.runbook in registry.RUNBOOKS
    options = [text for text in given.given if text.lower() != "key=value"]
    parse_all(registry.load(given.runbook).parameters, options)


@pytest.mark.parametrize("command", MAKE_COMMANDS, ids=str)
def test_every_make_target_shown_is_one(command: Command):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

    for word in shlex.split(command.text)[1:]:
        assert "=" in word or word in targets


def test_every_option_named_in_prose_is_a_parameter():
    """Such as `initialise=true` in a sentence, without its command."""
    known = {p.name: p for name in registry.RUNBOOKS for p in registry.load(name).parameters}
    for page in PAGES:
        for name, value in re.findall(r"`([a-z][a-z_]+)=([\w.-]+)`", page.read_text()):
            assert name in known, f"{page.name}: {name}"
            known[name].parse(value)


def test_every_message_the_guide_explains_is_one_the_code_gives():
    """Whoever searches the guide for the words on the screen at 3 a.m. must find them."""
    source = "".join(
        file.read_text() for folder in ("blocks", "flows", "tasks") for file in _modules(folder)
    )
    # A message may be cut into several literals.
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    for page, least in (("cold-boot.md", 12), ("token-rotation.md", 5)):
        told = (ROOT / "docs" / page).read_text().partition("## What to do when")[2]
        messages = re.findall(r"^\| `([^`]+)` \|", told, re.MULTILINE)
        assert len(messages) > least
        for message in messages:
            for part in re.split(r"\.\.\.|\d+|: ", message):
                assert part.strip() in source, message


def _modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_every_relative_link_resolves(page: Path):
    for target in links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("name", _models())
def test_every_topology_field_is_documented_with_its_default(name: str):
    told = field_tables(ROOT / "docs" / "own-mesh.md").get(name, {})

    assert {field: default for field, (default, _) in told.items()} == {
        field: _default(info) for field, info in _models()[name].model_fields.items()
    }


def _default(field: Any) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None or value == []:
        return "none"
    if value == "":
        return "empty"
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, list):
        return " ".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_the_plan_in_the_readme_is_what_the_planner_makes_of_the_example():
    text = (ROOT / "README.md").read_text()
    shown = text.partition("--plan\n")[2].partition("\nNothing was changed")[0].splitlines()

    mesh = read_mesh(ROOT / "deployments" / "meshes" / "acme.yaml")
    at = datetime(2026, 3, 8, 3, 12, 41, tzinfo=UTC)
    taken = SnapshotSeen(at - timedelta(minutes=72), "newest", restorable=True)
    seen = dark(mesh, at)
    seen = replace(
        seen, seconds=2.1, vault=replace(seen.vault, snapshot=taken), consul_snapshot=taken
    )
    planned = list(words.plan_lines(rows(plan_cold_boot(mesh, seen)), width=90))
    made = "\n".join([*overview(mesh, seen), "", *planned])

    assert [line for line in shown if line != "   ..." and line not in made.splitlines()] == [], (
        made
    )


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: str(file.name))
def test_every_example_topology_is_sound(file: Path):
    mesh = read_mesh(file)

    assert mesh.name == file.stem
    assert boot_graph.cycles(mesh) == []


def test_the_example_shows_what_there_is_to_declare():
    """Every kind of store, cloud and part, so that there is something to copy."""
    mesh = read_mesh(ROOT / "deployments" / "meshes" / "acme.yaml")

    assert {h.store for h in mesh.vault.holders} == {
        "file",
        "aws-secrets-manager",
        "block",
        "prompt",
    }
    assert {d.cloud.kind for d in mesh.datacenters} == {"aws", "proxmox"}
    assert {c.issued_by for c in mesh.certificates} == {"operator", "vault"}
    assert {i.action for i in mesh.intentions} == {"allow", "deny"}
    assert all(len(d.consul.servers) == 3 for d in mesh.datacenters)
    assert any(c.needs for c in mesh.components)
    assert (
        {t.local for t in mesh.tokens}
        == {t.drift == "report" for t in mesh.tokens}
        == {True, False}
    )
    assert {bool(f.accessor) for f in mesh.foreign_tokens} == {True, False}
    assert all(host.host_key for _, host in mesh.hosts())


def test_the_architecture_page_and_contributing_agree_on_who_may_import_whom():
    document = (ROOT / "pyproject.toml").read_text()
    page = (ROOT / "docs" / "architecture.md").read_text()

    assert "deployments -> flows -> tasks -> blocks" in document
    assert "deployments -> flows -> tasks -> blocks" in page


def test_every_deployment_has_its_line_in_the_guide():
    guide = (ROOT / "docs" / "own-mesh.md").read_text()
    for entry in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        name = entry["name"].replace("{{ $MESH }}", "acme")
        (line,) = [line for line in guide.splitlines() if f"/{name}`" in line]
        for schedule in entry["schedules"]:
            minute, hour, *_ = schedule["cron"].split()
            assert f"{int(hour):02}:{int(minute):02} UTC" in line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_no_page_names_a_place_of_one_machine(page: Path):
    text = page.read_text()

    assert not re.search(r"/(work|home|root|tmp)/|localhost:\d|\b10\.\d+\.\d+\.\d+", text)
