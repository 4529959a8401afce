"""EC2 and Secrets Manager against moto, and what their errors become."""

from __future__ import annotations

import socket
import uuid
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from pydantic import SecretStr

from blocks import calls
from blocks.aws import AwsAccount
from blocks.aws_secrets import SecretsManager
from blocks.errors import (
    Absent,
    BadAnswer,
    BadInput,
    Forbidden,
    Invalid,
    MeshError,
    Transient,
    Unreachable,
)
from tests.blocks import faults
from tests.blocks.faults import FaultServer
from tests.blocks.test_http import within

CANARY = "c4nary-unseal-share-0123456789"


def run_instance(moto: str, name: str, mesh: str) -> str:
    client: Any = boto3.client(
        "ec2",
        region_name="us-east-1",
        endpoint_url=moto,
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )
    tags = [{"Key": "Name", "Value": name}, {"Key": "mesh", "Value": mesh}]
    made = client.run_instances(
        ImageId="ami-12345678",
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}],
    )
    return str(made["Instances"][0]["InstanceId"])


class Broken(FaultServer):
    """A server whose behaviour each test chooses, and an account that speaks to it."""

    def __init__(self) -> None:
        super().__init__(self._as_chosen)
        self.chosen: faults.Behaviour = faults.close
        self.account = AwsAccount(
            access_key_id="AKIA",
            secret_access_key=SecretStr("c4nary-aws-secret-key-0123456789"),
            region="us-east-1",
            endpoint_url=self.url,
            timeout_seconds=0.8,
        )

    def _as_chosen(self, connection: socket.socket, request: bytes) -> None:
        self.chosen(connection, request)

    def now(self, behave: faults.Behaviour) -> AwsAccount:
        self.chosen = behave
        self.requests.clear()
        return self.account


@pytest.fixture(scope="module")
def broken() -> Iterator[Broken]:
    with Broken() as server:
        yield server


# Instances


def test_instances_are_found_by_name_and_mesh(aws: AwsAccount, moto: str):
    here = run_instance(moto, "vault-1", "one")
    run_instance(moto, "vault-1", "another-mesh")
    run_instance(moto, "stranger", "one")

    found = aws.ec2().instances(["vault-1", "vault-2"], "one")

    assert list(found) == ["vault-1"]
    assert (found["vault-1"].id, found["vault-1"].state) == (here, "running")
    assert found["vault-1"].address


def test_many_names_are_asked_in_parts(aws: AwsAccount, moto: str, ledger: calls.Ledger):
    run_instance(moto, "host-249", "many")

    found = aws.ec2().instances([f"host-{n}" for n in range(250)], "many")

    assert list(found) == ["host-249"]
    assert ledger.calls == 2


def test_stop_and_start_say_the_state(aws: AwsAccount, moto: str, ledger: calls.Ledger):
    one = run_instance(moto, "vault-1", "power")
    ec2 = aws.ec2()

    assert set(ec2.stop([one])) == {one}
    assert ec2.instances(["vault-1"], "power")["vault-1"].state == "stopped"
    assert set(ec2.start([one])) == {one}
    assert set(ec2.start([one])) == {one}
    assert ec2.instances(["vault-1"], "power")["vault-1"].state == "running"
    assert [c.what for c in ledger.mutating] == [
        f"StopInstances {one}",
        f"StartInstances {one}",
        f"StartInstances {one}",
    ]
    assert {c.server for c in ledger.mutating} == {"ec2 us-east-1"}


def test_nothing_to_start_is_no_call(aws: AwsAccount, ledger: calls.Ledger):
    assert aws.ec2().start([]) == {}
    assert ledger.calls == 0


def test_two_instances_of_one_name_are_invalid_unless_one_is_gone(aws: AwsAccount, moto: str):
    first, second = run_instance(moto, "vault-1", "twice"), run_instance(moto, "vault-1", "twice")
    with pytest.raises(Invalid, match="two instances are called vault-1") as caught:
        aws.ec2().instances(["vault-1"], "twice")
    assert first in str(caught.value)
    assert second in str(caught.value)

    with aws.ec2()._client.doing("TerminateInstances", mutates=True) as client:
        client.terminate_instances(InstanceIds=[first])

    assert aws.ec2().instances(["vault-1"], "twice")["vault-1"].id == second


