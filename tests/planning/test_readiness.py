"""Would it come back from the dark? Each thing that would stop it is a finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from tasks.planning.readiness import Closer, Verdict, judge
from tasks.planning.survey import (
    BreakGlass,
    CertificateSeen,
    HolderSeen,
    HostSeen,
    NodeSeen,
    SnapshotSeen,
    Survey,
    healthy,
)
from tests.planning.meshes import NOW, mesh
from tests.planning.test_cold_boot import SHUT, consul, holder, host, vault

MESH = mesh()
CERTIFICATES = {
    (c.host, c.path): CertificateSeen(NOW + timedelta(days=90), "CN=server")
    for c in MESH.certificates
}
SNAPSHOT = SnapshotSeen(NOW - timedelta(hours=2), "0200.snap")
GOOD = replace(
    vault(healthy(MESH, NOW), snapshot=SNAPSHOT),
    consul_snapshot=SNAPSHOT,
    certificates=CERTIFICATES,
)
LOOK = Closer(
    ca_token=timedelta(days=20),
    gateways={"us-gateway-1": "", "eu-gateway-1": ""},
)


def test_a_mesh_that_is_ready_says_so_with_reasons():
    verdict = judge(MESH, GOOD, LOOK)
    assert verdict.ready
    assert {f.level for f in verdict.findings} == {"ok"}
    assert {f.subject for f in verdict.findings} == {
        "boot graph",
        "hosts",
        "unseal shares",
        "Vault snapshot",
        "Consul snapshot",
        "certificates",
        "CA token",
        "gateways",
    }


def certificate(number: int, left: timedelta) -> Survey:
    chosen = MESH.certificates[number]
    seen = CertificateSeen(NOW + left)
    return replace(GOOD, certificates={**CERTIFICATES, (chosen.host, chosen.path): seen})


GLASS = BreakGlass(NOW - timedelta(hours=9), NOW - timedelta(hours=1))

# What is seen, how bad it is, and what is said about it.
FINDINGS: dict[str, tuple[Callable[[], Verdict], str, str]] = {
    "too few shares": (
        lambda: judge(MESH, holder(holder(GOOD, "ops-a", SHUT), "ops-b", SHUT), LOOK),
        "fail",
        "1 of the 3 shares needed can be reached",
    ),
    "a holder fewer": (
        lambda: judge(MESH, holder(GOOD, "ops-c", SHUT), LOOK),
        "warn",
        'holder "ops-c": AccessDenied',
    ),
    "a renewed intermediate that would not sign": (
        lambda: judge(MESH, consul(GOOD, "eu-west-1", issuer="pinned"), LOOK),
        "warn",
        "an intermediate that is renewed at connect-eu-west-1 would not be",
    ),
    "no holder may be lost": (
        lambda: judge(MESH, holder(GOOD, "ops-c", HolderSeen("none")), LOOK),
        "warn",
        "no holder may be lost",
    ),
    "no snapshot": (
        lambda: judge(MESH, vault(GOOD, snapshot=None), LOOK),
        "fail",
        "there is none",
    ),
    "an old snapshot": (
        lambda: judge(
            MESH,
            replace(GOOD, consul_snapshot=replace(SNAPSHOT, taken=NOW - timedelta(days=2))),
            LOOK,
        ),
        "fail",
        "48.0 h old, at most 26 h are allowed",
    ),
    "a broken snapshot": (
        lambda: judge(
            MESH, vault(GOOD, snapshot=replace(SNAPSHOT, restorable=False, error="cut short")), LOOK
        ),
        "fail",
        "0200.snap cannot be restored: cut short",
    ),
    "Vault's certificate ends during an outage": (
        lambda: judge(MESH, certificate(1, timedelta(hours=30)), LOOK),
        "fail",
        "ends in 30 h, an outage may last 72 h",
    ),
    "a certificate that a boot renews ends during an outage": (
        lambda: judge(MESH, certificate(0, timedelta(hours=30)), LOOK),
        "warn",
        "a boot renews it once Vault serves",
    ),
    "an expired certificate": (
        lambda: judge(MESH, certificate(1, timedelta(hours=-5)), LOOK),
        "fail",
        "expired 5 h ago; vault would not start",
    ),
    "a certificate that could not be read": (
        lambda: judge(MESH, replace(GOOD, certificates={}), LOOK),
        "warn",
        "could not be read",
    ),
    "the CA token dies during an outage": (
        lambda: judge(MESH, GOOD, replace(LOOK, ca_token=timedelta(hours=71))),
        "fail",
        "ends in 71 h",
    ),
    "the CA token could not be read": (
        lambda: judge(MESH, GOOD, replace(LOOK, ca_token=None)),
        "warn",
        "could not be read",
    ),
    "a gateway's address is wrong": (
        lambda: judge(
            MESH, GOOD, replace(LOOK, gateways={**LOOK.gateways, "eu-gateway-1": "refused"})
        ),
        "fail",
        "198.51.100.2:8443 cannot be dialled: refused",
    ),
    "break-glass stands": (
        lambda: judge(MESH, consul(GOOD, "us-east-1", break_glass=GLASS), LOOK),
        "fail",
        "ITS TIME RAN OUT",
    ),
    "maintenance goes on": (
        lambda: judge(MESH, replace(GOOD, maintenance="since noon"), LOOK),
        "warn",
        "planned Vault work: since noon",
    ),
    "maintenance was forgotten": (
        lambda: judge(MESH, replace(GOOD, maintenance="since noon", maintenance_ends=NOW), LOOK),
        "fail",
        "FORGOTTEN",
    ),
    "a seal is marked as an incident": (
        lambda: judge(MESH, vault(GOOD, incident="drill"), LOOK),
        "warn",
        "sealed on purpose: drill",
    ),
    "a cloud cannot be asked": (
        lambda: judge(MESH, host(GOOD, "us-app-1", HostSeen("unknown", "ok", "403")), LOOK),
        "fail",
        "could not be asked about us-app-1: 403",
    ),
    "a machine is gone": (
        lambda: judge(MESH, host(GOOD, "us-app-1", HostSeen("missing")), LOOK),
        "fail",
        "no machine named us-app-1",
    ),
    "a host does not let us in": (
        lambda: judge(MESH, host(GOOD, "us-app-1", HostSeen("on", "refused", "key differs")), LOOK),
        "fail",
        "SSH is refused: key differs",
    ),
    "the management token is not in Vault": (
        lambda: judge(MESH, consul(GOOD, token="absent"), LOOK),
        "fail",
        "the one in mesh/consul/bootstrap is not there",
    ),
    "the runbooks' credential cannot be read": (
        lambda: judge(MESH, vault(GOOD, credential="unknown"), LOOK),
        "fail",
        'cannot be read from "runbook"',
    ),
    "Vault has a voter fewer": (
        lambda: judge(MESH, vault(GOOD, voters=("vault-1", "vault-2")), LOOK),
        "warn",
        "no healthy voter now: vault-3",
    ),
    "Vault has a node sealed": (
        lambda: judge(
            MESH, vault(GOOD, nodes={**GOOD.vault.nodes, "vault-2": NodeSeen("sealed")}), LOOK
        ),
        "warn",
        "no healthy voter now: vault-2",
    ),
    "the seal's service is away": (
        lambda: judge(mesh(seal="transit"), vault(GOOD, sealer="down"), LOOK),
        "fail",
        "no node would open its listener",
    ),
    "a topology with a cycle got past validation": (
        lambda: judge(
            MESH.model_copy(update={"vault": MESH.vault.model_copy(update={"storage": "consul"})}),
            GOOD,
            LOOK,
        ),
        "fail",
        "vault.storage is consul",
    ),
    "a host key is not pinned": (
        lambda: judge(
            MESH.model_copy(
                update={
                    "datacenters": [
                        dc.model_copy(
                            update={
                                "hosts": [h.model_copy(update={"host_key": None}) for h in dc.hosts]
                            }
                        )
                        for dc in MESH.datacenters
                    ]
                }
            ),
            GOOD,
            LOOK,
        ),
        "fail",
        "no host key is pinned for eu-consul-1..3 eu-gateway-1 eu-app-1",
    ),
}


@pytest.mark.parametrize("case", FINDINGS)
def test_what_would_stop_a_boot_is_found(case: str):
    look, level, text = FINDINGS[case]
    verdict = look()
    found = [f for f in verdict.findings if text in f.text]
    assert [f.level for f in found][:1] == [level], [str(f) for f in verdict.findings]
    assert found[0].do
    assert verdict.ready == all(f.level != "fail" for f in verdict.findings)
    assert verdict.findings[0].level == ("fail" if not verdict.ready else level)


def test_custodians_who_are_needed_are_named():
    people = mesh(
        holders=[
            {"name": "a", "store": "file", "path": "a", "shares": 2},
            {"name": "b", "store": "prompt", "shares": 2},
            {"name": "c", "store": "prompt", "shares": 1},
        ]
    )
    survey = vault(
        GOOD,
        holders={h.name: HolderSeen("held", shares=h.shares) for h in people.vault.holders},
    )
    assert any("1 must be typed in by b, c" in f.text for f in judge(people, survey, LOOK).findings)


def test_the_rows_are_a_table():
    assert judge(MESH, GOOD, LOOK).as_rows()[0].keys() == {"level", "subject", "text", "do"}
