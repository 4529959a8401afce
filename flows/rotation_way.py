"""What a token rotation asks of each way to rotate: look and plan, carry out, tell the outcome."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import SecretStr

from blocks.declared_tokens import DeclaredToken, TokenKind
from flows.run import Run
from tasks.planning.rotation_plan import Options, RotationPlan


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
