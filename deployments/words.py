"""Plans, results and errors in the words of a colleague: reports in, lines out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

from flows.report import PlanRow, Problem, Report

WIDTH = 100


def plan_lines(rows: Sequence[PlanRow], width: int = WIDTH) -> Iterator[str]:
    """The plan as a table; what does not fit goes on below itself."""
    if not rows:
        yield "Plan: nothing to do but to look again"
        return
    number = max(len(str(row.step)) for row in rows)
    action = max(len(row.action) for row in rows)
    waits = max(len("waits for"), *(len(row.waits_for) for row in rows))
    start = 2 + number + 1 + action + 2
    room = max(width - start - waits - 2, 30)
    longest = max(len(_aim(row)) for row in rows)
    room = min(room, max(longest, 30))
    yield f"{'Plan':<{start + room + 2}}waits for"
    for row in rows:
        first, *rest = textwrap.wrap(_aim(row), room, break_on_hyphens=False) or [""]
        head = f"  {row.step:>{number}} {row.action:<{action}}  "
        yield f"{head}{first:<{room}}  {row.waits_for}"
        yield from (" " * start + line for line in rest)


def _aim(row: PlanRow) -> str:
    return f"{row.targets}: {row.reason}" if row.reason else row.targets


def headline(report: Report, done: str) -> str:
    """The one line that tells how a run ended."""
    seconds = f"{report.seconds:.1f} s"
    match report.outcome:
        case "planned":
            return "Nothing was changed. Run without --plan to apply."
        case "nothing":
            return f"{report.mesh} {done}, nothing needed changing ({seconds})"
        case "verified":
            own = report.measures.get("servers_seconds")
            path = f" (servers' own path {own:.1f} s)" if isinstance(own, int | float) else ""
            return f"{report.mesh} {done} in {seconds}{path}"
        case "undone":
            return f"{report.mesh}: everything {report.runbook} did was undone ({seconds})"
    problem = report.problem or Problem(error="no reason was given")
    error = f"{problem.where}: {problem.error}" if problem.where else problem.error
    if report.outcome == "refused":
        return f"refused: {error}   (nothing was changed)"
    return f"failed{f' at {problem.step}' if problem.step else ''}: {error}"


def problem_lines(report: Report) -> Iterator[str]:
    """What stands under the headline of a run that was refused or failed."""
    problem = report.problem
    if problem is None:
        return
    yield from _wrapped("", problem.details)
    if report.outcome == "refused":
        yield from _wrapped("do: ", [problem.do] if problem.do else [])
        return
    again = "yes: run it again, it carries on from what it finds"
    rows = [
        ("seen", problem.seen),
        ("stands", problem.stands or f"{report.changed} changes made so far"),
        ("safe", again if problem.safe_to_rerun else "NO, not before this is done:"),
        ("do", problem.do),
    ]
    for label, told in rows:
        if told:
            yield from _wrapped(f"{label:<8} ", [told])


def _wrapped(label: str, texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        lines = textwrap.wrap(text, WIDTH - len(label), break_on_hyphens=False) or [""]
        yield f"  {label}{lines[0]}"
        yield from (f"  {'':<{len(label)}}{line}" for line in lines[1:])


def bad_input_lines(report: Report) -> Iterator[str]:
    """One line a problem, as all bad input is told."""
    problem = report.problem
    if problem is None:
        return
    for line in problem.details or [problem.error]:
        where = f"{problem.where}: " if problem.where else ""
        do = f"; do: {problem.do}" if problem.do and "; do: " not in line else ""
        yield f"mesh: {where}{line}{do}"


def figures(report: Report) -> str:
    """`31 changes, 13 of 13 checks. Report: FILE   Run: LINK`."""
    good = sum(check.ok for check in report.checks)
    parts = [f"{report.changed:,} changes"] if report.outcome != "planned" else []
    parts += [f"{good} of {len(report.checks)} checks"] if report.checks else []
    told = ", ".join(parts) + ". " if parts else ""
    links = [
        f"{key.capitalize()}: {report.links[key]}"
        for key in ("report", "run")
        if key in report.links
    ]
    return "  " + told + "   ".join(links)
