"""SSH against a real sshd: who is trusted, what arrives, what ends when."""

from __future__ import annotations

import getpass
import hashlib
import http.server
import os
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import SecretStr

from blocks import calls
from blocks.errors import (
    BadAnswer,
    BadInput,
    Forbidden,
    Invalid,
    Refused,
    Transient,
    Unreachable,
    Untrusted,
)
from blocks.ssh import HostAccess
from blocks.ssh_session import Ssh
from tests.blocks import faults
from tests.blocks.conftest import free_address
from tests.blocks.faults import FaultServer
from tests.blocks.hosts import Machine, keygen, runs
from tests.blocks.test_http import within


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    made = Machine(tmp_path_factory.mktemp("host"), free_address())
    made.power_on()
    yield made
    made.power_cut()


@pytest.fixture(scope="module")
def access(machine: Machine) -> HostAccess:
    return HostAccess(private_key=SecretStr(machine.private("user")))


@pytest.fixture
def ssh(machine: Machine, access: HostAccess) -> Iterator[Ssh]:
    if machine.process is None:
        machine.power_on()
    with access.connect(machine.host()) as ssh:
        yield ssh


# Who is trusted


def test_a_host_without_a_pinned_key_is_refused(machine: Machine, access: HostAccess, ledger):
    with (
        pytest.raises(Refused, match="pins no host key") as caught,
        access.connect(machine.host(host_key=None)),
    ):
        pass

    assert "host_key" in caught.value.remedy
    assert ledger.calls == 0


def test_a_host_with_another_key_is_not_trusted(machine: Machine, access: HostAccess):
    """And our key is never offered to it."""
    before = machine.log.count("Accepted publickey")
    host = machine.host(host_key=machine.stranger_key)

    with pytest.raises(Untrusted, match="SHA256:") as caught, access.connect(host):
        pass

    assert caught.value.remedy
    assert machine.log.count("Accepted publickey") == before


def test_a_pinned_key_of_a_kind_the_host_lacks_is_not_trusted(
    machine: Machine, access: HostAccess, tmp_path: Path
):
    host = machine.host(host_key=keygen(tmp_path / "ecdsa", "ecdsa"))

    with pytest.raises(Untrusted), access.connect(host):
        pass


@pytest.mark.parametrize("pin", ["ssh-ed25519", "ssh-ed25519 %%%", "nonsense AAAA", "x"])
def test_a_pin_that_is_no_key_is_bad_input(machine: Machine, access: HostAccess, pin):
    with (
        pytest.raises(BadInput, match="host_key of vault-1"),
        access.connect(machine.host(host_key=pin)),
    ):
        pass


def test_a_key_the_host_does_not_know_is_forbidden(machine: Machine):
    access = HostAccess(private_key=SecretStr(machine.private("stranger")))

    with (
        pytest.raises(Forbidden, match="does not accept our key SHA256:") as caught,
        access.connect(machine.host()),
    ):
        pass

    assert "PRIVATE" not in str(caught.value)
    assert caught.value.remedy


def certificate(machine: Machine, *options: str, principal: str) -> str:
    """A user certificate for the key `stranger`."""
    subprocess.run(
        [
            "ssh-keygen",
            "-q",
            "-s",
            "user_ca",
            "-I",
            "me",
            "-n",
            principal,
            *options,
            "stranger.pub",
        ],
        cwd=machine.folder,
        check=True,
    )
    return (machine.folder / "stranger-cert.pub").read_text()


def test_a_user_certificate_is_enough(machine: Machine):
    signed = certificate(machine, "-V", "+5m", principal=getpass.getuser())
    access = HostAccess(private_key=SecretStr(machine.private("stranger")), certificate=signed)

    with access.connect(machine.host()) as ssh:
        assert ssh.run("echo in", mutates=False, deadline=10).text == "in"


@pytest.mark.parametrize("options", [("-V", "-2h:-1h"), ()])
def test_an_expired_or_foreign_certificate_is_forbidden(machine: Machine, options):
    principal = getpass.getuser() if options else "somebody-else"
    signed = certificate(machine, *options, principal=principal)
    access = HostAccess(private_key=SecretStr(machine.private("stranger")), certificate=signed)

    with pytest.raises(Forbidden), access.connect(machine.host()):
        pass


def test_a_key_file_must_be_private(machine: Machine, tmp_path: Path):
    file = tmp_path / "key"
    file.write_text(machine.private("user"))
    file.chmod(0o644)
    access = HostAccess(key_file=str(file))

    with pytest.raises(BadInput, match="mode 0644"):
        access.key()

    file.chmod(0o400)
    with access.connect(machine.host()) as ssh:
        assert ssh.run("true", mutates=False, deadline=10).status == 0


