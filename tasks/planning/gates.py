"""Why a cold boot may change nothing: hosts, certificates, Consul's ACLs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from datetime import timedelta

from blocks.topology import Certificate, Mesh
from tasks.planning.plan import Refusal, compress
from tasks.planning.survey import ConsulSeen, Survey
from tasks.planning.vault_route import Way

SOON = timedelta(days=7)


def host_refusals(mesh: Mesh, survey: Survey, touched: Collection[str]) -> Iterator[Refusal]:
    """Machines that are not there, cannot be turned on, or do not let us in."""
    for dc in mesh.datacenters:
        seen = {host.name: survey.host(host.name) for host in dc.hosts}
        if missing := [name for name, host in seen.items() if host.power == "missing"]:
            yield Refusal(
                f"its cloud has no machine named {compress(missing)}",
                "restore the machine, or correct the host's `instance` in the topology",
                dc.name,
            )
        blind = {n: h for n, h in seen.items() if h.power == "unknown" and h.ssh == "unknown"}
        if blind:
            error = next((h.error for h in blind.values() if h.error), "")
            yield Refusal(
                f"{compress(blind)} may be off, and its cloud does not answer"
                + (f": {error}" if error else ""),
                f"correct the {dc.cloud.kind} credentials or make its API reachable from here,"
                " or turn the machines on by hand",
                dc.name,
                bad_input=True,
            )
        for name, host in seen.items():
            if host.ssh == "refused" and name in touched:
                yield Refusal(
                    f"SSH is refused: {host.error or 'no reason given'}",
                    "correct host_key, ssh_user or the key in the topology and credentials",
                    name,
                )


def expired(mesh: Mesh, survey: Survey) -> list[Certificate]:
    """The certificates that ran out while the power was off, or before."""
    found = []
    for certificate in mesh.certificates:
        seen = survey.certificates.get((certificate.host, certificate.path))
        if seen and seen.not_after and seen.not_after <= survey.at:
            found.append(certificate)
    return found


def renewable(certificate: Certificate, way: Way) -> bool:
    """Whether this boot can renew it: Vault issues it and does not need it to serve."""
    return certificate.used_by == "consul" and certificate.issued_by == "vault" and way != "broken"


def certificate_refusals(mesh: Mesh, survey: Survey, way: Way) -> Iterator[Refusal]:
    """Expired certificates that nothing of the mesh can renew in time."""
    for certificate in expired(mesh, survey):
        if renewable(certificate, way):
            continue
        seen = survey.certificates[certificate.host, certificate.path]
        assert seen.not_after is not None
        if certificate.issued_by == "operator":
            do = "issue it anew by the operator's CA"
        elif certificate.used_by == "vault":
            do = "Vault cannot renew it before it serves: issue it by the operator's CA"
        else:
            do = (
                "Vault, which issues it, stays down with break-glass: issue it by the operator's CA"
            )
        yield Refusal(
            f"the certificate {certificate.path} of {certificate.used_by}"
            f"{f' ({seen.subject})' if seen.subject else ''} expired {seen.not_after:%Y-%m-%d %H:%M}",
            f"{do}, and put it and its key to {certificate.path} and {certificate.key_path}",
            certificate.host,
        )


def consul_refusals(mesh: Mesh, survey: Survey, way: Way) -> Iterator[Refusal]:
    """What of Consul's state only a person may decide."""
    for dc in mesh.datacenters:
        seen = survey.datacenter(dc.name)
        if seen.connect == "off" and seen.break_glass is None:
            yield Refusal(
                "Connect is off, and not by a fallback of this runbook",
                f"set connect.enabled to true in {dc.consul.config_dir} on its servers, if nobody meant it",
                dc.name,
            )
    if way != "broken":
        yield from _acl_refusals(mesh, survey, way)


def _acl_refusals(mesh: Mesh, survey: Survey, way: Way) -> Iterator[Refusal]:
    primary = survey.datacenter(mesh.primary)
    kept = f"{mesh.vault.kv_mount}/consul/bootstrap"
    if primary.acl == "bootstrapped" and (primary.token == "absent" or way == "init"):
        yield Refusal(
            f"Consul's ACLs are bootstrapped, and Vault has no management token in {kept}",
            f"write that token to {kept} (accessor, secret, state=stored), restore the Vault that had it"
            " (fallback=restore-vault), or reset the ACL bootstrap by Consul's own procedure",
            mesh.primary,
        )
    if primary.token == "denied":
        yield Refusal(
            f"Consul answers 403 to the management token that Vault keeps in {kept}",
            f"write a valid management token to {kept}, or reset the ACL bootstrap by Consul's own procedure",
            mesh.primary,
        )
    if primary.acl == "absent" and primary.token == "stored":
        yield Refusal(
            f"Consul has no ACLs, and Vault keeps their management token in {kept}: Consul's data is gone",
            f"restore the newest Consul snapshot; to begin anew instead, delete {kept} in Vault",
            mesh.primary,
        )


def notices(mesh: Mesh, survey: Survey, way: Way) -> Iterator[str]:
    """What the operator should know besides the plan."""
    for dc in mesh.datacenters:
        seen = survey.datacenter(dc.name)
        if seen.state == "storm":
            yield (
                f"{dc.name}: election storm, the boot lock: Consul's CA provider is Vault, which does not serve;"
                " no leader stands until it does"
            )
        if seen.break_glass is not None:
            yield _glass(dc.name, survey, seen)
        if way == "broken" and seen.state == "serving" and seen.connect == "on":
            yield f"{dc.name}: a leader stands from before, so Connect stays on; a restart would lock it"
    if way == "broken":
        yield (
            "break-glass: KV, catalog and ACL will serve; new leaf certificates, the mesh gateways and traffic"
            " between datacenters will not, until a run with fallback=wait puts Connect back"
        )
    if survey.datacenter(mesh.primary).ca == "builtin" and survey.maintenance:
        yield f"the CA is Consul's own on purpose ({survey.maintenance}) and is left there"
    for certificate in mesh.certificates:
        seen_at = survey.certificates.get((certificate.host, certificate.path))
        if seen_at and seen_at.not_after and survey.at < seen_at.not_after <= survey.at + SOON:
            hours = (seen_at.not_after - survey.at).total_seconds() / 3600
            yield f"{certificate.host}: {certificate.path} expires in {hours:.0f} h"
    for name, host in survey.hosts.items():
        if host.ssh == "refused":
            yield f"{name}: SSH is refused: {host.error}; what runs there could not be seen"


def _glass(name: str, survey: Survey, seen: ConsulSeen) -> str:
    assert seen.break_glass is not None
    since = f"{seen.break_glass.since:%Y-%m-%d %H:%M}"
    if seen.break_glass.expires <= survey.at:
        late = (survey.at - seen.break_glass.expires).total_seconds() / 3600
        return (
            f"{name}: BREAK-GLASS SINCE {since}, ITS TIME RAN OUT {late:.1f} H AGO: Connect is off"
        )
    left = (seen.break_glass.expires - survey.at).total_seconds() / 3600
    return f"{name}: break-glass since {since}, {left:.1f} h left: Connect is off"
