"""Documents of Prefect blocks, read and written within a deadline and with our errors."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from blocks import calls
from blocks.engine import has_prefect
from blocks.errors import Forbidden, Invalid, MeshError, Refused, Transient, Unreachable

DEADLINE = 15.0

T = TypeVar("T")


def reachable() -> bool:
    """Whether this process has a Prefect API to ask."""
    if not has_prefect():
        return False
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())


def load(kind: type[T], name: str, deadline: float = DEADLINE) -> T | None:
    """
    A block document, `None` if there is none of that name and kind.

    Raises:
        Refused: this process has no Prefect API.
        Unreachable, Transient, Forbidden: the API does not serve it now, or not us.
        Invalid: the stored document does not fit its block.
    """

    def ask() -> T | None:
        block: Any = kind
        try:
            found: T = block.load(name, _sync=True)
        except ValueError as error:
            # Prefect says so of a document that is not there, and of one that does not fit.
            if "Unable to find block document" in str(error):
                return None
            raise
        return found

    return _asked(ask, f"load block {name}", mutates=False, deadline=deadline)


def save(block: Any, name: str, deadline: float = DEADLINE) -> None:
    """Store a block's fields as the document `name`; the same errors as `load`."""
    _asked(
        lambda: block.save(name, overwrite=True, _sync=True),
        f"save block {name}",
        mutates=True,
        deadline=deadline,
    )


def delete(kind: Any, name: str, deadline: float = DEADLINE) -> None:
    """Make a document not be there; the same errors as `load`."""

    def ask() -> None:
        try:
            kind.delete(name, _sync=True)
        except ValueError as error:
            if "Unable to find block document" not in str(error):
                raise

    _asked(ask, f"delete block {name}", mutates=True, deadline=deadline)


def _asked(ask: Callable[[], T], what: str, *, mutates: bool, deadline: float) -> T:
    """
    Run one of Prefect's own calls, for at most `deadline` seconds.

    Its client repeats by itself and bounds each read only, so it works in a
    thread that is left behind when the time is over.
    """
    if not reachable():
        raise Refused(
            f"{what}: this process has no Prefect API",
            where="prefect",
            remedy="set PREFECT_API_URL, or use another place for this",
        )
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(ask())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failed.append(error)

    with calls.call("prefect", what, mutates=mutates):
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(run,), daemon=True, name=what)
        thread.start()
        thread.join(deadline)
        if failed:
            # The cause's text may quote the document.
            raise _error(failed[0], what) from None
        if not done:
            raise Unreachable(f"{what}: no end within {deadline:g} s", where="prefect")
    return done[0]


def _error(error: BaseException, what: str) -> MeshError:
    import httpx

    if isinstance(error, MeshError):
        return error
    status = error.response.status_code if isinstance(error, httpx.HTTPStatusError) else 0
    message = f"{what}: {status or type(error).__name__}"
    if status in {401, 403}:
        return Forbidden(
            message, where="prefect", remedy="check PREFECT_API_AUTH_STRING or the key"
        )
    if status == 429 or status >= 500:
        return Transient(message, where="prefect")
    if isinstance(error, httpx.TransportError | OSError):
        return Unreachable(message, where="prefect")
    return Invalid(message, where="prefect", remedy="look at this block in the Prefect UI")
