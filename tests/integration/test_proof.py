"""B13: "verified" means it. With one thing broken, its own check fails, and the run is not done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from pydantic import SecretStr

from blocks.errors import NotConverged
from deployments.lab.layout import CONSUL_HTTPS_PORT, PRIMARY
from tasks import connect_ca, consul, federation, prove, record, services, vault
from tests.harness.lab import Lab
from tests.integration.outside import DENIED, Outside
from tests.lab.machine import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

PATIENCE = 2.0  # seconds; the proof itself waits a minute and more for what is coming up


@contextmanager
def stopped(lab: Lab, host: str, unit: str) -> Iterator[None]:
    """A unit that does not run."""
    clouds = Outside(lab).clouds
    assert clouds.run(host, f"systemctl stop {unit}")[0] == 0
    yield
    assert clouds.run(host, f"systemctl start {unit}")[0] == 0


@contextmanager
def not_replicated(lab: Lab) -> Iterator[None]:
    """A token made while the way to the secondary is shut."""
    with stopped(lab, "us-gateway-1", "mesh-gateway"), stopped(lab, "eu-gateway-1", "mesh-gateway"):
        made = _primary(lab, "PUT", "acl/token", {"Description": "made while cut off"})
        yield
        _primary(lab, "DELETE", f"acl/token/{made['AccessorID']}")


@contextmanager
def everybody_allowed(lab: Lab) -> Iterator[None]:
    """The intention that denies the reporting agent allows it."""
    rows = _primary(lab, "GET", "connect/intentions")
    (denied,) = [r for r in rows if r["SourceName"] == "reporting-agent"]
    body = {k: denied[k] for k in ("SourceName", "DestinationName", "SourceType")}
    path = f"connect/intentions/{denied['ID']}"
    _primary(lab, "PUT", path, body | {"Action": "allow"})
    url = f"http://{lab.layout.host('us-app-1').address}:{DENIED}/"
    until(lambda: Outside(lab).http.get(url).status_code == 200, "the sidecars to know")
    yield
    _primary(lab, "PUT", path, body | {"Action": "deny"})


def _primary(lab: Lab, verb: str, path: str, body: Any = None) -> Any:
    seen = Outside(lab)
    address = lab.layout.host(seen.servers(PRIMARY)[0]).address
    answer = seen.http.request(
        verb,
        f"https://{address}:{CONSUL_HTTPS_PORT}/v1/{path}",
        headers={"X-Consul-Token": seen.management()},
        json=body,
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


BREAKS: dict[str, tuple[Callable[[Lab], AbstractContextManager[object]], set[str]]] = {
    "vault answers nobody": (
        lambda lab: lab.frozen("vault-1", "vault"),
        {"vault unsealed", "vault raft voters", "us-east-1 leaf signed", "eu-west-1 leaf signed"},
    ),
    "the primary has no leader": (
        lambda lab: stopped(lab, "us-consul-1", "consul"),
        {"us-east-1 quorum", "us-east-1 autopilot", "us-east-1 ACLs", "eu-west-1 -> us-east-1"},
    ),
    "the gateways are down and a token is not replicated": (
        not_replicated,
        {"us-east-1 -> eu-west-1", "eu-west-1 -> us-east-1", "eu-west-1 replication"},
    ),
    "a sidecar is down": (
        lambda lab: stopped(lab, "eu-app-1", "payment-processor-sidecar"),
        {"web-portal@us-app-1: web-portal -> payment-processor (eu-west-1) answers"},
    ),
    "who is to be denied is allowed": (
        everybody_allowed,
        {"reporting-agent@us-app-1: reporting-agent -> payment-processor denied"},
    ),
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not hold now is not waited for."""
    for module in (connect_ca, consul, federation, prove, services, vault):
        real = getattr(module, "wait_until", None)
        if real is None:
            continue

        def soon(*args: Any, deadline: float, real: Any = real, **options: Any) -> Any:
            return real(*args, deadline=min(deadline, PATIENCE), **options)

        monkeypatch.setattr(module, "wait_until", soon)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("case", BREAKS)
def test_what_is_broken_is_not_proven(healthy: Lab, case: str):
    breaks, wanted = BREAKS[case]
    seen = Outside(healthy)
    management, token = SecretStr(seen.management()), SecretStr(seen.token())
    with healthy.connections() as connections, record.recording(record.Recorder()) as recorder:
        names = set(prove.proofs(connections, management, token))
        assert wanted <= names, wanted - names
        assert all(c.ok for c in prove.prove(connections, management, token))
        recorder.checks.clear()

        with breaks(healthy), pytest.raises(NotConverged, match="checks failed"):
            prove.prove(connections, management, token)

        failed = {c.name for c in recorder.checks if not c.ok}
    assert wanted <= failed, f"proven all the same: {wanted - failed}"
    healthy.boot()
