"""
If everything went dark now, would it come back? A verdict with its reasons.

Pure: a survey of the mesh as it stands, and what only a closer look can tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from blocks import boot_graph
from blocks.topology import Mesh
from tasks.planning.gates import renewable
from tasks.planning.key_count import count
from tasks.planning.plan import compress
from tasks.planning.survey import SnapshotSeen, Survey

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at: how it stands, and what to do if it does not."""

    level: Level
    subject: str
    text: str
    do: str = ""


@dataclass(frozen=True)
class Verdict:
    """All findings, the worst first; ready if none of them fails."""

    findings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        """Whether the mesh would come back from the dark."""
        return not any(f.level == "fail" for f in self.findings)

    def as_rows(self) -> list[dict[str, Any]]:
        """The findings as a table."""
        return [
            {"level": f.level, "subject": f.subject, "text": f.text, "do": f.do}
            for f in self.findings
        ]


@dataclass(frozen=True)
class Closer:
    """What a readiness run looks at besides the survey."""

    ca_token: timedelta | None = None  # life left of the token that Consul signs with
    gateways: Mapping[str, str] = field(default_factory=dict)  # by host: "" or why not dialled


def judge(mesh: Mesh, survey: Survey, closer: Closer | None = None) -> Verdict:
    """Whether a boot from all-dark would succeed now, each reason a finding."""
    closer = closer or Closer()
    findings = [
        *_graph(mesh),
        *_hosts(mesh, survey),
        *_keys(mesh, survey),
        *_snapshot(mesh, survey, "Vault", survey.vault.snapshot),
        *_snapshot(mesh, survey, "Consul", survey.consul_snapshot),
        *_certificates(mesh, survey),
        *_tokens(mesh, survey, closer),
        *_gateways(mesh, closer),
        *_fallbacks(mesh, survey),
    ]
    rank = {"fail": 0, "warn": 1, "ok": 2}
    return Verdict(tuple(sorted(findings, key=lambda f: rank[f.level])))


def _graph(mesh: Mesh) -> Iterator[Finding]:
    found = boot_graph.graph(mesh)
    cycles = found.cycles()
    for line in cycles:
        circle, _, cut = line.partition("; cut: ")
        yield Finding("fail", "boot graph", circle, cut)
    if not cycles:
        yield Finding("ok", "boot graph", f"{len(found.nodes)} parts, none waits for itself")


def _hosts(mesh: Mesh, survey: Survey) -> Iterator[Finding]:
    fine = 0
    for dc in mesh.datacenters:
        seen = {host.name: survey.host(host.name) for host in dc.hosts}
        unpinned = [h.name for h in dc.hosts if not h.host_key]
        missing = [n for n, h in seen.items() if h.power == "missing"]
        blind = {n: h for n, h in seen.items() if h.power == "unknown"}
        shut = {n: h for n, h in seen.items() if h.ssh == "refused"}
        dumb = [n for n, h in seen.items() if h.power == "on" and h.ssh == "unknown"]
        if unpinned:
            yield Finding(
                "fail",
                dc.name,
                f"no host key is pinned for {compress(unpinned)}",
                "set host_key in the topology; SSH refuses the host otherwise",
            )
        if missing:
            yield Finding(
                "fail",
                dc.name,
                f"its cloud has no machine named {compress(missing)}",
                "restore the machine, or correct the host's `instance` in the topology",
            )
        if blind:
            error = next(iter(blind.values())).error or "no answer"
            yield Finding(
                "fail",
                dc.name,
                f"its cloud could not be asked about {compress(blind)}: {error}",
                f"make the {dc.cloud.kind} API reachable, and its credentials valid",
            )
        for name, host in shut.items():
            yield Finding(
                "fail",
                name,
                f"SSH is refused: {host.error}",
                "correct host_key, ssh_user or the key",
            )
        if dumb:
            yield Finding(
                "warn",
                dc.name,
                f"on, and SSH does not answer: {compress(dumb)}",
                "look at sshd there",
            )
        fine += len(seen) - len({*unpinned, *missing, *blind, *shut, *dumb})
    if fine:
        yield Finding("ok", "hosts", f"{fine} can be powered on and entered")


