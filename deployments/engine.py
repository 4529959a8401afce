"""Which engine carries a runbook out: this process alone, or Prefect where it answers."""

from __future__ import annotations

import os
import threading
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


def prepare(chosen: Engine) -> None:
    """Set this process up for its engine; before anything of Prefect is imported."""
    if chosen == "none":
        from blocks.engine import do_without_prefect

        do_without_prefect()
    else:
        # The display tells it already, and better; Prefect's server gets its log all the same.
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")


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
    reason = unanswered(url, environ)
    if not reason:
        return "prefect", f"engine: Prefect at {url}"
    if wanted == "prefect":
        raise BadInput(f"--engine prefect: Prefect at {url} {reason}")
    return "none", f"engine: none (Prefect at {url} {reason})"


def unanswered(url: str, environ: Mapping[str, str] = os.environ) -> str:
    """Why a Prefect API does not answer here in time; empty if it does."""
    reasons = [f"does not answer within {PATIENCE_SECONDS:g} s"]
    # A time-out of the socket alone would let a server that drips bytes hold us for ever.
    asking = threading.Thread(target=lambda: reasons.append(_ask(url, environ)), daemon=True)
    asking.start()
    asking.join(PATIENCE_SECONDS)
    return reasons[-1]


def _ask(url: str, environ: Mapping[str, str]) -> str:
    import ssl
    import urllib.error
    import urllib.request

    if not url.startswith(("http://", "https://")):
        return "is no http or https address"
    trust = environ.get("PREFECT_API_SSL_CERT_FILE") or None
    try:
        context = ssl.create_default_context(cafile=trust) if url.startswith("https") else None
        asked = f"{url.rstrip('/')}/health"
        with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS, context=context):  # noqa: S310
            return ""
    except urllib.error.HTTPError as error:
        return f"answers with status {error.code}"
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLError):
            return "cannot prove who it is (see PREFECT_API_SSL_CERT_FILE)"
        return "does not answer"
    except (OSError, ValueError):
        return "does not answer"


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
