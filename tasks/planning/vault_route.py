"""How Vault comes back from what was seen of it, or why it may not be touched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from blocks.topology import Mesh
from tasks.planning.key_count import Keys, count
from tasks.planning.options import Options
from tasks.planning.plan import Refusal
from tasks.planning.survey import Survey
from tasks.planning.vault_refusals import (
    against_breaking,
    against_init,
    against_restore,
    against_unseal,
    built_on,
    half_restored,
    too_few,
)

Way = Literal["serves", "unseal", "init", "restore", "broken"]


@dataclass(frozen=True)
class Route:
    """
    The way chosen for Vault, and what of it is left to do.

    `serves`: nothing but the nodes in `unseal`; `broken`: break-glass, Vault is
    left alone. With a refusal nothing of it holds.
    """

    way: Way
    set_aside: bool = False  # the data of a lost init goes aside before a new one
    start: tuple[str, ...] = ()  # nodes whose process is down on a host that is up
    restart: tuple[str, ...] = ()  # nodes that accept connections and never answer
    unseal: tuple[str, ...] = ()
    setup: bool = False
    expected: bool = False  # some node could not be seen
    refusals: tuple[Refusal, ...] = ()
    notices: tuple[str, ...] = ()


def route(mesh: Mesh, survey: Survey, options: Options) -> Route:
    """Decide about Vault; exactly one way, and every reason against it."""
    if options.fallback == "break-glass":
        return Route("broken", refusals=tuple(against_breaking(survey, options)))
    names = mesh.vault.nodes
    nodes = {name: survey.node(name) for name in names}
    keys = count(mesh, survey)
    hidden = any(n.state in {"unknown", "down", "hanging"} for n in nodes.values())
    initialised = any(n.state in {"sealed", "standby", "active"} for n in nodes.values())
    blank = all(n.state == "uninitialised" for n in nodes.values())
    sealed = tuple(name for name in names if not nodes[name].unsealed)

    set_aside = False
    discard = options.discard_lost_init and keys.discardable and not built_on(mesh, survey)
    # Nothing is seen: its processes are started and looked at before anything else.
    unborn = hidden and not initialised and options.initialise
    if options.fallback == "restore-vault" and not _data_is_back(survey, initialised):
        way: Way = "restore"
        refusals = list(against_restore(mesh, survey, keys))
    elif initialised and discard:
        way, set_aside = "init", True
        refusals = list(against_init(mesh, survey, options, keys, blank=False))
    elif blank or (unborn and (discard or not keys.stored)):
        way = "init"
        refusals = list(against_init(mesh, survey, options, keys, blank=blank))
    else:
        way = "unseal" if survey.vault.active is None else "serves"
        refusals = list(against_unseal(mesh, survey, options, keys, sealed))

    if survey.vault.restore == "begun" and way != "restore":
        refusals.append(half_restored())
    setup = way == "init" or (way != "restore" and _setup_is_due(mesh, survey))
    if setup and way != "init" and not keys.enough and not refusals:
        refusals.append(too_few(keys, "the declared set-up of Vault needs a root token"))
    on = {name for name in sealed if not survey.host(name).dark}
    auto = mesh.vault.seal != "shamir"
    return Route(
        way,
        set_aside=set_aside,
        start=tuple(n for n in sealed if n in on and nodes[n].state == "down"),
        restart=tuple(
            n
            for n in sealed
            if n in on and (nodes[n].state == "hanging" or (auto and nodes[n].state == "sealed"))
        ),
        unseal=tuple(names) if set_aside or way == "restore" else sealed,
        setup=setup,
        expected=hidden,
        refusals=tuple(refusals),
        notices=tuple(_notices(mesh, survey, options, keys)),
    )


def _setup_is_due(mesh: Mesh, survey: Survey) -> bool:
    vault = survey.vault
    if vault.setup in {"absent", "partial"}:
        return True
    # Sealed, Vault does not tell; but its credential is the last thing set up.
    hidden = vault.setup == "unknown" and mesh.vault.credential is not None
    return hidden and vault.credential in {"none", "intended"}


def _data_is_back(survey: Survey, initialised: bool) -> bool:
    """Whether there is data that a snapshot must not overwrite."""
    return initialised and survey.vault.restore != "begun"


def _notices(mesh: Mesh, survey: Survey, options: Options, keys: Keys) -> Iterator[str]:
    vault = survey.vault
    if (
        keys.enough
        and keys.intended
        and any(n.unsealed or n.state == "sealed" for n in vault.nodes.values())
    ):
        yield (
            f"the shares of {', '.join(keys.intended)} never arrived; {keys.held} others are enough today:"
            " rekey Vault soon"
        )
    elif keys.enough and keys.lines:
        yield f"{keys.held} of {mesh.vault.key_shares} key shares can be reached: {'; '.join(keys.lines)}"
    if options.initialise and keys.stored and not options.discard_lost_init:
        yield "initialise=true has no effect: the holders have shares, so this cluster was initialised"
    if vault.incident and vault.active:
        yield f"Vault serves, and the mark of a deliberate seal is still there: {vault.incident}"
    there = any(n.state == "sealed" for n in vault.nodes.values())
    if there and options.fallback == "restore-vault" and vault.restore == "none":
        yield "Vault's data is there, sealed: it is unsealed and nothing is restored"
    if vault.incident is None and keys.stored and not vault.active:
        yield "a mark of a deliberate seal could not be looked for yet; it is, before anything is unsealed"
