"""Steps of a cold boot: Consul, its ACLs and CA, the gateways and the federation."""

from __future__ import annotations

from collections.abc import Iterable

from blocks.topology import Datacenter
from tasks.planning.draft import Boot
from tasks.planning.survey import ConsulSeen


def hold(boot: Boot, dc: Datacenter) -> None:
    """Keep Consul's servers from the election storm until Vault serves."""
    seen = boot.survey.datacenter(dc.name)
    if boot.broken or boot.survey.vault.active or seen.state == "serving" or seen.ca == "builtin":
        return  # break-glass stops the servers itself
    if boot.vault.way == "init" and seen.state != "storm":
        return  # before day 0 no CA is on Vault, and nothing can lock
    targets = [n for n in dc.consul.servers if boot.may_run(n, dc.consul.unit)]
    reason = "election storm" if seen.state == "storm" else "boot lock"
    boot.draft.add(
        f"hold:{dc.name}",
        "hold",
        "hold",
        targets,
        f"{reason}: CA provider = vault; until Vault serves,"
        f" at most {boot.options.vault_deadline:g} s",
        boot.on(targets),
        datacenter=dc.name,
        expected=seen.state == "unknown",
        hosts=targets,
    )


def consul(boot: Boot, dc: Datacenter) -> None:
    """Start the servers, without Connect or with it again as the fallback says."""
    seen = boot.survey.datacenter(dc.name)
    held = f"hold:{dc.name}" in boot.draft  # those that run now are stopped first
    down = [n for n in dc.consul.servers if held or n not in seen.up]
    ready = [*boot.on(dc.consul.servers), f"hold:{dc.name}"]
    if boot.broken:
        _break(boot, dc, seen, ready)
        return
    waits = [*ready, f"renew:{dc.name}", *boot.vault_up]
    if dc.name != boot.mesh.primary:
        # A secondary whose leader stands before the primary's does waits up to half a
        # minute in back-offs; the gateways need only listen.
        waits += [*boot.consul_up(boot.mesh.primary), "setup", "bootstrap"]
        waits += [f"ca:{boot.mesh.primary}"]
        waits += [f"tokens:{boot.mesh.primary}"]
        waits += [f"clients:{d.name}" for d in boot.mesh.datacenters]
    if seen.connect == "off":
        boot.draft.add(
            f"unbreak:{dc.name}",
            "unbreak",
            "put Connect back",
            dc.consul.servers,
            "break-glass is over once Vault serves",
            waits,
            datacenter=dc.name,
            hosts=dc.consul.servers,
        )
    elif seen.state != "serving" or down:
        boot.draft.add(
            f"consul:{dc.name}",
            "consul",
            "start consul",
            down or dc.consul.servers,
            "prove quorum, a leader and a consistent read",
            waits,
            datacenter=dc.name,
            expected=seen.state == "unknown",
            hosts=down or dc.consul.servers,
        )


def _break(boot: Boot, dc: Datacenter, seen: ConsulSeen, ready: list[str]) -> None:
    down = [n for n in dc.consul.servers if n not in seen.up]
    hours = f"{boot.options.break_glass_hours:g} h"
    if seen.state == "serving" and seen.connect != "off" and not down:
        return  # its leader stands; a restart would only lock it
    if seen.state == "serving" and seen.connect == "off" and not down:
        over = seen.break_glass is not None and seen.break_glass.expires <= boot.survey.at
        action, reason = "extend", f"its time ran out and Vault is not back; {hours} more"
        if not over:
            return
    else:
        action = "start without Connect"
        reason = f"CA provider = vault, which does not serve; for {hours} at most"
    boot.draft.add(
        f"break-glass:{dc.name}",
        "break-glass",
        action,
        dc.consul.servers,
        reason,
        ready,
        datacenter=dc.name,
        expected=seen.state == "unknown",
        hosts=dc.consul.servers,
    )


def bootstrap(boot: Boot) -> None:
    """Bootstrap the ACLs once, or recover a bootstrap whose answer was lost."""
    seen = boot.survey.datacenter(boot.mesh.primary)
    waits = [*boot.consul_up(boot.mesh.primary), *boot.vault_up, "setup", "restore"]
    if seen.acl == "bootstrapped" and seen.token == "unswept":
        boot.draft.add(
            "sweep",
            "bootstrap",
            "recover",
            ("acl",),
            "a token of a bootstrap whose answer was lost may still live",
            waits,
            datacenter=boot.mesh.primary,
        )
        return
    if seen.acl == "bootstrapped" and seen.token == "intended":
        action, reason = "recover", "its answer was lost: the bootstrap is reset and done again"
    elif seen.acl == "absent":
        action, reason = (
            "bootstrap",
            "no ACL yet; the token is stored in Vault before it is used",
        )
    elif seen.acl == "unknown" and (
        boot.vault.way == "init" or seen.token in {"absent", "intended"}
    ):
        action, reason = "bootstrap", "Vault keeps no management token yet"
    else:
        return
    boot.draft.add(
        "bootstrap",
        "bootstrap",
        action,
        ("acl",),
        reason,
        waits,
        datacenter=boot.mesh.primary,
        expected=seen.acl == "unknown",
    )


