"""Runbooks with their parameters, and runs of the journal, as text."""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from flows.options import Parameter
from flows.runbook import Runbook


def as_text(books: Sequence[Runbook]) -> str:
    """Each runbook with a line about it and one for each parameter."""
    lines = []
    for book in books:
        lines += [book.name, f"    {book.summary}"]
        lines += [f"    {_described(parameter)[0].strip()}" for parameter in book.parameters]
    return "\n".join(lines)


def as_json(books: Sequence[Runbook]) -> str:
    """The same as one JSON document, descriptions included."""
    return json.dumps([_data(book) for book in books])


def _data(book: Runbook) -> dict[str, Any]:
    return {
        "name": book.name,
        "summary": book.summary,
        "parameters": [
            {
                "name": p.name,
                "kind": p.kind,
                "required": p.required,
                "default": None if p.required else _shown(p.default),
                "description": p.description,
            }
            for p in book.parameters
        ],
    }


def help_of(book: Runbook) -> str:
    """What `mesh run RUNBOOK --help` shows."""
    told = (inspect.getdoc(book.body) or "").partition("\nArgs:\n")[0].rstrip()
    lines = [f"usage: mesh run {book.name} [--mesh NAME] [--plan] [--set KEY=VALUE ...]", "", told]
    lines += ["", "parameters (--set KEY=VALUE):"] if book.parameters else []
    for parameter in book.parameters:
        lines += _described(parameter)
    return "\n".join(lines)


def _described(parameter: Parameter) -> list[str]:
    default = "must be given" if parameter.required else f"default {_shown(parameter.default)}"
    lines = [f"  {parameter.name}  {parameter.kind}  ({default})"]
    return lines + textwrap.wrap(
        parameter.description, 88, initial_indent="      ", subsequent_indent="      "
    )


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple | set | frozenset):
        return ",".join(_shown(item) for item in value) or "empty"
    if value == "":
        return "empty"
    if isinstance(value, float):
        return f"{value:g}"
    return str(getattr(value, "value", value))


def run_line(run: dict[str, Any], *, as_json: bool = False) -> str:
    """One run of the journal on one line."""
    if as_json:
        return json.dumps(run)
    try:
        started = datetime.fromisoformat(run["started"])
        seconds = (datetime.fromisoformat(run["ended"]) - started).total_seconds()
        when = f"{started.astimezone():%Y-%m-%d %H:%M:%S}"
    except (KeyError, TypeError, ValueError):
        return f"?  {json.dumps(run)[:120]}"
    problem = (run.get("problem") or {}).get("error", "")
    told = problem or f"{len(run.get('changes', []))} changes, {len(run.get('checks', []))} checks"
    return (
        f"{when}  {run.get('outcome', '?'):9} {run.get('runbook', '?'):18} "
        f"{run.get('mesh', '?'):12} {seconds:7.1f} s  {str(run.get('run_id', '?'))[:8]}  {told}"
    )