def test_an_instance_that_is_not_there_is_absent(aws: AwsAccount):
    with pytest.raises(Absent):
        aws.ec2().start(["i-0123456789abcdef0"])


def xml_error(status: int, code: str, text: str = "said so") -> faults.Behaviour:
    body = f"<Response><Errors><Error><Code>{code}</Code><Message>{text}</Message></Error></Errors>"
    return faults.answer(status, f"{body}<RequestID>1</RequestID></Response>".encode())


@pytest.mark.parametrize(
    ("behave", "error"),
    [
        (xml_error(403, "UnauthorizedOperation"), Forbidden),
        (xml_error(401, "AuthFailure"), Forbidden),
        (xml_error(403, "InvalidClientTokenId"), Forbidden),
        (xml_error(400, "RequestExpired"), Forbidden),
        (xml_error(503, "RequestLimitExceeded"), Transient),
        (xml_error(400, "Throttling"), Transient),
        (xml_error(500, "InternalError"), Transient),
        (xml_error(400, "IncorrectInstanceState"), Transient),
        (xml_error(400, "InsufficientInstanceCapacity"), Transient),
        (xml_error(400, "InvalidInstanceID.NotFound"), Absent),
        (xml_error(400, "InvalidParameterValue"), Invalid),
        (faults.answer(502, b"<html>bad gateway</html>"), Unreachable),
        (faults.answer(200, b"<html>Sign in</html>"), BadAnswer),
        (faults.answer(200, b"garbage"), BadAnswer),
        (faults.answer(200, b""), BadAnswer),
        (faults.hang, Unreachable),
        (faults.drip_body, Unreachable),
        (faults.close, Unreachable),
        (faults.truncate, BadAnswer),
    ],
)
def test_every_fault_is_a_named_error_and_nothing_is_sent_twice(broken: Broken, behave, error):
    ec2 = broken.now(behave).ec2()
    with within(0.8), pytest.raises(MeshError) as caught:
        ec2.start(["i-1"])

    assert type(caught.value) is error
    assert caught.value.where == "ec2 us-east-1"
    assert "StartInstances i-1" in caught.value.message
    assert len(broken.requests) == 1


def test_an_answer_about_other_instances_is_bad(broken: Broken):
    body = (
        b'<StartInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><instancesSet>'
        b"<item><instanceId>i-2</instanceId><currentState><code>0</code><name>pending</name>"
        b"</currentState></item></instancesSet></StartInstancesResponse>"
    )
    with pytest.raises(BadAnswer):
        broken.now(faults.answer(200, body)).ec2().start(["i-1"])


def test_a_page_that_is_no_list_of_instances_is_not_an_empty_list(broken: Broken):
    """boto3 makes an empty answer of it; a runbook would think all machines are gone."""
    page = faults.answer(200, b"<html><body>maintenance</body></html>")
    with pytest.raises(BadAnswer):
        broken.now(page).ec2().instances(["vault-1"], "acme")


def test_many_pages_share_one_deadline(broken: Broken):
    def endless(connection: Any, request: bytes) -> None:
        body = (
            b'<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/">'
            b"<reservationSet/><nextToken>%s</nextToken></DescribeInstancesResponse>"
        ) % uuid.uuid4().hex.encode()
        faults.answer(200, body)(connection, request)

    ec2 = broken.now(endless).ec2()
    with within(0.8), pytest.raises(Unreachable):
        ec2.instances(["vault-1"], "acme")


# Secrets


@pytest.fixture
def secrets(aws: AwsAccount) -> SecretsManager:
    return aws.secrets()


def new_name() -> str:
    return f"mesh/test/{uuid.uuid4()}"


def test_a_secret_that_is_not_there_or_empty(secrets: SecretsManager):
    name = new_name()

    assert secrets.get(name) is None
    assert secrets.describe(name) is None
    secrets.create(name, None, token=str(uuid.uuid4()))
    assert secrets.get(name) is None
    described = secrets.describe(name)
    assert described is not None
    assert described.version() is None