def _keys(mesh: Mesh, survey: Survey) -> Iterator[Finding]:
    keys = count(mesh, survey)
    if mesh.vault.seal != "shamir":
        if survey.vault.sealer == "answering":
            yield Finding("ok", "vault seal", f"the {mesh.vault.seal} seal answers")
        else:
            yield Finding(
                "fail",
                "vault seal",
                f"the {mesh.vault.seal} seal does not answer, no node would open its listener",
                "bring the sealing service back; vault.seal_address names it",
            )
        return
    have = f"{keys.held} of the {keys.threshold} shares needed can be reached"
    reasons = "; ".join(keys.lines)
    if not keys.enough:
        yield Finding(
            "fail",
            "unseal shares",
            f"{have}: {reasons}",
            "make another holder's store readable, or declare a holder with store: prompt",
        )
        return
    if reasons:
        yield Finding(
            "warn", "unseal shares", f"{have}: {reasons}", "see to these holders, then rekey"
        )
    people = [h.name for h in mesh.vault.holders if h.store == "prompt"]
    without_people = keys.stored
    if people and without_people < keys.threshold:
        yield Finding(
            "warn",
            "unseal shares",
            f"{keys.threshold - without_people} must be typed in by {', '.join(people)}",
            "have a custodian reachable at any hour",
        )
    largest = max((h.shares for h in survey.vault.holders.values() if h.state == "held"), default=0)
    if keys.held - largest < keys.threshold:
        yield Finding(
            "warn",
            "unseal shares",
            "no holder may be lost: without the largest the threshold is not met",
            "spread the shares over more holders",
        )
    elif not reasons:
        yield Finding("ok", "unseal shares", f"{have}, and any one holder may be lost")


def _snapshot(
    mesh: Mesh, survey: Survey, what: str, seen: SnapshotSeen | None
) -> Iterator[Finding]:
    subject = f"{what} snapshot"
    again = "run the snapshot runbook, and see that it is scheduled"
    if seen is None:
        do = (
            again
            if mesh.vault.snapshots.directory
            else "set vault.snapshots.directory, and " + again
        )
        yield Finding("fail", subject, "there is none: lost disks would be lost data", do)
        return
    hours = (survey.at - seen.taken).total_seconds() / 3600
    limit = mesh.vault.snapshots.max_age_hours
    if not seen.restorable:
        yield Finding(
            "fail", subject, f"{seen.where} cannot be restored: {seen.error or 'incomplete'}", again
        )
    elif hours > limit:
        yield Finding("fail", subject, f"{hours:.1f} h old, at most {limit:g} h are allowed", again)
    else:
        yield Finding("ok", subject, f"{hours:.1f} h old, restorable: {seen.where}")


def _certificates(mesh: Mesh, survey: Survey) -> Iterator[Finding]:
    outage = timedelta(hours=mesh.longest_outage_hours)
    lasting: list[tuple[timedelta, str]] = []
    for certificate in mesh.certificates:
        subject = f"{certificate.host} {certificate.path}"
        seen = survey.certificates.get((certificate.host, certificate.path))
        if seen is None or seen.not_after is None:
            error = seen.error if seen else ""
            yield Finding(
                "warn", subject, f"could not be read{error and ': '}{error}", "look at it"
            )
            continue
        left = seen.not_after - survey.at
        if left > outage:
            lasting.append((left, subject))
            continue
        gone = left <= timedelta(0)
        text = (
            f"expired {_span(-left)} ago"
            if gone
            else f"ends in {_span(left)}, an outage may last {_span(outage)}"
        )
        if renewable(certificate, "serves"):
            yield Finding(
                "warn", subject, f"{text}; a boot renews it once Vault serves", "renew it now"
            )
        else:
            yield Finding(
                "fail",
                subject,
                f"{text}; {certificate.used_by} would not start with it",
                "renew it now",
            )
    if lasting:
        left, subject = min(lasting)
        yield Finding(
            "ok",
            "certificates",
            f"{len(lasting)} outlive an outage of {_span(outage)}; the first ends in {_span(left)} ({subject})",
        )


