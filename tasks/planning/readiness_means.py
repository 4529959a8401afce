"""Whether what a boot needs would be there: shares, snapshots, certificates, tokens."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from blocks.topology import Mesh
from tasks.planning.gates import renewable
from tasks.planning.key_count import count
from tasks.planning.survey import SnapshotSeen, Survey
from tasks.planning.verdict import Closer, Finding


def keys(mesh: Mesh, survey: Survey) -> Iterator[Finding]:
    """Can Vault be unsealed?"""
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


def snapshot(mesh: Mesh, survey: Survey, what: str, seen: SnapshotSeen | None) -> Iterator[Finding]:
    """Is there a fresh snapshot that can be restored?"""
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


def certificates(mesh: Mesh, survey: Survey) -> Iterator[Finding]:
    """Do the certificates outlive the longest outage?"""
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


def tokens(mesh: Mesh, survey: Survey, closer: Closer) -> Iterator[Finding]:
    """Do the credentials that a boot needs outlive it?"""
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


def _span(time: timedelta) -> str:
    hours = time.total_seconds() / 3600
    return f"{hours / 24:.0f} days" if hours >= 96 else f"{hours:.0f} h"
