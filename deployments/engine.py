"""Which engine carries a runbook out: this process alone, or Prefect where it answers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from blocks.errors import BadInput

if TYPE_CHECKING:
    from deployments.display import Display
    from flows.report import Report
    from flows.run import Mode
    from flows.runbook import Runbook

Engine = Literal["none", "prefect"]
PATIENCE_SECONDS = 2.0


def do_without_prefect() -> None:
    """From now on this process has no Prefect, and does not pay for importing it."""
    from blocks.engine import do_without_prefect as decided

    decided()


def choose(wanted: str, environ: Mapping[str, str] = os.environ) -> tuple[Engine, str]:
    """
    The engine to use, and one line about why; an empty line where it needs no word.

    Raises:
        BadInput: no such engine, or Prefect was demanded and does not answer.
    """
    if wanted not in {"auto", "none", "prefect"}:
        raise BadInput(f"--engine {wanted}: is none of auto, none, prefect")
    if wanted == "none":
        return "none", ""
    url = environ.get("PREFECT_API_URL", "")
    if not url:
        if wanted == "prefect":
            raise BadInput("--engine prefect: PREFECT_API_URL is not set")
        return "none", ""
    if answers(url):
        return "prefect", f"engine: Prefect at {url}"
    line = f"Prefect at {url} does not answer within {PATIENCE_SECONDS:g} s"
    if wanted == "prefect":
        raise BadInput(f"--engine prefect: {line}")
    return "none", f"engine: none ({line})"


def answers(url: str, patience: float = PATIENCE_SECONDS) -> bool:
    """Whether a Prefect API answers here within so many seconds."""
    if not url.startswith(("http://", "https://")):
        return False
    import urllib.request

    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=patience) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False


def run(book: Runbook, mesh: str, mode: Mode, options: dict[str, Any], display: Display) -> Report:
    """Run a runbook by the engine this process was set up for, shown on `display`."""
    from blocks.engine import has_prefect
    from flows.runbook import execute, flow_of

    if has_prefect():
        from flows.under_prefect import NotBegun, call_here

        try:
            return call_here(flow_of(book), mesh, mode, options, display)
        except NotBegun as error:
            display.line(f"engine: none (Prefect answered, but could not begin the run: {error})")
    return execute(book, mesh=mesh, mode=mode, options=options, onlookers=[display])