@pytest.mark.parametrize("kind", ["rsa", "ecdsa"])
def test_other_kinds_of_keys_work(machine: Machine, kind, tmp_path: Path):
    public = keygen(tmp_path / kind, kind)
    with machine.authorized.open("a") as file:
        file.write(public + "\n")
    access = HostAccess(private_key=SecretStr((tmp_path / kind).read_text()))

    with access.connect(machine.host()) as ssh:
        assert ssh.run("true", mutates=False, deadline=10).status == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "neither private_key nor key_file"),
        ({"private_key": SecretStr("no key at all")}, "no private key"),
        ({"key_file": "/nowhere/key"}, "there is no such file"),
    ],
)
def test_a_key_that_is_none_is_bad_input(fields, says):
    with pytest.raises(BadInput, match=says):
        HostAccess(**fields).key()


def test_a_key_with_a_passphrase_is_bad_input(tmp_path: Path):
    file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", file], check=True)

    with pytest.raises(BadInput, match="passphrase"):
        HostAccess(key_file=str(file)).key()


def test_a_certificate_is_never_taken_for_a_path(machine: Machine, tmp_path: Path):
    access = HostAccess(
        private_key=SecretStr(machine.private("user")), certificate=str(machine.folder / "user.pub")
    )

    with pytest.raises(BadInput, match="not an OpenSSH user certificate"):
        access.key()


# Running commands


def connection_of(ssh: Ssh) -> socket.socket:
    assert ssh._transport is not None
    connection = ssh._transport.sock
    assert isinstance(connection, socket.socket)
    return connection


def test_a_command_gives_status_and_both_streams(ssh: Ssh, machine: Machine):
    ran = ssh.run("echo {root}; echo oops >&2; exit 3", mutates=False, deadline=10, check=False)

    assert (ran.status, ran.text, ran.err) == (3, str(machine.root), b"oops\n")
    assert "oops" not in repr(ran)


def test_a_failing_command_is_invalid_with_its_last_words(ssh: Ssh):
    with pytest.raises(Invalid, match=r"status 3: .*unit not found") as caught:
        ssh.run("echo unit not found >&2; exit 3", mutates=True, deadline=10)

    assert caught.value.where == "ssh vault-1"


def test_a_command_killed_by_a_signal_has_failed_not_vanished(ssh: Ssh):
    assert ssh.run("kill -KILL $$", mutates=False, deadline=10, check=False).status == 137


def test_much_output_on_both_streams_does_not_deadlock(ssh: Ssh):
    command = "head -c 6000000 /dev/zero >&2; head -c 5000000 /dev/zero; echo end >&2"

    ran = ssh.run(command, mutates=False, deadline=30)

    assert (len(ran.out), len(ran.err)) == (5_000_000, 6_000_004)


def test_much_input_and_output_at_once_does_not_deadlock(ssh: Ssh):
    data = os.urandom(5_000_000)

    assert ssh.run("cat", mutates=False, deadline=30, stdin=data).out == data


def test_a_command_that_does_not_read_its_input_ends(ssh: Ssh):
    ran = ssh.run("exit 7", mutates=False, deadline=10, check=False, stdin=b"x" * 4_000_000)

    assert ran.status == 7


def test_endless_output_is_cut_off(ssh: Ssh):
    with pytest.raises((BadAnswer, Unreachable)):
        ssh.run("yes", mutates=False, deadline=10)


def test_a_command_that_hangs_ends_at_its_deadline_here_and_there(ssh: Ssh):
    with within(1.5), pytest.raises(Unreachable, match="no end within"):
        ssh.run("sleep 61.125 & sleep 61.125", mutates=True, deadline=1.5)

    ends = time.monotonic() + 5
    while runs("61.125"):
        assert time.monotonic() < ends, "it still runs on the host"
        time.sleep(0.05)
    assert ssh.run("echo fine", mutates=False, deadline=10).text == "fine"


def test_a_command_that_ignores_the_signal_is_killed_too(ssh: Ssh):
    with within(1.5), pytest.raises(Unreachable):
        ssh.run("trap '' TERM; sleep 62.125 & wait; sleep 62.125", mutates=True, deadline=1.5)

    ends = time.monotonic() + 8
    while runs("62.125"):
        assert time.monotonic() < ends, "it still runs on the host"
        time.sleep(0.05)


def test_a_daemon_left_behind_does_not_hold_the_command(ssh: Ssh):
    with within(3):
        ran = ssh.run("echo started; setsid sleep 6.375 &", mutates=True, deadline=8)

    assert ran.text == "started"


def test_sessions_are_queued_not_refused(ssh: Ssh):
    """More threads than sshd allows sessions on one connection."""
    with ThreadPoolExecutor(20) as pool:
        runs_ = pool.map(lambda n: ssh.run(f"echo {n}", mutates=False, deadline=60).text, range(20))

    assert list(runs_) == [str(n) for n in range(20)]


