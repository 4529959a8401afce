"""Steps of a cold boot: power, and Vault until it serves."""

from __future__ import annotations

from blocks.topology import Datacenter
from tasks.planning import gates
from tasks.planning.draft import Boot
from tasks.planning.key_count import shares_needed


def power(boot: Boot, dc: Datacenter) -> None:
    """Power on what is off, and wait for what is coming up."""
    seen = {host.name: boot.survey.host(host.name) for host in dc.hosts}
    first = [n for n in boot.mesh.vault.nodes if n in seen]
    order = list(dict.fromkeys([*first, *dc.consul.servers, *seen]))
    where = f"aws {dc.cloud.region}" if dc.cloud.kind == "aws" else "proxmox"
    off = [n for n in order if seen[n].power in {"off", "changing"}]
    boot.draft.add(
        f"power:{dc.name}", "power", "power on", off, f"off in {where}", datacenter=dc.name
    )
    mute = [n for n in order if seen[n].power == "on" and seen[n].ssh == "unknown"]
    boot.draft.add(
        f"reach:{dc.name}",
        "power",
        "wait for",
        mute,
        "on, and SSH does not answer yet",
        datacenter=dc.name,
    )


def vault(boot: Boot) -> None:
    """Everything until Vault serves and is set up as declared."""
    spec, vault = boot.mesh.vault, boot.vault
    on = boot.on(spec.nodes)
    boot.draft.add(
        "start:vault",
        "start",
        "start vault",
        vault.start,
        "the process is down",
        on,
        hosts=vault.start,
    )
    auto = spec.seal != "shamir"
    boot.draft.add(
        "restart:vault",
        "start",
        "restart vault",
        vault.restart,
        f"{spec.seal} seal: a restart unseals it" if auto else "accepts connections, never answers",
        on,
        hosts=vault.restart,
    )
    up = [*on, "start:vault", "restart:vault"]
    first = spec.nodes[:1]
    if vault.way == "restore":
        _restore(boot, up)
    if vault.way == "init":
        if vault.set_aside:
            boot.draft.add(
                "set-aside",
                "init",
                "set aside",
                spec.nodes,
                "data under keys that nobody has",
                up,
                hosts=spec.nodes,
            )
        boot.draft.add(
            "init",
            "init",
            "initialise",
            first,
            f"no node has data; {spec.key_shares} shares to {len(spec.holders)} holders, threshold"
            f" {spec.key_threshold}",
            [*up, "set-aside"],
            expected=vault.expected,
        )
    if vault.unseal:
        _unseal(boot, [*up, "init", "restore"], auto=auto)
    if vault.setup:
        boot.draft.add(
            "setup",
            "setup",
            "set up",
            ("vault",),
            "audit, KV, PKI, policies, AppRole and CA token as declared; the root token is revoked",
            [*up, "unseal"],
            expected=vault.expected,
        )


def _restore(boot: Boot, up: list[str]) -> None:
    snapshot = boot.survey.vault.snapshot
    if snapshot is None:
        return  # refused
    minutes = (boot.survey.at - snapshot.taken).total_seconds() / 60
    boot.draft.add(
        "restore",
        "restore",
        "restore vault",
        boot.mesh.vault.nodes,
        f"its data is gone; newest snapshot {snapshot.where}, {minutes:.0f} min old",
        up,
        expected=boot.vault.expected,
        hosts=boot.mesh.vault.nodes,
    )


def _unseal(boot: Boot, up: list[str], *, auto: bool) -> None:
    needed = shares_needed(boot.mesh, boot.survey)
    reason = f"unseals itself by {boot.mesh.vault.seal}" if auto else f"{needed} shares each"
    for name in boot.vault.unseal:
        node = boot.survey.node(name)
        if node.progress:
            reset = boot.options.allow_reset_unseal_progress
            how = "is reset, as approved" if reset else "is built on"
            reason += f"; {name} has {node.progress} given, which {how}"
    boot.draft.add(
        "unseal",
        "unseal",
        "wait for" if auto else "unseal",
        boot.vault.unseal,
        reason,
        up,
        expected=boot.vault.expected,
    )


def renew(boot: Boot) -> None:
    """Renew Consul's expired certificates once Vault can issue them."""
    due = [c for c in gates.expired(boot.mesh, boot.survey) if gates.renewable(c, boot.vault.way)]
    for dc in boot.mesh.datacenters:
        mine = [c for c in due if boot.home[c.host] == dc.name]
        boot.draft.add(
            f"renew:{dc.name}",
            "renew",
            "renew",
            [c.host for c in mine],
            f"expired: {', '.join(dict.fromkeys(c.path for c in mine))}; issued by Vault",
            [*boot.on(c.host for c in mine), *boot.vault_up, "setup", "restore"],
            datacenter=dc.name,
            hosts=[c.host for c in mine],
        )
