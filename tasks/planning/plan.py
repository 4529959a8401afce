"""A plan: steps in an order that holds, what refuses it, and what to know."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

Stage = Literal[
    "power",
    "hold",
    "renew",
    "start",
    "init",
    "restore",
    "unseal",
    "setup",
    "break-glass",
    "unbreak",
    "clients",
    "consul",
    "bootstrap",
    "tokens",
    "ca",
    "agents",
    "gateways",
    "secondary",
    "services",
    "components",
    "prove",
]

# What hides other things until it is done: machines and Vault's processes, Vault, Consul.
VEILS: dict[Stage, int] = {
    "power": 1,
    "hold": 1,
    "start": 1,
    "init": 2,
    "restore": 2,
    "unseal": 2,
    "setup": 2,
    "clients": 2,
    "consul": 3,
    "unbreak": 3,
    "bootstrap": 3,
}
LOOKS_ONLY = frozenset({"prove", "wait for"})


@dataclass(frozen=True)
class PlannedStep:
    """One thing to do, once all it waits for are done."""

    id: str
    stage: Stage
    action: str
    targets: tuple[str, ...]
    reason: str
    waits_for: tuple[str, ...] = ()
    datacenter: str = ""  # the one it is about; empty if it is about none or all
    expected: bool = False  # planned for what cannot be seen yet; look again before doing it

    @property
    def mutates(self) -> bool:
        """Whether carrying it out changes anything."""
        return self.action not in LOOKS_ONLY


@dataclass(frozen=True)
class Refusal:
    """Why nothing may be done: what is wrong, where, and the remedy."""

    error: str
    do: str
    where: str = ""
    details: tuple[str, ...] = ()
    bad_input: bool = False  # what the operator gave is wrong: a credential, an address

    def __str__(self) -> str:
        text = f"{self.where}: {self.error}" if self.where else self.error
        return f"{text}; do: {self.do}"


@dataclass(frozen=True)
class Plan:
    """Steps in topological order. With a refusal nothing may be changed."""

    steps: tuple[PlannedStep, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notices: tuple[str, ...] = ()
    numbers: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        numbers: dict[str, int] = {}
        before: tuple[object, ...] = ()
        number = 0
        for step in self.steps:
            alike = (step.stage, step.action, frozenset(numbers[w] for w in step.waits_for))
            number += alike != before
            before = alike
            numbers[step.id] = number
        object.__setattr__(self, "numbers", numbers)

    @property
    def mutating(self) -> tuple[PlannedStep, ...]:
        """The steps that change something; none on a healthy mesh."""
        return tuple(step for step in self.steps if step.mutates)

    def step(self, identity: str) -> PlannedStep:
        """One step by its id; `KeyError` if the plan has none such."""
        return {step.id: step for step in self.steps}[identity]

    def stage(self, stage: Stage) -> tuple[PlannedStep, ...]:
        """The steps of one stage."""
        return tuple(step for step in self.steps if step.stage == stage)

    def needs(self) -> dict[str, tuple[str, ...]]:
        """Step ids with the ids they wait for, for a scheduler."""
        return {step.id: step.waits_for for step in self.steps}

    def horizon(self) -> tuple[PlannedStep, ...]:
        """
        The steps to carry out before looking and planning again.

        A machine that was off hides its certificates and marks, a sealed Vault
        the tokens, a Consul without a leader its CA and agents; what waits for
        one of these was planned without having seen it. Consul's servers need
        of an unsealed Vault only that it serves, not what it tells.
        """
        within: dict[str, PlannedStep] = {}

        def seen(step: PlannedStep, waited: PlannedStep) -> bool:
            serves = step.stage == "consul" and waited.stage in {"unseal", "clients"}
            return serves or VEILS.get(waited.stage) in {None, VEILS.get(step.stage)}

        for step in self.steps:
            if all(w in within and seen(step, within[w]) for w in step.waits_for):
                within[step.id] = step
        return tuple(within.values())

    def as_rows(self) -> list[dict[str, Any]]:
        """The plan as a table: steps alike are one row, targets compressed."""
        rows: list[dict[str, Any]] = []

        def row(step: PlannedStep) -> tuple[int, str]:
            return self.numbers[step.id], step.reason

        for (number, reason), steps in groupby(self.steps, key=row):
            alike = list(steps)
            waits = {self.numbers[w] for step in alike for w in step.waits_for}
            rows.append(
                {
                    "step": number,
                    "action": alike[0].action,
                    "targets": compress(t for step in alike for t in step.targets),
                    "reason": reason,
                    "waits_for": ", ".join(str(n) for n in sorted(waits)) or "-",
                }
            )
        return rows


_NUMBERED = re.compile(r"^(.*?)(\d+)$")


def compress(names: Iterable[str]) -> str:
    """
    Names on one line, runs of three or more numbered ones as a range.

    `us-consul-1..3 vault-1 vault-2`; the order of first appearance is kept.
    """
    parts: list[str] = []
    run: list[tuple[str, str]] = []  # (prefix, number as written)

    def flush() -> None:
        if len(run) > 2:
            parts.append(f"{run[0][0]}{run[0][1]}..{run[-1][1]}")
        else:
            parts.extend(prefix + number for prefix, number in run)
        run.clear()

    for name in names:
        match = _NUMBERED.match(name)
        if match is None:
            flush()
            parts.append(name)
            continue
        prefix, number = match.groups()
        follows = run and run[-1][0] == prefix and int(number) == int(run[-1][1]) + 1
        if run and not (follows and _same_width(run[-1][1], number)):
            flush()
        run.append((prefix, number))
    flush()
    return " ".join(parts)


def _same_width(before: str, after: str) -> bool:
    # `09` then `10` is one run, `9` then `10` is too, `1` then `02` is not.
    return len(before) == len(after) or (not after.startswith("0") and not before.startswith("0"))
