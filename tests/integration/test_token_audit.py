"""The audit on real servers: what is planted is found, and nothing is changed by looking."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from deployments.lab.layout import CONSUL_HTTPS_PORT, DATACENTERS, PRIMARY, SECONDARY
from tasks.planning.token_audit import with_documents
from tests.harness.lab import Lab, Ran
from tests.integration import changes
from tests.integration.outside import Outside
from tests.lab.machine import until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ANONYMOUS = "00000000-0000-0000-0000-000000000002"
NOWHERE = str(uuid.UUID(int=7))


class Hand:
    """What a person does to a lab's tokens, past every runbook."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.seen = lab, Outside(lab)
        self.management = self.seen.management()

    def ask(self, verb: str, path: str, dc: str = PRIMARY, **body: Any) -> Any:
        """One request to Consul as management."""
        host = self.seen.layout.host(self.seen.servers(dc)[0])
        answer = self.seen.http.request(
            verb,
            f"https://{host.address}:{CONSUL_HTTPS_PORT}/v1/{path}",
            headers={"X-Consul-Token": self.management},
            json=body or None,
        )
        assert answer.status_code == 200, f"{path}: {answer.text}"
        return answer.json()

    def tokens(self, dc: str = PRIMARY) -> dict[str, Any]:
        """All tokens of a datacenter as Consul lists them, by accessor."""
        return {t["AccessorID"]: t for t in self.ask("GET", "acl/tokens", dc)}

    def until_current(self) -> None:
        """Wait until every datacenter has the same tokens."""

        def same() -> bool:
            found = [
                {a: t["Hash"] for a, t in self.tokens(dc).items() if not t["Local"]}
                for dc in DATACENTERS
            ]
            return all(one == found[0] for one in found)

        until(same, "the datacenters to have the same tokens")

    @contextmanager
    def token(self, dc: str = PRIMARY, **body: Any) -> Iterator[dict[str, Any]]:
        """A token, gone afterwards."""
        made = self.ask("PUT", "acl/token", dc, **body)
        self.until_current()
        try:
            yield made
        finally:
            self.ask("DELETE", f"acl/token/{made['AccessorID']}", dc)
            self.until_current()

    @contextmanager
    def edited(self, accessor: str, **fields: Any) -> Iterator[None]:
        """A token of which some fields are otherwise for a while."""
        before = self.ask("GET", f"acl/token/{accessor}")
        keys = ("Description", "Policies", "Roles", "ServiceIdentities", "NodeIdentities")
        was: dict[str, Any] = {key: before.get(key) or [] for key in keys} | {
            "AccessorID": accessor
        }
        self.ask("PUT", f"acl/token/{accessor}", **(was | fields))
        self.until_current()
        try:
            yield
        finally:
            self.ask("PUT", f"acl/token/{accessor}", **was)
            self.until_current()

    @contextmanager
    def kept(self, path: str, accessor: str) -> Iterator[None]:
        """A token's document in Vault, gone afterwards."""
        body = {"data": {"accessor": accessor, "secret": "of the test's own", "state": "live"}}
        vault = self.seen.token()
        made = self.seen.vault(f"mesh/data/{path}", vault, verb="POST", json=body)
        assert made.status_code == 200, made.text
        try:
            yield
        finally:
            self.seen.vault(f"mesh/metadata/{path}", vault, verb="DELETE")

    def tidy(self) -> None:
        """Nothing of a rotation is left."""
        for dc in DATACENTERS:
            for accessor, token in self.tokens(dc).items():
                ours = "rotated by mesh-runbooks" in token["Description"]
                if ours and (token["Local"] or dc == PRIMARY):
                    self.ask("DELETE", f"acl/token/{accessor}", dc)
        vault = self.seen.token()
        for declared in (t for t in self.lab.topology.tokens if t.path):
            self.seen.vault(f"mesh/metadata/{declared.path}", vault, verb="DELETE")
        self.until_current()


@pytest.fixture(scope="module")
def lab(small_lab: Lab) -> Lab:
    """The small lab, up; each test puts back what it plants."""
    small_lab.boot()
    return small_lab


@pytest.fixture
def hand(lab: Lab) -> Hand:
    return Hand(lab)


