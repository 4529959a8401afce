"""A report as Markdown: a file beside the journal, an artifact in the Prefect UI."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterable, Sequence
from dataclasses import astuple, fields
from pathlib import Path

from blocks.topology import Mesh
from flows.report import Problem, Report
from tasks.planning import timeline, timeline_svg
from tasks.record import ItemRow, Recorder

VERDICTS = {
    "planned": "planned, nothing was changed",
    "nothing": "up and verified, nothing needed changing",
    "verified": "done and verified",
    "undone": "undone",
    "refused": "refused, nothing was changed",
    "failed": "failed",
}


def write(report: Report, recorder: Recorder, directory: Path, mesh: Mesh) -> dict[str, str]:
    """
    Write a run's report and picture into files; gives the links to them.

    Raises:
        OSError: the directory cannot be written to.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    stem = f"{report.runbook}-{report.run_id[:8]}"
    links = {}
    svg = picture(report, recorder, mesh)
    if svg:
        file = directory / f"{stem}.svg"
        file.write_text(svg, encoding="utf-8")
        links["picture"] = str(file)
    if items := list(recorder.items()):
        file = directory / f"{stem}.csv"
        with file.open("w", encoding="utf-8", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow([field.name for field in fields(ItemRow)])
            rows.writerows(astuple(item) for item in items)
        links["items"] = str(file)
    file = directory / f"{stem}.md"
    image = f"![What was up when]({stem}.svg)" if svg else ""
    file.write_text(text(report, image), encoding="utf-8")
    return {**links, "report": str(file)}


def picture(report: Report, recorder: Recorder, mesh: Mesh) -> str:
    """What was up when, as SVG; empty if the run looked at no host, or none came up."""
    if not recorder.opened:
        return ""
    return timeline_svg.svg(
        timeline.bars(recorder.events, end=report.seconds),
        title=f"{report.runbook} {report.mesh}: {VERDICTS[report.outcome]}",
        subtitle=f"{report.started:%Y-%m-%d %H:%M:%S} UTC, {report.seconds:.1f} s",
        groups={host.name: datacenter.name for datacenter, host in mesh.hosts()},
    )


def data_uri(svg: Path) -> str:
    """A picture that travels inside the text, for where no file can be linked."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg.read_bytes()).decode()


def text(report: Report, image: str = "") -> str:
    """The whole report; `image` is a line of Markdown for the picture."""
    parts = [
        f"# {report.runbook} {report.mesh}: {VERDICTS[report.outcome]}",
        f"Run `{report.run_id}`, {report.started:%Y-%m-%d %H:%M:%S} UTC, {report.seconds:.1f} s.",
    ]
    if report.problem is not None:
        parts += ["## What is wrong", _problem(report.problem)]
    if image:
        parts += ["## Timeline", image]
    if report.notices:
        parts += ["## To know", "\n".join(f"- {line}" for line in report.notices)]
    if report.plan:
        rows = [(r.step, r.action, r.targets, r.reason, r.waits_for) for r in report.plan]
        parts += ["## Plan", table(["", "action", "targets", "reason", "waits for"], rows)]
    if report.changes:
        changes = [(c.target, c.did, c.before, c.after, f"{c.seconds:.1f}") for c in report.changes]
        heads = ["target", "did", "before", "after", "seconds"]
        parts += [f"## {report.changed:,} changes", table(heads, changes)]
    if report.checks:
        good = sum(check.ok for check in report.checks)
        checks = [("ok" if c.ok else "**failed**", c.name, c.detail) for c in report.checks]
        parts += [
            f"## {good} of {len(checks)} checks",
            table(["", "check", "detail"], checks),
        ]
    if report.measures:
        parts += ["## Measures", table(["measure", "value"], list(report.measures.items()))]
    return "\n\n".join(parts) + "\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; what would break out of a cell is escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: object) -> str:
    return (
        str(value).replace("|", "\\|").replace("\n", "<br>").replace("<", "&lt;")
        if value != ""
        else ""
    )


def _problem(problem: Problem) -> str:
    rows = [
        ("error", problem.error),
        ("at", problem.step),
        ("where", problem.where),
        ("seen", problem.seen),
        ("stands", problem.stands),
        ("safe to run again", "yes" if problem.safe_to_rerun else "NO, see what to do first"),
        ("do", problem.do),
    ]
    lines = table(["", ""], [row for row in rows if row[1]])
    return "\n\n".join([lines, *(f"- {detail}" for detail in problem.details)])