def _tokens(mesh: Mesh, survey: Survey, closer: Closer) -> Iterator[Finding]:
    outage = timedelta(hours=mesh.longest_outage_hours)
    left = closer.ca_token
    period = f"vault.ca_token_period is {mesh.vault.ca_token_period}"
    renew = f"let Consul reach Vault, which renews it; {period}"
    if left is None:
        yield Finding("warn", "CA token", "its time to live could not be read", renew)
    elif left <= outage:
        yield Finding(
            "fail",
            "CA token",
            f"ends in {_span(left)}, an outage may last {_span(outage)}: Consul could sign no more",
            renew,
        )
    else:
        yield Finding("ok", "CA token", f"lives {_span(left)}, an outage may last {_span(outage)}")
    state = survey.datacenter(mesh.primary).token
    kept = f"{mesh.vault.kv_mount}/consul/bootstrap"
    if state in {"absent", "denied"}:
        what = "is not there" if state == "absent" else "answers 403"
        yield Finding(
            "fail", "Consul's management token", f"the one in {kept} {what}", f"write it to {kept}"
        )
    if mesh.vault.credential and survey.vault.credential in {"none", "unknown"}:
        yield Finding(
            "fail",
            "the runbooks' credential",
            f'cannot be read from "{mesh.vault.credential.name}"',
            "make its store readable, or run cold-boot, which issues a new one",
        )


def _gateways(mesh: Mesh, closer: Closer) -> Iterator[Finding]:
    fine = []
    for dc in mesh.datacenters:
        for gateway in dc.gateways:
            error = closer.gateways.get(gateway.host)
            if error is None:
                yield Finding("warn", gateway.host, f"{gateway.wan} was not dialled", "dial it")
            elif error:
                yield Finding(
                    "fail",
                    gateway.host,
                    f"{gateway.wan} cannot be dialled: {error}",
                    f"correct datacenters[{dc.name}].gateways[{gateway.host}].wan, or start the gateway",
                )
            else:
                fine.append(gateway.host)
    if fine:
        yield Finding("ok", "gateways", f"{compress(fine)} can be dialled")


def _fallbacks(mesh: Mesh, survey: Survey) -> Iterator[Finding]:
    for dc in mesh.datacenters:
        glass = survey.datacenter(dc.name).break_glass
        if glass is None:
            continue
        late = survey.at >= glass.expires
        yield Finding(
            "fail",
            dc.name,
            f"break-glass since {glass.since:%Y-%m-%d %H:%M}, Connect is off"
            + (", ITS TIME RAN OUT" if late else f" until {glass.expires:%Y-%m-%d %H:%M}"),
            "run cold-boot with fallback=wait, which puts Connect back",
        )
    if survey.maintenance:
        yield Finding(
            "warn",
            "Connect CA",
            f"Consul's own for planned Vault work: {survey.maintenance}",
            "end it with vault-maintenance",
        )
    if survey.vault.incident:
        yield Finding(
            "warn",
            "vault",
            f"marked as sealed on purpose: {survey.vault.incident}",
            "a boot will ask for unseal_incident=true; take the mark away when it is over",
        )
    lame = [n for n in mesh.vault.nodes if not survey.node(n).unsealed]
    voters = survey.vault.voters
    absent = [] if voters is None else [n for n in mesh.vault.nodes if n not in voters]
    if lame or absent:
        names = compress(n for n in mesh.vault.nodes if n in {*lame, *absent})
        yield Finding("warn", "vault", f"no healthy voter now: {names}", "run cold-boot")


def _span(time: timedelta) -> str:
    hours = time.total_seconds() / 3600
    return f"{hours / 24:.0f} days" if hours >= 96 else f"{hours:.0f} h"