def test_secrets_go_through_stdin_and_the_record_shows_none(ssh: Ssh, ledger: calls.Ledger):
    ssh.run("cat >/dev/null", mutates=True, deadline=10, stdin=b"c4nary", what="hand over")
    ssh.run("true", mutates=False, deadline=10)

    assert [(c.server, c.what) for c in ledger.mutating] == [("ssh vault-1", "hand over")]


# Files


def test_a_file_is_written_whole_with_its_mode_and_folders(ssh: Ssh, machine: Machine):
    data = os.urandom(300_000)
    path = "/etc/deep er/it's.json"

    ssh.write(path, b"old", 0o644)
    ssh.write(path, data, 0o640)

    file = Path(f"{machine.root}{path}")
    assert hashlib.sha256(file.read_bytes()).digest() == hashlib.sha256(data).digest()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert ssh.read(path) == data
    assert [f.name for f in file.parent.iterdir()] == ["it's.json"]


def test_a_file_keeps_its_owner_and_mode_where_no_mode_is_said(ssh: Ssh, machine: Machine):
    """An agent that runs as a user of its own must still be able to read what it starts with."""
    file = machine.root / "etc/gossip.json"
    ssh.write("/etc/gossip.json", b"old", 0o640)
    if os.geteuid() == 0:
        os.chown(file, 4711, 4712)
    owner = file.stat().st_uid, file.stat().st_gid

    ssh.write("/etc/gossip.json", b"new", None)

    assert file.read_bytes() == b"new"
    assert (file.stat().st_uid, file.stat().st_gid) == owner
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    with pytest.raises(Invalid):
        ssh.write("/etc/absent", b"x", None)
    assert ssh.read("/etc/absent") is None


def test_an_empty_file_is_not_an_absent_one(ssh: Ssh):
    ssh.write("/etc/empty", b"", 0o600)

    assert ssh.read("/etc/empty") == b""
    assert ssh.read("/etc/absent") is None
    ssh.remove("/etc/empty")
    ssh.remove("/etc/empty")
    assert ssh.read("/etc/empty") is None


