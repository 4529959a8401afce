"""What a token rotation asks of each way to rotate: look and plan, carry out, tell the outcome."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from pydantic import SecretStr

from blocks.declared_tokens import DeclaredToken, TokenKind
from flows.run import Run
from tasks.planning.rotation_plan import Options, RotationPlan
from tasks.record import ItemRow


@dataclass(frozen=True)
class Pace:
    """How fast a rotation may go, and how much of it may fail."""

    batch_size: int
    max_in_flight: int
    error_threshold: int
    soak_seconds: float | None  # else each role's own


@dataclass(frozen=True)
class Outcome:
    """What became of one role."""

    role: str
    name: str  # the role, or what else it is known by
    steps: tuple[str, ...]
    begun: bool = True
    failed_at: str = ""  # the step
    error: str = ""
    done: bool = True  # if it was begun and did not fail: else a stop cut it short
    why: str = ""
    age: timedelta | None = None  # of the token that was live before
    old: str = ""  # accessors
    new: str = ""
    seconds: float = 0.0

    @property
    def told(self) -> str:
        """What became of it, in a few words."""
        if self.failed_at:
            return f"failed at {self.failed_at}"
        if not self.begun:
            return "not begun"
        return "done" if self.done else "cut short"


def row(outcome: Outcome) -> ItemRow:
    """A line in the table of what became of each."""
    return ItemRow(
        outcome.name,
        outcome.told,
        outcome.why,
        None if outcome.age is None else int(outcome.age.total_seconds()),
        outcome.old,
        outcome.new,
        outcome.seconds,
        outcome.error,
    )


class Way(ABC):
    """
    One way to rotate, for the roles of some kinds.

    Whatever its kinds need beside, what has been rotated stands in Vault and in
    the servers alone: `survey` of a new run finds where an earlier one was killed.
    """

    kinds: ClassVar[tuple[TokenKind, ...]]

    def __init__(self, run: Run, management: SecretStr, pace: Pace) -> None:
        self.run, self.management, self.pace = run, management, pace

    def declared(self, options: Options) -> list[DeclaredToken]:
        """The roles of these kinds that the run is to look after."""
        chosen = [t for t in self.run.mesh.roles() if t.kind in self.kinds]
        return [t for t in chosen if not options.roles or t.role in options.roles]

    @abstractmethod
    def survey(self, options: Options) -> RotationPlan:
        """What is to be done, from what is there; nothing is changed."""

    @abstractmethod
    def carry_out(self) -> None:
        """
        Do what the last survey planned, as far as it goes.

        A role that fails by its own fault is an outcome, and the others go on.
        """

    @abstractmethod
    def outcomes(self) -> Sequence[Outcome]:
        """What became of each role that had something to do, until now."""
