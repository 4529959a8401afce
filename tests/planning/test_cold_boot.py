"""What a cold boot plans from what was seen, and when it may change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from blocks.topology import Mesh
from tasks.planning.cold_boot import Options, Plan, plan_cold_boot
from tasks.planning.survey import (
    BreakGlass,
    CertificateSeen,
    HolderSeen,
    HostSeen,
    NodeSeen,
    SnapshotSeen,
    Survey,
    dark,
    healthy,
)
from tests.planning.meshes import NOW, mesh

MESH = mesh()
TRANSIT = mesh(seal="transit", seal_address="https://10.9.0.1:8200")

UP = healthy(MESH, NOW)
DARK = dark(MESH, NOW)


def vault(survey: Survey, **changes: Any) -> Survey:
    """The survey with something else seen of Vault."""
    return replace(survey, vault=replace(survey.vault, **changes))


def nodes(survey: Survey, *states: str, **node: Any) -> Survey:
    """The survey with Vault's nodes in these states."""
    return vault(
        survey,
        nodes={f"vault-{n}": NodeSeen(state, **node) for n, state in enumerate(states, 1)},  # type: ignore[arg-type]
    )


def sealed(survey: Survey = UP, **node: Any) -> Survey:
    """Every node sealed; what Vault alone tells is hidden."""
    return vault(nodes(survey, "sealed", "sealed", "sealed", **node), setup="unknown")


def blank(survey: Survey = UP, holders: str = "none", credential: str = "none") -> Survey:
    """Every node uninitialised."""
    return vault(
        nodes(survey, "uninitialised", "uninitialised", "uninitialised"),
        holders={h.name: HolderSeen(holders) for h in MESH.vault.holders},  # type: ignore[arg-type]
        credential=credential,
        setup="unknown",
    )


def holder(survey: Survey, name: str, seen: HolderSeen) -> Survey:
    """The survey with one holder's store looking otherwise."""
    return vault(survey, holders={**survey.vault.holders, name: seen})


def consul(survey: Survey, *datacenters: str, **changes: Any) -> Survey:
    """The survey with something else seen of Consul, everywhere if nowhere is named."""
    return replace(
        survey,
        consul={
            name: replace(seen, **changes) if name in (datacenters or survey.consul) else seen
            for name, seen in survey.consul.items()
        },
    )


def host(survey: Survey, name: str, seen: HostSeen) -> Survey:
    """The survey with one machine looking otherwise."""
    return replace(survey, hosts={**survey.hosts, name: seen})


def expired(survey: Survey, host: str, path: str) -> Survey:
    """The survey with a certificate that ran out a day ago."""
    seen = CertificateSeen(NOW - timedelta(days=1), "CN=server")
    return replace(survey, certificates={(host, path): seen})


def planned(survey: Survey, **options: Any) -> dict[str, tuple[str, ...]]:
    """The steps' ids and targets."""
    plan = plan_cold_boot(MESH, survey, Options(**options))
    assert not plan.refusals, [str(r) for r in plan.refusals]
    return {step.id: step.targets for step in plan.steps}


NO_SHARES = HolderSeen("none")
SHUT = HolderSeen("unknown", reachable=False, error="AccessDeniedException on secret b")
SNAPSHOT = SnapshotSeen(NOW - timedelta(minutes=72), "vault-0200.snap")

