"""
The plan of a cold boot: what is left to do from what was seen.

Pure, and the same from every starting state: from the dark it plans what it
expects to find, from a healthy mesh it plans to prove it. An interrupted boot
is just another survey.
"""

from __future__ import annotations

from blocks.topology import Mesh
from tasks.planning import gates, steps_consul, steps_services, steps_vault
from tasks.planning.draft import Boot, Draft
from tasks.planning.options import Fallback, Options
from tasks.planning.plan import Plan, PlannedStep, Refusal, Stage
from tasks.planning.survey import (
    BreakGlass,
    CertificateSeen,
    ConsulSeen,
    HolderSeen,
    HostSeen,
    NodeSeen,
    SnapshotSeen,
    Survey,
    VaultSeen,
)
from tasks.planning.vault_route import route

__all__ = [
    "BreakGlass",
    "CertificateSeen",
    "ConsulSeen",
    "Fallback",
    "HolderSeen",
    "HostSeen",
    "NodeSeen",
    "Options",
    "Plan",
    "PlannedStep",
    "Refusal",
    "SnapshotSeen",
    "Stage",
    "Survey",
    "VaultSeen",
    "plan_cold_boot",
]


def plan_cold_boot(mesh: Mesh, survey: Survey, options: Options | None = None) -> Plan:
    """
    What to do so that the mesh is up and proven, or why nothing may be done.

    A plan with refusals has no steps. One for a healthy mesh has only steps
    that look.
    """
    options = options or Options()
    vault = route(mesh, survey, options)
    draft = _write(Boot(mesh, survey, options, vault))
    refusals = [
        *gates.host_refusals(mesh, survey, draft.hosts),
        *vault.refusals,
        *gates.certificate_refusals(mesh, survey, vault.way),
        *gates.consul_refusals(mesh, survey, vault.way),
    ]
    notices = (*gates.notices(mesh, survey, vault.way), *vault.notices)
    if refusals:
        return Plan(refusals=tuple(refusals), notices=notices)
    return Plan(tuple(draft.steps.values()), notices=notices)


def _write(boot: Boot) -> Draft:
    """All steps for which something is left to do, in the order of the boot graph."""
    for dc in boot.mesh.datacenters:
        steps_vault.power(boot, dc)
    for dc in boot.mesh.datacenters:
        steps_consul.hold(boot, dc)
    if not boot.broken:
        steps_vault.vault(boot)
        steps_vault.renew(boot)
        for dc in boot.mesh.datacenters:
            steps_services.clients(boot, dc)
    steps_consul.consul(boot, boot.primary)
    if not boot.broken:
        steps_consul.bootstrap(boot)
        steps_consul.tokens(boot, boot.primary)
        steps_consul.connect_ca(boot, boot.primary)
        steps_consul.agents(boot, boot.primary)
        steps_consul.gateways(boot, boot.primary)
    # Stage by stage, so that datacenters alike stand together in the plan.
    for dc in boot.mesh.secondaries:
        steps_consul.consul(boot, dc)
    if not boot.broken:
        for dc in boot.mesh.secondaries:
            steps_consul.tokens(boot, dc)
        for dc in boot.mesh.secondaries:
            steps_consul.connect_ca(boot, dc)
        for dc in boot.mesh.secondaries:
            steps_consul.agents(boot, dc)
        for dc in boot.mesh.secondaries:
            steps_consul.gateways(boot, dc)
        for dc in boot.mesh.secondaries:
            steps_consul.federate(boot, dc)
        steps_services.intentions(boot)
        for dc in boot.mesh.datacenters:
            steps_services.services(boot, dc)
    steps_services.components(boot)
    steps_services.prove(boot)
    return boot.draft
