"""
If everything went dark now, would it come back? A verdict with its reasons.

Pure: a survey of the mesh as it stands, and what only a closer look can tell.
"""

from __future__ import annotations

from collections.abc import Iterator

from blocks import boot_graph
from blocks.topology import Mesh
from tasks.planning import readiness_means as means
from tasks.planning.plan import compress
from tasks.planning.survey import Survey
from tasks.planning.verdict import Closer, Finding, Verdict

__all__ = ["Closer", "Finding", "Verdict", "judge"]


def judge(mesh: Mesh, survey: Survey, closer: Closer | None = None) -> Verdict:
    """Whether a boot from all-dark would succeed now, each reason a finding."""
    closer = closer or Closer()
    findings = [
        *_graph(mesh),
        *_hosts(mesh, survey),
        *means.keys(mesh, survey),
        *means.snapshot(mesh, survey, "Vault", survey.vault.snapshot),
        *means.snapshot(mesh, survey, "Consul", survey.consul_snapshot),
        *means.certificates(mesh, survey),
        *means.tokens(mesh, survey, closer),
        *_issuers(mesh, survey),
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


def _issuers(mesh: Mesh, survey: Survey) -> Iterator[Finding]:
    # Consul before 1.15 never sees that Vault keeps several issuers (hashicorp/consul#15217).
    for dc in mesh.datacenters:
        if survey.datacenter(dc.name).issuer in {"pinned", "fixed"}:
            mount = dc.consul.intermediate_pki_path.strip("/")
            yield Finding(
                "warn",
                dc.name,
                f"an intermediate that is renewed at {mount} would not be the one that signs",
                f"unless it is pinned on purpose: set default_follows_latest_issuer=true at {mount}/config/issuers",
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
        over = survey.maintenance_ends is not None and survey.maintenance_ends <= survey.at
        yield Finding(
            "fail" if over else "warn",
            "Connect CA",
            f"Consul's own for planned Vault work: {survey.maintenance}"
            + (", FORGOTTEN" if over else ""),
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
