"""Exit statuses, lines and the last line of stdout: what scripts rely on."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Command
from tests.runbook.sample import CANARY


@pytest.mark.parametrize(
    ("behaviour", "status", "last"),
    [
        ("change", 0, "acme is done and verified in"),
        ("nothing", 0, "acme is done and verified, nothing needed changing"),
        ("refuse", 3, "refused: 2 of the 3 shares needed can be reached   (nothing was changed)"),
        ("fail", 1, "failed at step 2 of 2: us-consul-3: us-consul-3 did not join"),
        ("check", 1, "failed at verify: 1 of 1 checks failed"),
    ],
)
def test_each_end_has_its_status_and_its_line(
    mesh: Command, behaviour: str, status: int, last: str
):
    ran = mesh("run", "sample", "--mesh", "acme.yaml", "--set", f"behaviour={behaviour}")

    assert ran.status == status
    assert any(line.startswith(last) for line in ran.out.splitlines())
    assert ran.err == ""
    assert len(mesh.journal.read_text().splitlines()) == 1


def test_a_plan_reads_like_an_intention_and_changes_nothing(mesh: Command):
    ran = mesh("run", "sample", "--mesh", "acme.yaml", "--plan")

    assert ran.status == 0
    lines = [line.rstrip() for line in ran.out.splitlines()]
    assert "acme: 2 hosts" in lines
    assert "  1 touch  a-1 a-2: they are off           -" in lines
    assert "Nothing was changed. Run without --plan to apply." in lines


def test_a_failure_says_what_stands_whether_to_rerun_and_what_to_do(mesh: Command):
    out = mesh("run", "sample", "--mesh", "acme.yaml", "--set", "behaviour=fail").out

    assert "  stands   a-1 a-2 up\n" in out
    assert "  safe     yes: run it again, it carries on from what it finds\n" in out
    assert "  do       see its log\n" in out


@pytest.mark.parametrize("behaviour", ["change", "refuse", "fail", "bad-input"])
def test_with_json_the_last_line_of_stdout_is_the_report(mesh: Command, behaviour: str):
    ran = mesh("run", "sample", "--mesh", "acme.yaml", "--json", "--set", f"behaviour={behaviour}")

    assert len(ran.out.splitlines()) == 1
    report = json.loads(ran.out)
    assert report == json.loads(mesh.journal.read_text())
    assert report["problem"] is None or report["problem"]["error"]
    assert ran.err


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["rn"], ["mesh: rn: unknown command; did you mean run?"]),
        (["run"], ["mesh: which runbook? See `mesh runbooks`"]),
        (["run", "cold-bot"], ["mesh: cold-bot: unknown runbook; did you mean cold-boot?"]),
        (["run", "sample", "--mesh", "a/b"], ["mesh: a/b: there is no such topology file"]),
        (["run", "sample", "--plam"], ["mesh: --plam: unknown option; did you mean --plan?"]),
        (["run", "sample", "x"], ["mesh: x: one argument too many; see mesh run --help"]),
        (
            ["run", "sample", "--engine", "warp"],
            ["mesh: --engine warp: is none of auto, none, prefect"],
        ),
        (
            ["run", "sample", "--engine", "prefect"],
            ["mesh: --engine prefect: PREFECT_API_URL is not set"],
        ),
        (
            ["run", "sample", "--set", "loudd=1", "--set", "seconds=soon", "--set", "loud"],
            [
                "mesh: loudd: unknown parameter; did you mean loud?",
                "mesh: seconds: 'soon': input should be a valid number, unable to parse string as a number",
                "mesh: --set loud: write it as loud=value",
            ],
        ),
        (
            ["run", "sample", "--set", "loud=yes", "--set", "loud=no"],
            ["mesh: loud: given twice"],
        ),
        (
            ["journal", "--last", "x"],
            ["mesh: argument --last: invalid int value: 'x'; see mesh journal --help"],
        ),
        (["lab", "statu"], ["mesh: statu: unknown command; did you mean status?"]),
        (["validate", "a/b"], ["mesh: a/b: there is no such topology file"]),
    ],
)  # fmt: skip
def test_bad_input_is_a_line_per_problem_and_nothing_is_touched(
    mesh: Command, arguments: list[str], lines: list[str]
):
    ran = mesh(*arguments)

    assert (ran.status, ran.out) == (2, "")
    assert ran.err.splitlines() == lines
    assert not (mesh.directory / "state").exists()


def test_a_bad_value_names_those_there_are(mesh: Command):
    ran = mesh("run", "sample", "--set", "behaviour=refus")

    assert ran.status == 2
    assert len(ran.err.splitlines()) == 1
    assert "behaviour: 'refus' is none of change, nothing, " in ran.err
    assert ran.err.endswith("did you mean refuse or refuse-many?\n")


def test_bad_input_found_by_the_run_is_a_line_per_problem_too(mesh: Command):
    ran = mesh("run", "sample", "--mesh", "acme.yaml", "--set", "behaviour=bad-input")

    assert ran.status == 2
    assert ran.err.splitlines() == ["mesh: one thing is wrong", "mesh: another thing is wrong"]


def test_bad_input_gives_a_report_as_well_where_one_was_asked_for(mesh: Command):
    ran = mesh("run", "cold-bot", "--json")

    assert ran.status == 2
    report = json.loads(ran.out)
    assert report["problem"]["details"] == ["cold-bot: unknown runbook; did you mean cold-boot?"]


@pytest.mark.parametrize("behaviour", ["leak", "leak-text", "defect", "defect-early"])
def test_no_secret_of_a_foreign_error_is_told(mesh: Command, behaviour: str):
    ran = mesh("run", "sample", "--mesh", "acme.yaml", "--set", f"behaviour={behaviour}")

    assert ran.status == 1
    assert "Traceback" not in ran.err
    for text in (ran.out, ran.err, mesh.journal.read_text()):
        assert CANARY not in text


def test_parameters_take_lists_numbers_and_yes_or_no(mesh: Command):
    given = ["hosts=x-1,x-2,x-3", "seconds=0.5", "loud=true"]
    ran = mesh(
        "run", "sample", "--mesh", "acme.yaml", "--json", *(a for g in given for a in ("--set", g))
    )

    options = json.loads(ran.out)["options"]
    assert options["hosts"] == ["x-1", "x-2", "x-3"]
    assert (options["seconds"], options["loud"]) == (0.5, True)


@pytest.mark.parametrize(
    ("arguments", "there"),
    [
        ([], "run a runbook on a mesh"),
        (["--help"], "exit status: 0 done and verified"),
        (["run", "--help"], "--set KEY=VALUE"),
        (["run", "sample", "--help"], "      What to do, and how to end.\n"),
        (["run", "sample", "--help"], "  seconds  number  (default 30)\n"),
        (["journal", "--help"], "--last N"),
        (["--version"], "mesh-runbooks "),
    ],
)
def test_help_is_there(mesh: Command, arguments: list[str], there: str):
    ran = mesh(*arguments)

    assert (ran.status, ran.err) == (0, "")
    assert there in ran.out


def test_the_runbooks_are_listed_with_a_line_and_their_parameters(mesh: Command):
    ran, data = mesh("runbooks"), json.loads(mesh("runbooks", "--json").out)

    assert ran.status == 0
    assert "sample\n    Do as a test says.\n    behaviour  change | nothing" in ran.out
    names = [book["name"] for book in data]
    assert names == [
        "cold-boot",
        "boot-readiness",
        "vault-maintenance",
        "snapshot",
        "token-rotation",
        "token-audit",
        "sample",
    ]
    assert all(p["description"] for book in data for p in book["parameters"])


def test_the_journal_shows_the_last_runs(mesh: Command):
    for behaviour in ("change", "refuse"):
        mesh("run", "sample", "--mesh", "acme.yaml", "--set", f"behaviour={behaviour}")

    lines = mesh("journal").out.splitlines()
    assert [line.split()[2] for line in lines] == ["verified", "refused"]
    assert "2 of the 3 shares needed" in lines[1]
    assert len(mesh("journal", "--last", "1").out.splitlines()) == 1
    told = [json.loads(line) for line in mesh("journal", "--json").out.splitlines()]
    assert told == [json.loads(line) for line in mesh.journal.read_text().splitlines()]


def test_a_mesh_may_name_a_journal_of_its_own(mesh: Command):
    topology = mesh.directory / "acme.yaml"
    topology.write_text(topology.read_text() + "journal: own/journal.jsonl\n")

    mesh("run", "sample", "--mesh", "acme.yaml")

    assert (mesh.directory / "own" / "journal.jsonl").exists()
    assert not mesh.journal.exists()
    assert "verified" in mesh("journal", "--mesh", "./acme.yaml").out


def test_validate_says_what_is_there(mesh: Command):
    ran = mesh("validate", "acme.yaml")

    assert ran.status == 0
    assert ran.out.startswith("acme: 1 datacenters, 1 hosts, 0 services; nothing wrong")


def test_validate_names_each_problem_of_a_topology(mesh: Command):
    topology = mesh.directory / "acme.yaml"
    topology.write_text(topology.read_text().replace("primary: us-east-1", "primary: us-west-1"))

    ran = mesh("validate", "acme.yaml")

    assert ran.status == 2
    assert ran.err == "mesh: acme.yaml: primary: us-west-1 is none of the datacenters (us-east-1)\n"
