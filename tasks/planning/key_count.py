"""How many of Vault's key shares can be had, and who gives none."""

from __future__ import annotations

from dataclasses import dataclass

from blocks.topology import Holder, Mesh
from tasks.planning.survey import HolderSeen, Survey


@dataclass(frozen=True)
class Keys:
    """What the holders have, counted; never a share itself."""

    threshold: int
    held: int = 0
    stored: int = 0  # of those, in a store; what a custodian could type proves nothing
    may_hold: int = 0  # shares declared at holders that cannot be reached
    intended: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()  # a line for each holder that gives none

    @property
    def enough(self) -> bool:
        """Whether Vault can be unsealed with what is reachable."""
        return self.held >= self.threshold

    @property
    def lost(self) -> bool:
        """Init was begun and nobody can have a threshold of its shares."""
        return bool(self.intended) and self.held + self.may_hold < self.threshold

    @property
    def discardable(self) -> bool:
        """The same, where a person says that no custodian ever got a share either."""
        return bool(self.intended) and self.stored + self.may_hold < self.threshold


def shares_needed(mesh: Mesh, survey: Survey) -> int:
    """The threshold: what the nodes say, or the topology if none was seen."""
    return max((n.threshold for n in survey.vault.nodes.values()), default=0) or (
        mesh.vault.key_threshold
    )


def count(mesh: Mesh, survey: Survey) -> Keys:
    """Count shares over the holders; one that was left out of the survey has none."""
    held = stored = may_hold = 0
    intended: list[str] = []
    lines: list[str] = []
    for holder in mesh.vault.holders:
        seen = survey.vault.holders.get(holder.name)
        if seen is None:
            lines.append(f'holder "{holder.name}": left out')
        elif not seen.reachable or seen.state == "unknown":
            may_hold += holder.shares
            lines.append(f'holder "{holder.name}": {seen.error or "cannot be reached"}')
        elif seen.state == "held":
            held += seen.shares
            stored += seen.shares if holder.store != "prompt" else 0
            if seen.shares < holder.shares:
                lines.append(f'holder "{holder.name}": has {seen.shares} of its {holder.shares}')
        else:
            if seen.state == "intended":
                intended.append(holder.name)
            lines.append(f'holder "{holder.name}": {_empty(holder, seen)}')
    return Keys(shares_needed(mesh, survey), held, stored, may_hold, tuple(intended), tuple(lines))


def _empty(holder: Holder, seen: HolderSeen) -> str:
    if seen.state == "intended":
        return "an init was begun, its shares never arrived"
    return f"holds no share ({holder.store})"
