"""Why Vault may not be initialised, unsealed, restored or done without."""

from __future__ import annotations

from collections.abc import Iterator

from blocks.topology import Mesh
from tasks.planning.key_count import Keys
from tasks.planning.options import Options
from tasks.planning.plan import Refusal, compress
from tasks.planning.survey import Survey


def against_breaking(survey: Survey, options: Options) -> Iterator[Refusal]:
    """Why Connect may not be switched off to get round Vault."""
    if active := survey.vault.active:
        yield Refusal(
            f"Vault serves ({active} is active), there is no lock to break",
            "run again with fallback=wait",
            "fallback=break-glass",
        )
    if options.initialise:
        yield Refusal(
            "a mesh that never ran has nothing to serve without Vault",
            "choose one: initialise=true, or fallback=break-glass",
            "initialise",
        )


def against_restore(mesh: Mesh, survey: Survey, keys: Keys) -> Iterator[Refusal]:
    """Why no snapshot may be restored."""
    snapshot = survey.vault.snapshot
    where = "fallback=restore-vault"
    if survey.vault.incident:
        yield _incident(survey)
    if snapshot is None:
        yield Refusal(
            "there is no Vault snapshot",
            f"put the newest raft snapshot into {mesh.vault.snapshots.directory or 'vault.snapshots.directory'}",
            where,
        )
    elif not snapshot.restorable:
        yield Refusal(
            f"snapshot {snapshot.where} cannot be restored: {snapshot.error or 'it is incomplete'}",
            "move it away, so that the one before it is taken",
            where,
        )
    if not keys.enough:
        yield too_few(keys, "a restored Vault opens with its original keys only")


def against_init(
    mesh: Mesh, survey: Survey, options: Options, keys: Keys, *, blank: bool
) -> Iterator[Refusal]:
    """Why Vault may not be initialised; `blank`: every node was seen to be uninitialised."""
    if not options.initialise and not blank:
        yield Refusal(
            "discard_lost_init=true alone would leave nothing to unseal",
            "add initialise=true",
            "vault",
        )
        return
    if not options.initialise:
        yield Refusal(
            "every node says uninitialised",
            "if this mesh never ran: initialise=true; if its data is gone: fallback=restore-vault",
            "vault",
        )
        return
    if blank and keys.stored and not (options.discard_lost_init and not keys.enough):
        yield Refusal(
            f"it has no data, and its holders have {keys.stored} shares of an earlier cluster",
            "fallback=restore-vault brings that cluster back; to begin anew, move the holders' documents away first",
            "vault",
        )
    for holder in mesh.vault.holders:
        seen = survey.vault.holders.get(holder.name)
        if seen is None or not seen.reachable or seen.state == "unknown":
            error = seen.error if seen else "left out"
            yield Refusal(
                f'holder "{holder.name}" could not keep its shares: {error or "cannot be reached"}',
                "make its store readable and writable: init gives the shares once and never again",
                "vault",
            )
    if mesh.vault.seal != "shamir" and survey.vault.sealer == "down":
        yield _sealer(mesh)


def against_unseal(
    mesh: Mesh, survey: Survey, options: Options, keys: Keys, sealed: tuple[str, ...]
) -> Iterator[Refusal]:
    """Why the nodes that are not unsealed may not be."""
    vault = survey.vault
    if options.fallback == "restore-vault" and vault.restore == "none":
        unsealed = [name for name, node in vault.nodes.items() if node.unsealed]
        if unsealed:
            yield Refusal(
                f"Vault's data is there and unsealed on {compress(unsealed)}, a snapshot would overwrite it",
                "run again with fallback=wait",
                "fallback=restore-vault",
            )
            return
    auto = mesh.vault.seal != "shamir"
    if keys.lost and not built_on(mesh, survey) and (sealed or auto):
        yield _lost(keys, built_on=False)
        return
    if not sealed:
        return
    if vault.incident and not options.unseal_incident:
        yield _incident(survey)
    if auto:
        if vault.sealer == "down":
            yield _sealer(mesh)
        return
    if keys.lost:
        yield _lost(keys, built_on=True)
    elif not keys.enough:
        ran = any(n.state in {"sealed", "standby", "active"} for n in vault.nodes.values())
        yield too_few(keys, ran=ran)


def _incident(survey: Survey) -> Refusal:
    return Refusal(
        f"the seal is deliberate: {survey.vault.incident}",
        "ask whoever sealed it; with their approval run again with unseal_incident=true",
        "vault",
    )


def half_restored() -> Refusal:
    """The refusal of everything but restoring, once that was begun."""
    return Refusal(
        "a restore was begun and not finished: what is there is an empty cluster",
        "run again with fallback=restore-vault, it begins anew from the snapshot",
        "vault",
    )


def _sealer(mesh: Mesh) -> Refusal:
    return Refusal(
        f"the {mesh.vault.seal} seal cannot be reached at {mesh.vault.seal_address or 'its service'},"
        " no node opens its listener without it",
        "bring the sealing service back first; vault.seal_address names it",
        "vault",
    )


def _lost(keys: Keys, *, built_on: bool) -> Refusal:
    holders = ", ".join(keys.intended)
    if built_on:
        return Refusal(
            f"{keys.held} of the {keys.threshold} shares needed exist, those of {holders} never arrived",
            "Vault was set up with these keys, so it is not discarded: fetch the shares from where they"
            " were noted, or restore a snapshot with fallback=restore-vault",
            "vault",
            keys.lines,
        )
    return Refusal(
        f"an init was begun and its answer lost: the shares of {holders} never arrived",
        "nothing was built on these keys: run again with initialise=true and discard_lost_init=true,"
        " which sets the data aside and initialises anew",
        "vault",
        keys.lines,
    )


def too_few(keys: Keys, why: str = "", *, ran: bool = True) -> Refusal:
    """The refusal for want of shares, a line for each holder that gives none."""
    never = "" if ran or keys.held or keys.may_hold else "; if this mesh never ran, initialise=true"
    return Refusal(
        f"{keys.held} of the {keys.threshold} shares needed can be reached"
        + (f": {why}" if why else ""),
        f"make another holder's store readable, or declare a holder with store: prompt{never}",
        "vault",
        keys.lines or ("no holder is declared",),
    )


def built_on(mesh: Mesh, survey: Survey) -> bool:
    """Whether anything stands on the keys, so that the data must not go aside."""
    vault = survey.vault
    opened = mesh.vault.seal == "shamir" and any(n.unsealed for n in vault.nodes.values())
    return opened or vault.credential == "held" or vault.setup in {"partial", "done"}