def tokens(boot: Boot, dc: Datacenter) -> None:
    """Give servers their tokens where they lack them."""
    targets = _untokened(boot, dc, dc.consul.servers)
    waits = [
        *boot.consul_up(dc.name),
        *boot.on(targets),
        *boot.vault_up,
        "setup",
        "bootstrap",
    ]
    if dc.name != boot.mesh.primary:
        waits += [f"tokens:{boot.mesh.primary}", f"gateways:{boot.mesh.primary}"]
    boot.draft.add(
        f"tokens:{dc.name}",
        "tokens",
        "give tokens to",
        targets,
        "each server its own, stored in Vault first",
        waits,
        datacenter=dc.name,
        expected="bootstrap" in boot.draft,
        hosts=targets,
    )


def agents(boot: Boot, dc: Datacenter) -> None:
    """
    Give client agents their tokens where they lack them, once the CA is on Vault.

    An agent asks for its leaves as soon as it has a token, and keeps one of
    Consul's built-in CA, which other datacenters do not trust, up to a minute.
    """
    targets = _untokened(boot, dc, boot.mesh.client_hosts(dc.name))
    boot.draft.add(
        f"agents:{dc.name}",
        "agents",
        "give tokens to",
        targets,
        "each agent its own, once the CA whose leaves it will ask for is on Vault",
        [
            *boot.consul_up(dc.name),
            *boot.on(targets),
            *boot.vault_up,
            "setup",
            "bootstrap",
            f"clients:{dc.name}",
            f"tokens:{dc.name}",
            f"ca:{dc.name}",
            # Tokens are made in the primary, and reach a secondary by replication.
            *([f"gateways:{boot.mesh.primary}"] if dc.name != boot.mesh.primary else []),
        ],
        datacenter=dc.name,
        expected="bootstrap" in boot.draft,
        hosts=targets,
    )


def _untokened(boot: Boot, dc: Datacenter, names: Iterable[str]) -> list[str]:
    fresh, bare = "bootstrap" in boot.draft, boot.survey.datacenter(dc.name).untokened
    return [n for n in names if fresh or n in bare]


def connect_ca(boot: Boot, dc: Datacenter) -> None:
    """Put a datacenter's Connect CA on Vault where it is not."""
    seen, primary = boot.survey.datacenter(dc.name), boot.mesh.primary
    lasting = seen.ca == "failing" and seen.state == "serving" and boot.vault.way == "serves"
    action = "put on Vault"
    if "bootstrap" in boot.draft:
        reason = "root and intermediate in Vault"
    elif seen.ca == "builtin" and not boot.survey.maintenance:
        reason = "it is Consul's own provider, the topology says Vault"
    elif lasting and dc.name == primary and f"unbreak:{primary}" not in boot.draft:
        reason = "no leaf can be signed although Vault serves"
    elif seen.ca == "ok" and seen.issuer == "fixed":
        action = "let newest issuer sign"
        reason = "an intermediate that is renewed would never be used"
    else:
        return
    boot.draft.add(
        f"ca:{dc.name}",
        "ca",
        action,
        (f"connect-ca {dc.name}",),
        reason,
        [
            *boot.consul_up(dc.name),
            *boot.consul_up(primary),
            *boot.vault_up,
            "setup",
            "bootstrap",
            f"tokens:{dc.name}",
            *([f"ca:{primary}", f"gateways:{primary}"] if dc.name != primary else []),
        ],
        datacenter=dc.name,
        expected=seen.ca == "unknown",
    )


def gateways(boot: Boot, dc: Datacenter) -> None:
    """Start the mesh gateways that are not reachable."""
    seen = boot.survey.datacenter(dc.name)
    targets = [g.host for g in dc.gateways if seen.gateways.get(g.host) is not True]
    boot.draft.add(
        f"gateways:{dc.name}",
        "gateways",
        "see gateways",
        targets,
        "the way to the other datacenters",
        [
            *boot.on(targets),
            f"clients:{dc.name}",
            *boot.vault_up,
            # Without it there is no credential to see a gateway with: a set-up that was
            # cut short leaves the clients up, and nothing else that waits for it planned.
            "setup",
            *boot.consul_up(dc.name),
            f"ca:{dc.name}",
            f"agents:{dc.name}",
        ],
        datacenter=dc.name,
        expected=any(boot.survey.host(n).dark for n in targets),
        hosts=targets,
    )


def federate(boot: Boot, dc: Datacenter) -> None:
    """Bind a secondary to its primary, and prove it both ways."""
    seen, primary = boot.survey.datacenter(dc.name), boot.survey.datacenter(boot.mesh.primary)
    others = [d.name for d in boot.mesh.datacenters if d.name != dc.name]
    joined = (
        seen.replication == "current"
        and seen.ca != "failing"
        and all(seen.reaches.get(other) for other in others)
        and bool(primary.reaches.get(dc.name))
    )
    mine = (f"{kind}:{dc.name}" for kind in ("tokens", "ca", "agents", "gateways"))
    planned = {*boot.consul_up(dc.name), *mine}
    if joined and not planned & set(boot.draft.steps):
        return
    boot.draft.add(
        f"secondary:{dc.name}",
        "secondary",
        "federate",
        (dc.name,),
        "answers both ways, replication current, a leaf that chains to the shared root",
        [
            *boot.consul_up(dc.name),
            *boot.consul_up(boot.mesh.primary),
            *boot.vault_up,
            "setup",
            f"gateways:{boot.mesh.primary}",
            f"gateways:{dc.name}",
            f"tokens:{dc.name}",
            f"ca:{dc.name}",
            f"agents:{dc.name}",
        ],
        datacenter=dc.name,
        expected=seen.state == "unknown",
    )
