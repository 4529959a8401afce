"""The few lines above a plan: what was seen, at a glance."""

from __future__ import annotations

from collections import Counter

from blocks.topology import Datacenter, Mesh
from tasks.planning.key_count import count
from tasks.planning.survey import SnapshotSeen, Survey


def overview(mesh: Mesh, survey: Survey) -> list[str]:
    """What was seen of the clouds, Vault, each Consul, and the snapshots; a line each."""
    total = sum(len(dc.hosts) for dc in mesh.datacenters)
    seen = f"Seen {survey.at:%H:%M:%S} UTC ({survey.seconds:.1f} s)"
    lines = [f"{mesh.name}: {len(mesh.datacenters)} datacenters, {total} hosts. {seen}", ""]
    lines += [
        f"  {dc.name:<11} {dc.cloud.kind:<9} {_power(dc, survey):<22} consul {_consul(dc, survey)}"
        for dc in mesh.datacenters
    ]
    lines.append(f"  {'vault':<11} {_vault(mesh, survey):<32} {_shares(mesh, survey)}")
    lines.append(f"  {'snapshots':<11} {_snapshots(survey)}")
    return lines


def _power(dc: Datacenter, survey: Survey) -> str:
    counts = Counter(survey.host(h.name).power for h in dc.hosts)
    return ", ".join(f"{n} of {len(dc.hosts)} {power}" for power, n in counts.most_common())


def _consul(dc: Datacenter, survey: Survey) -> str:
    seen = survey.datacenter(dc.name)
    words = {
        "unknown": "not seen",
        "down": "down",
        "no_leader": "no leader",
        "storm": "ELECTION STORM (boot lock)",
        "serving": "serving",
    }
    text = words[seen.state]
    if seen.state == "serving":
        ca = {
            "ok": "CA on vault signs",
            "builtin": "CA built in",
            "failing": "CA FAILS",
            "off": "Connect OFF",
        }
        off = "Connect OFF (break-glass)" if seen.break_glass else "Connect OFF"
        text += f", {off if seen.connect == 'off' else ca.get(seen.ca, 'CA not seen')}"
    elif dc.hosts and all(survey.host(n).power == "off" for n in dc.consul.servers):
        text = "not seen (hosts off)"
    return text


def _vault(mesh: Mesh, survey: Survey) -> str:
    if all(survey.host(n).power == "off" for n in mesh.vault.nodes):
        return "not seen (hosts off)"
    counts = Counter(survey.node(n).state for n in mesh.vault.nodes)
    return ", ".join(f"{n} {state}" for state, n in counts.most_common())


def _shares(mesh: Mesh, survey: Survey) -> str:
    spec = mesh.vault
    if spec.seal != "shamir":
        return f"seal: {spec.seal}, {survey.vault.sealer}"
    reachable = [h for h in survey.vault.holders.values() if h.reachable and h.shares]
    return (
        f"shares: {len(reachable)} holders have {count(mesh, survey).held} of {spec.key_shares},"
        f" threshold {spec.key_threshold}"
    )


def _snapshots(survey: Survey) -> str:
    def one(name: str, snapshot: SnapshotSeen | None) -> str:
        if snapshot is None:
            return f"{name} none"
        if not snapshot.restorable:
            return f"{name} NOT RESTORABLE ({snapshot.error})"
        hours = (survey.at - snapshot.taken).total_seconds() / 3600
        age = f"{hours:.0f} h" if hours >= 2 else f"{hours * 60:.0f} min"
        return f"{name} {age} old"

    return f"{one('vault', survey.vault.snapshot)}, {one('consul', survey.consul_snapshot)}"
