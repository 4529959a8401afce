"""Where the lab looks for its programs, and what it says when one is missing."""

from pathlib import Path

import pytest

from deployments.lab import binaries, debian


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine without Consul: nothing on the PATH, nothing fetched."""
    (tmp_path / "path").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("MESH_LAB_BIN", str(tmp_path / "bin"))
    monkeypatch.delenv("MESH_CONSUL", raising=False)
    return tmp_path


def test_the_variable_goes_before_the_path_and_the_path_before_what_was_fetched(bare, monkeypatch):
    fetched = program(bare / "bin/consul")
    assert fetched == binaries.consul()

    on_path = program(bare / "path/consul")
    assert on_path == binaries.consul()

    named = program(bare / "elsewhere/consul")
    monkeypatch.setenv("MESH_CONSUL", str(named))
    assert named == binaries.consul()


def test_a_missing_program_is_one_line_that_says_what_to_do(bare):
    with pytest.raises(binaries.MissingBinary) as missing:
        binaries.consul()

    assert str(missing.value) == (
        "consul is not on this machine: run `make setup`, or install it, "
        "or set MESH_CONSUL to its path"
    )


def test_a_variable_that_points_nowhere_is_said_and_not_covered_up(bare, monkeypatch):
    program(bare / "path/consul")
    monkeypatch.setenv("MESH_CONSUL", "/nowhere/consul")

    with pytest.raises(
        binaries.MissingBinary, match="MESH_CONSUL=/nowhere/consul is not a program"
    ):
        binaries.consul()


def test_fetching_without_apt_says_so(bare):
    with pytest.raises(debian.NotFetched, match="apt-get is not on this machine"):
        debian.fetch_consul(bare)

    assert [bare / "path"] == list(bare.iterdir()), "nothing half-fetched stays behind"


@pytest.mark.parametrize("name", binaries.ALL)
def test_every_program_is_on_this_machine(name):
    path = binaries.ALL[name]()

    assert path.is_absolute()
    assert path.is_file()


def test_newer_sshd_finds_its_parts_in_the_unpacked_package(tmp_path):
    program(tmp_path / "usr/lib/openssh/sshd-session")
    program(tmp_path / "usr/lib/openssh/sshd-auth")

    lines = debian._sshd_lines(tmp_path)

    assert '-o "SshdSessionPath=$here/usr/lib/openssh/sshd-session"' in lines
    assert '-o "SshdAuthPath=$here/usr/lib/openssh/sshd-auth"' in lines