def audit(hand: Hand, mesh: Path | None = None, **environ: Any) -> Ran:
    """Run the audit; whatever it finds, it changed no token and made no call that changes."""
    before = {dc: hand.tokens(dc) for dc in DATACENTERS}
    words = hand.lab.arguments("token-audit")
    ran = hand.lab.mesh(*words, *(["--mesh", str(mesh)] if mesh else []), **environ)
    assert before == {dc: hand.tokens(dc) for dc in DATACENTERS}
    assert ran.mutating_calls == 0, ran
    assert ran.report["changes"] == []
    return ran


def bad(ran: Ran) -> list[tuple[str, str]]:
    """What fails, in its order."""
    return [(c["name"], c["detail"]) for c in ran.report["checks"] if not c["ok"]]


def fine(ran: Ran) -> set[str]:
    return {c["name"] for c in ran.report["checks"] if c["ok"]}


def test_a_mesh_just_booted_is_good_and_lacks_its_declared_tokens(hand: Hand):
    ran = audit(hand)

    assert (ran.status, ran.outcome, bad(ran)) == (0, "nothing", []), ran
    tokens, engine = ran.report["notices"]
    assert tokens.startswith("declared tokens: no token yet: web-portal reporting-agent payments")
    assert tokens.endswith("; do: run token-rotation")
    assert engine.startswith("catalog-reader: Vault has no such role yet; do: run token-rotation")
    assert fine(ran) == {
        "anonymous token",
        "management tokens",
        "declared tokens",
        "tokens of the boot",
        "lists of tokens",
    }
    assert ran.report["measures"]["tokens"] == {dc: len(hand.tokens(dc)) for dc in DATACENTERS}
    assert ran.report["measures"]["good"] is True


def test_a_plan_does_not_even_look(hand: Hand):
    ran = hand.lab.run("token-audit", plan=True)

    assert (ran.status, ran.outcome, ran.report["checks"]) == (0, "planned", [])


@contextmanager
def second_management(hand: Hand) -> Iterator[str]:
    policy = {"Name": "global-management"}
    with hand.token(Description="for the migration", Policies=[policy]) as made:
        yield f'{made["AccessorID"]} "for the migration" ('


@contextmanager
def management_through_a_role(hand: Hand) -> Iterator[str]:
    role = hand.ask("PUT", "acl/role", Name="all", Policies=[{"Name": "global-management"}])
    try:
        with hand.token(Roles=[{"Name": "all"}]) as made:
            yield f"{made['AccessorID']} ("
    finally:
        hand.ask("DELETE", f"acl/role/{role['ID']}")


@contextmanager
def management_in_effect(hand: Hand) -> Iterator[str]:
    rules = '{"acl": "write", "key_prefix": {"": {"policy": "read"}}}'
    policy = hand.ask("PUT", "acl/policy", Name="deploys", Rules=rules)
    try:
        with hand.token(Description="ci", Policies=[{"Name": "deploys"}]) as made:
            yield f'{made["AccessorID"]} "ci" ('
    finally:
        hand.ask("DELETE", f"acl/policy/{policy['ID']}")


@contextmanager
def management_in_effect_through_a_role(hand: Hand) -> Iterator[str]:
    policy = hand.ask("PUT", "acl/policy", Name="deploys", Rules='acl = "write"')
    role = hand.ask("PUT", "acl/role", Name="ci", Policies=[{"Name": "deploys"}])
    try:
        with hand.token(Roles=[{"Name": "ci"}], ExpirationTTL="1h") as made:
            yield f"{made['AccessorID']} ("
    finally:
        hand.ask("DELETE", f"acl/role/{role['ID']}")
        hand.ask("DELETE", f"acl/policy/{policy['ID']}")


@contextmanager
def orphan(hand: Hand) -> Iterator[str]:
    with hand.token(Description="token of web-portal, rotated by mesh-runbooks"):
        yield "is none that Vault holds for web-portal; do: run token-rotation"


@contextmanager
def second_of_the_boot(hand: Hand) -> Iterator[str]:
    with hand.token(Description="agent of us-app-1"):
        yield "looks like agent-us-app-1 of the boot, which is another token"


@contextmanager
def stranger(hand: Hand) -> Iterator[str]:
    with hand.token(Description="somebody's") as made:
        yield f'{made["AccessorID"]} "somebody\'s" ('


@contextmanager
def stranger_in_the_secondary_only(hand: Hand) -> Iterator[str]:
    with hand.token(SECONDARY, Local=True):
        yield f"local to {SECONDARY}, without expiry) is neither declared nor in foreign_tokens"