def test_a_file_is_never_visible_by_half(ssh: Ssh, machine: Machine):
    """A reader in a loop sees the old or the new content, never a part."""
    one, two = b"1" * 400_000, b"2" * 400_000
    ssh.write("/etc/swap", one, 0o644)
    file, seen, stop = machine.root / "etc/swap", set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(file.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for data in (two, one, two):
        ssh.write("/etc/swap", data, 0o644)
    stop.set()
    reader.join()

    assert seen <= {one, two}


def test_a_connection_cut_in_the_middle_of_a_write_leaves_the_old_file(ssh: Ssh, machine: Machine):
    """The host then sees an ordinary end of its input."""
    ssh.write("/etc/kept", b"old", 0o644)
    file = machine.root / "etc/kept"

    def cut() -> None:
        temporary = file.with_name("kept.tmp")
        while not (temporary.exists() and temporary.stat().st_size > 0):
            time.sleep(0.001)
        connection_of(ssh).shutdown(socket.SHUT_RDWR)

    cutter = threading.Thread(target=cut)
    cutter.start()
    with pytest.raises(Unreachable):
        ssh.write("/etc/kept", os.urandom(80_000_000), 0o644, deadline=30)
    cutter.join()

    time.sleep(0.5)
    assert file.read_bytes() == b"old"
    ssh.write("/etc/kept", b"new", 0o644)
    assert file.read_bytes() == b"new"
    assert not file.with_name("kept.tmp").exists()


def test_a_file_that_cannot_be_written_is_invalid(ssh: Ssh, machine: Machine):
    ssh.write("/etc/plain", b"x", 0o644)

    with pytest.raises(Invalid, match="write /etc/plain/below"):
        ssh.write("/etc/plain/below", b"x", 0o644)
    with pytest.raises(Invalid, match="write /etc"):
        ssh.write("/etc", b"x", 0o644)


# Through the host


@pytest.fixture(scope="module")
def inner() -> Iterator[tuple[str, int]]:
    """A small HTTP server that only the host is supposed to reach."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = 503 if self.path == "/sick" else 200
            self.send_response(status)
            self.end_headers()
            self.wfile.write(b"ok " + self.path.encode())

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield "127.0.0.1", server.server_address[1]
    server.shutdown()
    server.server_close()


def test_http_from_the_host(ssh: Ssh, inner):
    address, port = inner
    assert ssh.http_get(address, port, "/health") == (200, b"ok /health")
    assert ssh.http_get(address, port, "/sick") == (503, b"ok /sick")


def test_an_api_from_the_host_keeps_its_connection(ssh: Ssh, inner):
    with ssh.api("thing", f"http://{inner[0]}:{inner[1]}") as api:
        assert [api.get(f"/{n}").text for n in range(3)] == ["ok /0", "ok /1", "ok /2"]


def test_http_from_the_host_to_nowhere_is_unreachable(ssh: Ssh):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]

    with within(2), pytest.raises(Unreachable):
        ssh.http_get("127.0.0.1", port, "/health", deadline=2)


def test_http_from_the_host_ends_at_its_deadline(ssh: Ssh):
    with FaultServer(faults.drip_body) as server, within(1), pytest.raises(Unreachable):
        ssh.http_get("127.0.0.1", server.port, "/health", deadline=1)


# When the host or the network fails


def test_nobody_listens(machine: Machine, access: HostAccess):
    with (
        within(1),
        pytest.raises(Unreachable, match="refused"),
        access.connect(machine.host(ssh_port=1)),
    ):
        pass


@pytest.mark.parametrize(
    ("behave", "error"),
    [(faults.hang, Unreachable), (faults.drip_head, Transient), (faults.babble, Transient)],
)
def test_something_else_answers_at_the_port(access: HostAccess, machine: Machine, behave, error):
    with FaultServer(behave, reads=False) as server:
        host = machine.host(address="127.0.0.1", ssh_port=server.port)
        with within(1), pytest.raises(error), access.connect(host, deadline=1):
            pass


def test_a_connection_that_died_is_made_anew_before_a_command(ssh: Ssh):
    connection_of(ssh).close()

    assert ssh.run("echo again", mutates=True, deadline=10).text == "again"


def test_a_host_that_was_powered_off_and_on_is_found_again(machine: Machine, access: HostAccess):
    with access.pool() as pool:
        ssh = pool.on(machine.host())
        assert ssh.run("echo 1", mutates=False, deadline=10).text == "1"
        machine.power_cut()
        with within(2), pytest.raises(Unreachable):
            ssh.run("echo 2", mutates=True, deadline=2)
        machine.power_on()
        assert ssh.run("echo 3", mutates=False, deadline=10).text == "3"
        assert pool.on(machine.host()) is ssh


def test_a_command_is_never_run_twice(machine: Machine, ssh: Ssh):
    """The connection breaks while it runs: it may have been carried out."""
    count = machine.folder / "count"
    command = f"echo x >> {count}; sleep 5"

    def cut() -> None:
        while not count.exists():
            time.sleep(0.005)
        connection_of(ssh).shutdown(socket.SHUT_RDWR)

    cutter = threading.Thread(target=cut)
    cutter.start()
    with pytest.raises(Unreachable):
        ssh.run(command, mutates=True, deadline=10)
    cutter.join()

    assert ssh.run(f"cat {count}", mutates=False, deadline=10).text == "x"


def test_a_frozen_host_costs_no_more_than_the_deadline(machine: Machine, ssh: Ssh):
    """Nothing is closed and nothing answers; afterwards all is well again."""
    machine.freeze()
    try:
        for _ in range(2):
            with within(1.5), pytest.raises(Unreachable):
                ssh.run("true", mutates=False, deadline=1.5)
    finally:
        machine.thaw()

    assert ssh.run("echo thawed", mutates=False, deadline=10).text == "thawed"


def test_a_kept_connection_is_not_taken_for_a_living_host(machine: Machine, access: HostAccess):
    with access.pool() as pool:
        with pool.connect(machine.host()):
            pass
        machine.freeze()
        try:
            with (
                within(1.0),
                pytest.raises(Unreachable),
                pool.connect(machine.host(), deadline=1.0),
            ):
                pass
        finally:
            machine.thaw()
        with pool.connect(machine.host()) as ssh:
            assert ssh.run("echo thawed", mutates=False, deadline=10).text == "thawed"


def test_a_pool_keeps_one_connection_a_host(machine: Machine, access: HostAccess):
    if machine.process is None:
        machine.power_on()
    before = machine.log.count("Accepted publickey")
    with access.pool() as pool, ThreadPoolExecutor(6) as threads:
        work = [
            threads.submit(pool.on(machine.host()).run, "true", mutates=False, deadline=20)
            for _ in range(12)
        ]
        assert {done.result().status for done in work} == {0}
        with pool.connect(machine.host()) as ssh:
            ssh.run("true", mutates=False, deadline=10)

    assert machine.log.count("Accepted publickey") == before + 1


def test_every_connection_and_command_is_on_record(machine: Machine, access: HostAccess, ledger):
    with access.connect(machine.host()) as ssh:
        ssh.run("true", mutates=False, deadline=10)
        ssh.write("/etc/x", b"secret", 0o600)

    assert ledger.calls == 3
    assert [c.what for c in ledger.mutating] == ["write /etc/x"]
