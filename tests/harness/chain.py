"""
Runs on one lab in which something goes wrong, each on what the last one left.

A fresh lab for every call that can go wrong would take hours. In a chain each
run meets the next call that has not gone wrong yet, and the world it starts
from is as the one before left it, so that the states of all of them are met.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL

from tests.harness import inject
from tests.harness.inject import Identity, Kind
from tests.harness.lab import Lab, Ran

Options = Mapping[str, object]
Decide = Callable[[Ran], Options | None]


def never(_refused: Ran) -> None:
    """What to try after a refusal, where there is to be none."""


@dataclass
class Chain:
    """The runs of one runbook on one lab, with one kind of thing going wrong."""

    lab: Lab
    kind: Kind
    folder: Path
    runbook: str = "cold-boot"
    ran: list[Ran] = field(default_factory=list)

    def run(self, options: Options | None = None, *, timeout: float = 300.0) -> Ran:
        """One more run; what has gone wrong in this chain does not again."""
        words = self.lab.arguments(self.runbook, options)
        ran = self.lab.forked(
            "tests.harness.inject", f"{self.kind}:{self.folder}", "--", *words, timeout=timeout
        )
        self.ran.append(ran)
        return ran

    def crash_everywhere(
        self,
        options: Options | None = None,
        *,
        reference: Counter[Identity],
        after_refusal: Decide = never,
        extra: int = 20,
        again: Callable[[], object] | None = None,
        rounds: int = 5,
    ) -> Ran:
        """
        Run until a run comes through that is not killed any more; that run.

        Each is killed after the first mutating call that was not crashed at yet;
        `reference` says how often each is made without a kill. After a refusal
        `after_refusal` says with which options to go on, for one run. What a
        kill left can spare the next run a call: `again` sets the scene anew for
        those that are left, at most `rounds` times.

        Raises:
            AssertionError: one fails otherwise than by its kill, or is refused
                and nothing is to be done, there are too many, or a call was
                never crashed at.
        """
        inject.limits(self.folder, reference)
        for round_ in range(rounds):
            through = self._crash_until_through(options, reference, after_refusal, extra)
            left = atoms(reference) - atoms(self.hits)
            if not left:
                return through
            if again is None or round_ == rounds - 1:
                break
            again()
        raise AssertionError(f"never crashed at:\n{inject.table(Counter(left))}\n{self.told()}")

    def _crash_until_through(
        self,
        options: Options | None,
        reference: Counter[Identity],
        after_refusal: Decide,
        extra: int,
    ) -> Ran:
        chosen, most = options, 2 * sum(reference.values()) + extra
        for _ in range(most):
            ran = self.run(chosen)
            chosen = options
            if ran.status == -SIGKILL:
                continue
            if ran.status == 0:
                return ran
            # Refused, or halted once what was down had been started and could be seen.
            assert ran.status in {1, 3}, self.told()
            chosen = after_refusal(ran)
            assert chosen is not None, self.told()
        raise AssertionError(f"not through after {most} runs\n{self.told()}")

    def until_quiet(
        self,
        options: Options | None = None,
        *,
        after_refusal: Decide = never,
        most: int = 40,
        timeout: float = 300.0,
    ) -> Ran:
        """
        Run until a run ends well in which nothing went wrong any more; that run.

        The others may fail, in a report that says what to do.

        Raises:
            AssertionError: one ends without a report or without a remedy, or
                none ended well after `most` runs.
        """
        chosen = options
        for _ in range(most):
            before = self.hits.total()
            ran = self.run(chosen, timeout=timeout)
            chosen = options
            if ran.status == 0 and self.hits.total() == before:
                return ran
            assert ran.status in {0, 1, 2, 3}, self.told()
            if ran.status:
                assert ran.problem.get("error"), self.told()
                assert not ran.problem["error"].startswith("a defect"), self.told()
            if ran.status == 3 and (decided := after_refusal(ran)) is not None:
                chosen = decided
        raise AssertionError(f"not through after {most} runs\n{self.told()}")

    @property
    def hits(self) -> Counter[Identity]:
        """At which calls something went wrong, and how often."""
        return inject.hit(self.folder)

    @property
    def trace(self) -> list[inject.Entry]:
        """Every call of every run."""
        return inject.read(self.folder / inject.TRACE)

    @property
    def seconds(self) -> float:
        """How long all runs took."""
        return sum(ran.seconds for ran in self.ran)

    def told(self) -> str:
        """The runs so far and where each was hit, for a failure's message."""
        hits = [e.identity for e in inject.read(self.folder / inject.DONE)]
        lines = [f"{len(self.ran)} runs, hit at:", *(f"  {this}" for this in hits[-12:])]
        for ran in self.ran[-3:]:
            lines.append(str(ran))
            lines += [
                f"  {row['step']:2} {row['action']} {row['targets']} (after {row['waits_for']})"
                for row in ran.report.get("plan", [])
            ]
        return "\n".join(lines)

    def summary(self) -> str:
        """One line of figures."""
        hits = self.hits
        return (
            f"{self.kind} {self.runbook}: {hits.total()} points at {len(hits)} different calls, "
            f"{len(self.ran)} runs, {self.seconds / 60:.1f} min"
        )


def reference(lab: Lab, folder: Path, runbook: str, options: Options | None = None) -> Chain:
    """A run in which nothing goes wrong, to compare with."""
    chain = Chain(lab, "trace", folder, runbook)
    ran = chain.run(options)
    assert ran.status == 0, f"{ran}\n{lab.logs()}"
    return chain


def atoms(identities: Iterable[Identity]) -> set[Identity]:
    """
    Calls taken apart into what they do to one thing each.

    Several units are started with one call or with several, as it comes.
    """
    found = set()
    for server, what in identities:
        words = what.split()
        if words[0] == "systemctl":
            found |= {Identity(server, f"systemctl {words[1]} {unit}") for unit in words[2:]}
        elif words[0] in {"StartInstances", "StopInstances"}:
            found.add(Identity(server, words[0]))
        else:
            found.add(Identity(server, what))
    return found