@contextmanager
def legacy(hand: Hand) -> Iterator[str]:
    before = set(hand.tokens())
    rules = 'key "" { policy = "read" }'
    made = hand.ask("PUT", "acl/create", Name="of old", Type="client", Rules=rules)
    until(lambda: set(hand.tokens()) - before - {""}, "Consul to give it an accessor")
    (accessor,) = set(hand.tokens()) - before
    hand.until_current()
    try:
        yield f'{accessor} "of old" ('
    finally:
        hand.ask("PUT", f"acl/destroy/{made['ID']}")
        hand.until_current()


@contextmanager
def mighty_anonymous(hand: Hand) -> Iterator[str]:
    with hand.edited(ANONYMOUS, Policies=[{"Name": "mesh-catalog-read"}]):
        yield f"granted policies mesh-catalog-read in {PRIMARY}, {SECONDARY}; do: take that"


@contextmanager
def edited_agent(hand: Hand) -> Iterator[str]:
    accessor = hand.seen.secret("consul/tokens/agent-us-app-1")["accessor"]
    with hand.edited(accessor, Policies=[{"Name": "mesh-catalog-read"}]):
        yield f"{accessor} is not as declared: policies beside: mesh-catalog-read"


@contextmanager
def host_that_is_gone(hand: Hand) -> Iterator[str]:
    identity = {"NodeName": "us-app-9", "Datacenter": PRIMARY}
    with (
        hand.token(Description="agent of us-app-9", NodeIdentities=[identity]) as made,
        hand.kept("consul/tokens/agent-us-app-9", made["AccessorID"]),
    ):
        yield "is for what the topology has no more; do: if that is gone for good, delete"


@contextmanager
def only_in_vault(hand: Hand) -> Iterator[str]:
    with hand.kept("services/web-portal", NOWHERE):
        yield f"Vault has {NOWHERE} at services/web-portal, and Consul has it no more"


@contextmanager
def edited_declared(hand: Hand) -> Iterator[str]:
    text = "token of web-portal, rotated by mesh-runbooks"
    with (
        hand.token(Description=text, Policies=[{"Name": "mesh-catalog-read"}]) as made,
        hand.kept("services/web-portal", made["AccessorID"]),
    ):
        yield (
            f"{made['AccessorID']} is not as declared: policies beside: mesh-catalog-read; "
            "services without web-portal; do: run token-rotation, which puts it back"
        )