def test_versions_by_stage(secrets: SecretsManager):
    name, first, second = new_name(), str(uuid.uuid4()), str(uuid.uuid4())
    secrets.create(name, "one", token=first)
    assert secrets.put(name, "two", token=second, stages=("probe",)) == second

    assert (secrets.get(name), secrets.get(name, stage="probe")) == ("one", "two")
    described = secrets.describe(name)
    assert described is not None
    assert (described.version(), described.version("probe")) == (first, second)
    secrets.unstage(name, second, "probe")
    assert secrets.get(name, stage="probe") is None


def test_the_same_token_again_adds_no_version(secrets: SecretsManager):
    name, token = new_name(), str(uuid.uuid4())
    secrets.create(name, "one", token=str(uuid.uuid4()))
    for _ in range(2):
        secrets.put(name, "two", token=token)

    described = secrets.describe(name)
    assert described is not None
    assert len(described.versions) == 2


def test_creating_what_is_there_is_invalid(secrets: SecretsManager):
    name = new_name()
    secrets.create(name, "one", token=str(uuid.uuid4()))
    with pytest.raises(Invalid, match="ResourceExistsException"):
        secrets.create(name, CANARY, token=str(uuid.uuid4()))


def json_error(status: int, code: str, text: str = "said so") -> faults.Behaviour:
    body = f'{{"__type": "{code}", "message": "{text}"}}'.encode()
    return faults.answer(status, body, headers="Content-Type: application/x-amz-json-1.1\r\n")


@pytest.mark.parametrize(
    ("behave", "error"),
    [
        (json_error(400, "AccessDeniedException"), Forbidden),
        (json_error(400, "DecryptionFailure"), Forbidden),
        (json_error(400, "ExpiredTokenException"), Forbidden),
        (json_error(400, "ThrottlingException"), Transient),
        (json_error(500, "InternalServiceError"), Transient),
        (json_error(400, "InvalidRequestException"), Invalid),
        (faults.answer(200, b"{}"), BadAnswer),
        (faults.answer(200, b"<html>"), BadAnswer),
        (faults.answer(403, b"<html>"), MeshError),
    ],
)
def test_errors_of_secrets_manager(broken: Broken, behave, error):
    with pytest.raises(error) as caught:
        broken.now(behave).secrets().get("mesh/unseal/ops-b")

    assert "GetSecretValue mesh/unseal/ops-b" in caught.value.message


def test_no_error_repeats_what_was_to_be_stored(broken: Broken):
    said = json_error(400, "InvalidParameterException", f"cannot store {CANARY}")
    with pytest.raises(Invalid) as caught:
        broken.now(said).secrets().put("x", CANARY, token=str(uuid.uuid4()))

    assert CANARY.encode() in broken.requests[0]
    assert CANARY not in f"{caught.value!r} {caught.value} {caught.value.__cause__}"


# Credentials


def test_neither_key_nor_profile_is_bad_input(monkeypatch):
    """Never silently those of somebody's environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    with pytest.raises(BadInput, match="neither a key nor"):
        AwsAccount(region="us-east-1").ec2()


def test_the_machines_own_credentials_when_asked_for(aws: AwsAccount, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    own = AwsAccount(region="us-east-1", endpoint_url=aws.endpoint_url, default_chain=True)

    assert own.ec2().instances(["none"], "none") == {}


def test_no_region_and_no_profile_of_that_name_are_bad_input():
    with pytest.raises(BadInput, match="no region"):
        AwsAccount(access_key_id="a", secret_access_key=SecretStr("b")).ec2()
    with pytest.raises(BadInput, match="no profile nobodys"):
        AwsAccount(profile="nobodys", region="us-east-1").ec2()


def test_a_copy_with_another_key_makes_clients_of_its_own(aws: AwsAccount):
    assert aws.ec2() is aws.ec2()
    assert aws.model_copy(update={"access_key_id": "AKIB"}).ec2() is not aws.ec2()