# What is seen, what is allowed, and what the refusal must say and advise.
REFUSED: dict[str, tuple[Callable[[], Survey], dict[str, Any], str, str]] = {
    "uninitialised, and init is not allowed": (
        blank,
        {},
        "every node says uninitialised",
        "initialise=true",
    ),
    "dark, and no holder has a share": (
        lambda: vault(DARK, holders={h.name: NO_SHARES for h in MESH.vault.holders}),
        {},
        "0 of the 3 shares needed can be reached",
        "if this mesh never ran, initialise=true",
    ),
    "its data is gone, and the holders have its shares": (
        lambda: vault(blank(), holders=UP.vault.holders),
        {"initialise": True},
        "no data, and its holders have 5 shares",
        "fallback=restore-vault",
    ),
    "a share could not be kept": (
        lambda: holder(blank(), "ops-b", SHUT),
        {"initialise": True},
        'holder "ops-b" could not keep its shares: AccessDeniedException',
        "init gives the shares once",
    ),
    "too few shares": (
        lambda: holder(holder(sealed(), "ops-b", SHUT), "ops-c", NO_SHARES),
        {},
        "2 of the 3 shares needed can be reached",
        "store: prompt",
    ),
    "an init whose answer was lost": (
        lambda: vault(
            sealed(),
            holders={h.name: HolderSeen("intended") for h in MESH.vault.holders},
            credential="none",
        ),
        {"initialise": True},
        "an init was begun and its answer lost",
        "discard_lost_init=true",
    ),
    "data is discarded only to initialise anew": (
        lambda: vault(
            sealed(),
            holders={h.name: HolderSeen("intended") for h in MESH.vault.holders},
            credential="none",
        ),
        {"discard_lost_init": True},
        "would leave nothing to unseal",
        "add initialise=true",
    ),
    "nothing that was built on is discarded": (
        lambda: vault(
            sealed(), holders={h.name: HolderSeen("intended") for h in MESH.vault.holders}
        ),
        {"initialise": True, "discard_lost_init": True},
        "0 of the 3 shares needed exist",
        "restore a snapshot",
    ),
    "the seal is an incident's": (
        lambda: vault(sealed(), incident="key leak, ask Ada"),
        {},
        "the seal is deliberate: key leak, ask Ada",
        "unseal_incident=true",
    ),
    "the operator's certificate ran out": (
        lambda: expired(UP, "vault-1", "/etc/mesh/tls/vault.pem"),
        {},
        "of vault (CN=server) expired 2025-03-13 03:12",
        "operator's CA",
    ),
    "Vault's own certificate ran out and Vault stays down": (
        lambda: expired(sealed(), "us-consul-1", "/etc/mesh/tls/consul.pem"),
        {"fallback": "break-glass"},
        "of consul (CN=server) expired",
        "stays down with break-glass",
    ),
    "a host is missing in its cloud": (
        lambda: host(UP, "eu-consul-2", HostSeen("missing")),
        {},
        "no machine named eu-consul-2",
        "`instance` in the topology",
    ),
    "a cloud does not answer and its hosts are dark": (
        lambda: host(UP, "eu-consul-2", HostSeen("unknown", error="timed out")),
        {},
        "its cloud does not answer: timed out",
        "correct the proxmox credentials or make its API reachable",
    ),
    "a host that must be changed does not let us in": (
        lambda: consul(
            host(UP, "us-consul-2", HostSeen("on", "refused", "host key differs")),
            "us-east-1",
            up=frozenset({"us-consul-1", "us-consul-3"}),
        ),
        {},
        "SSH is refused: host key differs",
        "host_key",
    ),
    "ACLs bootstrapped by somebody else": (
        lambda: consul(UP, token="absent"),
        {},
        "Vault has no management token in mesh/consul/bootstrap",
        "write that token to mesh/consul/bootstrap",
    ),
    "ACLs bootstrapped, and Vault is new": (
        lambda: consul(blank(), token="unknown"),
        {"initialise": True},
        "Vault has no management token",
        "reset the ACL bootstrap",
    ),
    "Consul answers 403 to its token": (
        lambda: consul(UP, token="denied"),
        {},
        "answers 403",
        "write a valid management token",
    ),
    "Consul's data is gone": (
        lambda: consul(UP, acl="absent"),
        {},
        "Consul's data is gone",
        "restore the newest Consul snapshot",
    ),
    "somebody else switched Connect off": (
        lambda: consul(UP, connect="off", ca="off"),
        {},
        "not by a fallback of this runbook",
        "connect.enabled",
    ),
    "break-glass while Vault serves": (
        lambda: UP,
        {"fallback": "break-glass"},
        "Vault serves (vault-1 is active)",
        "fallback=wait",
    ),
    "break-glass on day 0": (
        blank,
        {"fallback": "break-glass", "initialise": True},
        "never ran has nothing to serve",
        "choose one",
    ),
    "restoring without a snapshot": (
        lambda: vault(blank(), holders=UP.vault.holders),
        {"fallback": "restore-vault"},
        "there is no Vault snapshot",
        "vault.snapshots.directory",
    ),
    "restoring a snapshot that is broken": (
        lambda: vault(
            blank(),
            holders=UP.vault.holders,
            snapshot=replace(SNAPSHOT, restorable=False, error="checksum differs"),
        ),
        {"fallback": "restore-vault"},
        "cannot be restored: checksum differs",
        "the one before it",
    ),
    "restoring without the original keys": (
        lambda: vault(blank(), snapshot=SNAPSHOT),
        {"fallback": "restore-vault"},
        "opens with its original keys only",
        "store readable",
    ),
    "restoring over data that is there and open": (
        lambda: vault(UP, snapshot=SNAPSHOT),
        {"fallback": "restore-vault"},
        "a snapshot would overwrite it",
        "fallback=wait",
    ),
    "a restore was begun and not finished": (
        lambda: vault(sealed(), restore="begun", snapshot=SNAPSHOT),
        {},
        "a restore was begun and not finished",
        "fallback=restore-vault",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_gate_refuses_with_a_remedy(case: str):
    see, options, error, do = REFUSED[case]
    plan = plan_cold_boot(MESH, see(), Options(**options))
    assert plan.steps == ()
    assert any(error in r.error and do in r.do for r in plan.refusals), [
        str(r) for r in plan.refusals
    ]


def test_too_few_shares_names_every_holder_that_gives_none():
    plan = plan_cold_boot(MESH, holder(holder(sealed(), "ops-b", SHUT), "ops-c", NO_SHARES))
    assert plan.refusals[0].details == (
        'holder "ops-b": AccessDeniedException on secret b',
        'holder "ops-c": holds no share (block)',
    )


# What is seen, what is allowed, and the steps that must and must not be planned.
PLANNED: dict[str, tuple[Callable[[], Survey], dict[str, Any], dict[str, str], str]] = {
    "an uninitialised follower joins, it is not initialised": (
        lambda: vault(nodes(UP, "sealed", "uninitialised", "uninitialised"), setup="unknown"),
        {"initialise": True},
        {"unseal": "vault-1..3"},
        "init",
    ),
    "a dark mesh whose holders have shares ran before": (
        lambda: DARK,
        {"initialise": True},
        {"unseal": "vault-1..3"},
        "init",
    ),
    "a standby counts as unsealed": (
        lambda: nodes(UP, "standby", "active", "sealed"),
        {},
        {"unseal": "vault-3"},
        "consul",
    ),
    "a sealed Vault under a leader that stands: nothing is held": (
        sealed,
        {},
        {"unseal": "vault-1..3"},
        "hold",
    ),
    "progress that stands is built on": (
        lambda: sealed(progress=1, nonce="abc"),
        {},
        {"unseal": "vault-1..3"},
        "init",
    ),
    "progress that stands is reset with approval": (
        lambda: sealed(progress=1, nonce="abc"),
        {"allow_reset_unseal_progress": True},
        {"unseal": "vault-1..3"},
        "init",
    ),
    "an incident's seal is undone with approval": (
        lambda: vault(sealed(), incident="drill"),
        {"unseal_incident": True},
        {"unseal": "vault-1..3"},
        "init",
    ),
    "a process that is down is started, one that hangs restarted": (
        lambda: nodes(UP, "active", "down", "hanging"),
        {},
        {"start:vault": "vault-2", "restart:vault": "vault-3", "unseal": "vault-2 vault-3"},
        "consul",
    ),
    "the storm is held on the servers that run": (
        lambda: consul(sealed(), state="storm", up=frozenset(), ca="failing"),
        {},
        {"hold:us-east-1": "us-consul-1..3", "hold:eu-west-1": "eu-consul-1..3"},
        "bootstrap",
    ),
    "once Vault serves nothing is held": (
        lambda: consul(UP, "us-east-1", state="storm", up=frozenset()),
        {},
        {"consul:us-east-1": "us-consul-1..3"},
        "hold",
    ),
    "one server that is down is started alone": (
        lambda: consul(UP, "us-east-1", up=frozenset({"us-consul-1", "us-consul-3"})),
        {},
        {"consul:us-east-1": "us-consul-2"},
        "consul:eu-west-1",
    ),
    "a lost answer of the ACL bootstrap is recovered from": (
        lambda: consul(UP, "us-east-1", token="intended"),
        {},
        {"bootstrap": "acl"},
        "init",
    ),
    "a token of a lost ACL bootstrap is swept away": (
        lambda: consul(UP, "us-east-1", token="unswept"),
        {},
        {"sweep": "acl"},
        "bootstrap",
    ),
    "an agent without tokens gets them, alone": (
        lambda: consul(UP, "eu-west-1", untokened=frozenset({"eu-app-1"})),
        {},
        {"agents:eu-west-1": "eu-app-1", "secondary:eu-west-1": "eu-west-1"},
        "tokens",
    ),
    "a CA that left Vault is put back": (
        lambda: consul(UP, "us-east-1", ca="builtin"),
        {},
        {"ca:us-east-1": "connect-ca us-east-1"},
        "consul",
    ),
    "a CA that left Vault for maintenance stays": (
        lambda: replace(consul(UP, "us-east-1", ca="builtin"), maintenance="until noon"),
        {},
        {},
        "ca",
    ),
    "a CA that cannot sign although Vault serves is configured anew": (
        lambda: consul(UP, "us-east-1", ca="failing"),
        {},
        {"ca:us-east-1": "connect-ca us-east-1"},
        "consul",
    ),
    "a renewed intermediate is to be the one that signs": (
        lambda: consul(UP, "eu-west-1", issuer="fixed"),
        {},
        {"ca:eu-west-1": "connect-ca eu-west-1"},
        "ca:us-east-1",
    ),
    "an issuer that somebody else pinned stays": (
        lambda: consul(UP, "eu-west-1", issuer="pinned"),
        {},
        {},
        "ca",
    ),
    "a CA that cannot sign because Vault is sealed needs only Vault": (
        lambda: consul(sealed(), "us-east-1", ca="failing"),
        {},
        {"unseal": "vault-1..3"},
        "ca",
    ),
    "a gateway that is gone is started, and the way proven": (
        lambda: consul(
            consul(UP, "eu-west-1", gateways={"eu-gateway-1": False}),
            reaches={},
            replication="behind",
        ),
        {},
        {"gateways:eu-west-1": "eu-gateway-1", "secondary:eu-west-1": "eu-west-1"},
        "gateways:us-east-1",
    ),
    "a service that is down is started": (
        lambda: replace(UP, services={**UP.services, "web-portal@us-app-1": "down"}),
        {},
        {"services:us-east-1": "web-portal@us-app-1"},
        "services:eu-west-1",
    ),
    "a pair that behaves otherwise is declared again": (
        lambda: replace(UP, pairs_wrong=(("reporting-agent", "payment-processor"),)),
        {},
        {"intentions": "reporting-agent>payment-processor"},
        "services",
    ),
    "a component is started after what it needs": (
        lambda: replace(UP, components={}),
        {},
        {"component:prefect-db": "prefect-db", "component:prefect-server": "prefect-server"},
        "consul",
    ),
    "a certificate that Vault issues is renewed before Consul starts": (
        lambda: expired(
            consul(sealed(), state="down", up=frozenset()),
            "us-consul-1",
            "/etc/mesh/tls/consul.pem",
        ),
        {},
        {"renew:us-east-1": "us-consul-1"},
        "renew:eu-west-1",
    ),
    "a discard that was killed with Vault stopped starts it first, to see": (
        lambda: vault(
            nodes(replace(UP, consul=DARK.consul), "down", "down", "down"),
            holders={
                h.name: HolderSeen("held", shares=2)
                if h.name == "ops-a"
                else HolderSeen("intended")
                for h in MESH.vault.holders
            },
            credential="none",
            setup="unknown",
        ),
        {"initialise": True, "discard_lost_init": True},
        {"start:vault": "vault-1..3"},
        "set-aside",
    ),
    "a set-up that was killed is finished": (
        lambda: vault(UP, setup="partial"),
        {},
        {"setup": "vault"},
        "unseal",
    ),
    "data that is there and sealed is unsealed, not restored": (
        lambda: vault(sealed(), snapshot=SNAPSHOT),
        {"fallback": "restore-vault"},
        {"unseal": "vault-1..3"},
        "restore",
    ),
    "a restore that was begun begins anew": (
        lambda: vault(sealed(), restore="begun", snapshot=SNAPSHOT),
        {"fallback": "restore-vault"},
        {"restore": "vault-1..3", "unseal": "vault-1..3"},
        "init",
    ),
    "a snapshot brings the set-up with it": (
        lambda: vault(
            blank(credential="held"), holders=UP.vault.holders, setup="absent", snapshot=SNAPSHOT
        ),
        {"fallback": "restore-vault"},
        {"restore": "vault-1..3", "unseal": "vault-1..3"},
        "setup",
    ),
    "break-glass leaves a leader that stands alone": (
        lambda: consul(sealed(), "us-east-1", state="storm", up=frozenset()),
        {"fallback": "break-glass"},
        {"break-glass:us-east-1": "us-consul-1..3"},
        "break-glass:eu-west-1",
    ),
    "a machine that boots is waited for": (
        lambda: host(UP, "us-app-1", HostSeen("on", "unknown")),
        {},
        {"reach:us-east-1": "us-app-1"},
        "power",
    ),
}


@pytest.mark.parametrize("case", PLANNED)
def test_what_is_seen_decides_what_is_planned(case: str):
    from tasks.planning.plan import compress

    see, options, wanted, unwanted = PLANNED[case]
    steps = planned(see(), **options)
    assert wanted == {name: compress(steps.get(name, ())) for name in wanted}
    kind = unwanted.partition(":")[0]
    exact = ":" in unwanted
    assert not [s for s in steps if (s == unwanted if exact else s.partition(":")[0] == kind)]


def test_nothing_happens_on_a_healthy_mesh_whatever_is_allowed():
    """B9."""
    options = Options(initialise=True, unseal_incident=True, discard_lost_init=True)
    plan = plan_cold_boot(MESH, UP, options)
    assert [s.id for s in plan.steps] == ["prove"]
    assert plan.mutating == ()


def test_the_plan_from_the_dark_reads_like_a_colleagues_intention():
    rows = plan_cold_boot(MESH, DARK).as_rows()
    assert [f"{r['step']} {r['action']} {r['targets']} <- {r['waits_for']}" for r in rows] == [
        "1 power on vault-1..3 us-consul-1..3 us-gateway-1 us-app-1 <- -",
        "1 power on eu-consul-1..3 eu-gateway-1 eu-app-1 <- -",
        "2 hold us-consul-1..3 eu-consul-1..3 <- 1",
        "3 unseal vault-1..3 <- 1",
        "4 start agents us-gateway-1 us-app-1 eu-gateway-1 eu-app-1 <- 1",
        "5 start consul us-consul-1..3 <- 2, 3",
        "6 see gateways us-gateway-1 <- 4, 5",
        "7 start consul eu-consul-1..3 <- 2, 4, 5",
        "8 see gateways eu-gateway-1 <- 7",
        "9 federate eu-west-1 <- 6, 8",
        (
            "10 see services payment-processor@us-app-1 web-portal@us-app-1"
            " reporting-agent@us-app-1 <- 4, 5"
        ),
        "11 see services payment-processor@eu-app-1 <- 9",
        "12 start component prefect-db <- 1",
        "13 start component prefect-server <- 5, 12",
        (
            "14 prove vault us-east-1 eu-west-1 payment-processor web-portal reporting-agent"
            " <- 10, 11, 13"
        ),
    ]
    assert rows[2]["reason"].startswith("boot lock: CA provider = vault")


def test_day_0_goes_init_unseal_setup_consul_acl_ca():
    never = vault(DARK, holders={h.name: NO_SHARES for h in MESH.vault.holders}, credential="none")
    plan = plan_cold_boot(MESH, never, Options(initialise=True))
    order = ["init", "unseal", "setup", "consul:us-east-1", "bootstrap", "tokens:us-east-1"]
    order += ["ca:us-east-1", "agents:us-east-1", "gateways:us-east-1", "consul:eu-west-1"]
    order += ["tokens:eu-west-1", "ca:eu-west-1", "agents:eu-west-1", "gateways:eu-west-1"]
    order += ["secondary:eu-west-1", "intentions", "services:us-east-1", "prove"]
    assert [s.id for s in plan.steps if s.id in order] == order
    assert not plan.stage("hold"), "before day 0 nothing can lock"
    assert all(s.expected for s in plan.steps if s.id in {"init", "bootstrap", "setup"})


def transit(*states: str, **changes: Any) -> Plan:
    survey = vault(nodes(healthy(TRANSIT, NOW), *states), setup="unknown", **changes)
    return plan_cold_boot(TRANSIT, survey)


def test_an_auto_sealed_vault_needs_its_sealer_and_no_shares():
    refused = transit("down", "down", "down", sealer="down")
    assert "transit seal cannot be reached at https://10.9.0.1:8200" in refused.refusals[0].error

    plan = transit(
        "sealed", "sealed", "sealed", holders={h.name: NO_SHARES for h in TRANSIT.vault.holders}
    )
    assert [(s.id, s.action) for s in plan.steps][:2] == [
        ("restart:vault", "restart vault"),
        ("unseal", "wait for"),
    ]


def test_an_auto_unsealed_vault_whose_init_was_lost_is_refused_too():
    """It opens by itself, and nobody has its root token or recovery keys."""
    plan = transit(
        "active",
        "standby",
        "standby",
        holders={h.name: HolderSeen("intended") for h in TRANSIT.vault.holders},
        credential="none",
    )
    assert "its answer lost" in plan.refusals[0].error


def test_a_custodian_proves_nothing_about_the_past():
    """A prompt would give its shares if asked, also before there were any."""
    people = mesh(
        holders=[
            {"name": "a", "store": "file", "path": "a", "shares": 2},
            {"name": "b", "store": "prompt", "shares": 2},
            {"name": "c", "store": "prompt", "shares": 1},
        ]
    )
    seen = {"a": NO_SHARES, "b": HolderSeen("held", shares=2), "c": HolderSeen("held", shares=1)}
    survey = vault(blank(healthy(people, NOW)), holders=seen)
    survey = consul(survey, acl="absent", token="unknown")
    plan = plan_cold_boot(people, survey, Options(initialise=True))
    assert plan.stage("init")


def test_the_threshold_is_the_clusters_own():
    """Rekeyed since the topology was written: five of five are needed now."""
    plan = plan_cold_boot(MESH, holder(sealed(threshold=5), "ops-c", NO_SHARES))
    assert plan.refusals[0].error.startswith("4 of the 5 shares needed")


def test_enough_shares_without_one_holder_is_a_notice():
    plan = plan_cold_boot(MESH, holder(sealed(), "ops-c", NO_SHARES))
    assert not plan.refusals
    assert any("4 of 5 key shares can be reached" in n for n in plan.notices)


def test_a_holder_whose_share_never_arrived_is_a_call_to_rekey():
    plan = plan_cold_boot(MESH, holder(sealed(), "ops-c", HolderSeen("intended")))
    assert any("rekey Vault soon" in n for n in plan.notices)


def test_a_silent_cloud_does_not_matter_while_every_host_answers():
    """Power is a means to reach a host."""
    seen = {n: HostSeen("on", "ok", units=h.units) for n, h in UP.hosts.items()}
    assert planned(replace(UP, hosts=seen)) == planned(UP)


def test_break_glass_is_put_back_before_anything_that_needs_connect():
    glass = BreakGlass(NOW - timedelta(hours=9), NOW - timedelta(hours=1))
    survey = consul(sealed(), connect="off", ca="off", break_glass=glass, gateways={}, reaches={})
    plan = plan_cold_boot(MESH, survey)
    ids = [s.id for s in plan.steps]
    assert ids.index("unseal") < ids.index("unbreak:us-east-1") < ids.index("gateways:us-east-1")
    assert "unbreak:us-east-1" in plan.step("gateways:us-east-1").waits_for
    assert "consul:us-east-1" not in ids
    assert any("ITS TIME RAN OUT 1.0 H AGO" in n for n in plan.notices)


def test_a_boot_without_federation_needs_no_gateways():
    alone: Mesh = mesh(secondaries=0)
    plan = plan_cold_boot(alone, dark(alone, NOW))
    assert not plan.refusals
    assert not plan.stage("secondary")