@pytest.mark.parametrize(
    ("plant", "subject"),
    [
        (second_management, "management token"),
        (management_through_a_role, "management token"),
        (management_in_effect, "management token"),
        (management_in_effect_through_a_role, "management token"),
        (orphan, "orphan"),
        (second_of_the_boot, "orphan"),
        (stranger, "stranger"),
        (stranger_in_the_secondary_only, "stranger"),
        (legacy, "legacy token"),
        (mighty_anonymous, "anonymous token"),
        (edited_agent, "agent-us-app-1"),
        (host_that_is_gone, "nobody behind"),
        (only_in_vault, "web-portal"),
        (edited_declared, "web-portal"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_planted_is_found_and_nothing_else(
    hand: Hand, plant: Callable[[Hand], AbstractContextManager[str]], subject: str
):
    with plant(hand) as text:
        ran = audit(hand)

    assert (ran.status, ran.outcome) == (1, "failed"), ran
    ((name, detail),) = bad(ran)
    assert name == subject
    assert text in detail
    assert "; do: " in detail
    assert hand.management not in ran.out + ran.err


def test_whoever_may_do_everything_but_write_acls_is_no_manager(hand: Hand):
    """Mighty, and named as the stranger that it is; not as management."""
    rules = 'operator = "write" key "acl" { policy = "write" } # acl = "write"'
    policy = hand.ask("PUT", "acl/policy", Name="operators", Rules=rules)
    try:
        with hand.token(Policies=[{"Name": "operators"}], ExpirationTTL="1h"):
            ran = audit(hand)
    finally:
        hand.ask("DELETE", f"acl/policy/{policy['ID']}")

    assert (ran.status, bad(ran)) == (0, []), ran
    assert [n.partition(":")[0] for n in ran.report["notices"]].count("stranger") == 1


def test_what_a_token_says_of_its_end_and_its_service_is_told_without_an_alarm(hand: Hand):
    identity = {"ServiceName": "retired"}
    with hand.token(ExpirationTTL="1h", ServiceIdentities=[identity]) as made:
        ran = audit(hand)

    assert (ran.status, bad(ran)) == (0, []), ran
    told = [n for n in ran.report["notices"] if made["AccessorID"] in n]
    assert [n.partition(":")[0] for n in told] == ["stranger", "nobody behind"]
    assert "expires in 59 min) is neither declared" in told[0]
    assert "is for no instance in the catalog: retired" in told[1]


def test_what_is_declared_foreign_is_left_alone(hand: Hand):
    with hand.token(Description="terraform run 7") as made:
        mesh = changes.variant(
            hand.lab,
            lambda document: document.update(
                foreign_tokens=[{"accessor": made["AccessorID"]}], tokens=[]
            ),
            "foreign",
        )
        ran = audit(hand, mesh)

    assert (ran.status, bad(ran), ran.report["notices"]) == (0, [], []), ran


def test_an_old_declared_token_is_told_and_a_rotation_that_is_a_day_late_alarms(hand: Hand):
    """What is due since a moment is the next rotation's; the table of the planning has the rest."""
    mesh = changes.variant(
        hand.lab,
        lambda document: [t.update(max_age_hours=1e-6) for t in document["tokens"]],
        "old",
    )
    text = "token of web-portal, rotated by mesh-runbooks"
    with (
        hand.token(Description=text, ServiceIdentities=[{"ServiceName": "web-portal"}]) as made,
        hand.kept("services/web-portal", made["AccessorID"]),
    ):
        ran = audit(hand, mesh)

    assert (ran.status, bad(ran)) == (0, []), ran
    (told,) = [n for n in ran.report["notices"] if n.startswith("web-portal: ")]
    assert f"{made['AccessorID']} is " in told
    assert "old, 0 s are allowed; do: run token-rotation" in told


def test_a_rotation_is_no_alarm_and_leaves_nothing_to_tell(hand: Hand):
    try:
        changes.ends(hand.lab.run("token-rotation"), 0, "verified")
        after = audit(hand)
        words = hand.lab.arguments("token-rotation", {"older_than": 0})
        rotation, meanwhile = hand.lab.start(*words), []
        while rotation.poll() is None:
            meanwhile.append(hand.lab.run("token-audit"))
        changes.ends(hand.lab.ended(rotation), 0, "verified")
    finally:
        hand.tidy()

    assert (after.status, bad(after), after.report["notices"]) == (0, [], []), after
    every = len(with_documents(hand.lab.topology))
    assert ("declared tokens", f"{every} of {every} live as declared") in [
        (c["name"], c["detail"]) for c in after.report["checks"]
    ]
    assert len(meanwhile) > 1
    assert [(ran.status, bad(ran)) for ran in meanwhile] == [(0, [])] * len(meanwhile)
    assert any("a rotation of it is under way" in str(ran.report["notices"]) for ran in meanwhile)


@pytest.mark.parametrize(
    ("rules", "error"),
    [
        ('operator = "read"', "Permission denied"),
        ('acl = "read" operator = "read" node_prefix "" { policy = "read" }', "is not whole"),
    ],
)
def test_whoever_may_not_see_everything_gets_no_verdict(hand: Hand, rules: str, error: str):
    policy = hand.ask("PUT", "acl/policy", Name="half-blind", Rules=rules)
    try:
        with hand.token(Policies=[{"Name": "half-blind"}]) as made:
            ran = audit(hand, MESH_CONSUL_TOKEN=made["SecretID"])
    finally:
        hand.ask("DELETE", f"acl/policy/{policy['ID']}")

    assert (ran.status, ran.outcome) == (1, "failed"), ran
    assert error in str(ran.problem)
    assert fine(ran) == set()
    assert "good" not in ran.report["measures"]


def test_a_datacenter_that_cannot_be_asked_gets_no_verdict(hand: Hand):
    clouds, host = hand.seen.clouds, hand.seen.servers(SECONDARY)[0]
    words = hand.lab.arguments("token-audit")
    assert clouds.run(host, "systemctl stop consul")[0] == 0
    try:
        ran = hand.lab.mesh(*words)
    finally:
        assert clouds.run(host, "systemctl start consul")[0] == 0
        hand.lab.boot()

    assert (ran.status, ran.outcome, ran.mutating_calls) == (1, "failed", 0), ran
    ((name, detail),) = bad(ran)
    assert name == f"{SECONDARY} can be looked at"
    assert "no leader that serves" in detail
    assert fine(ran) == set()
