"""
The decorator of all runbooks.

`@runbook("cold-boot")` makes a body, `def cold_boot(run: Run, ...)`, a Prefect
flow for everybody who imports it, with a form, a run name and states of its
own; and the same body runs in this process with no Prefect at all.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocks.engine import has_prefect
from flows.execution import Order, carry_out
from flows.options import Parameter, check_all, parameters_of
from flows.report import Report
from flows.run import Mode, Onlooker, Run

if TYPE_CHECKING:
    from prefect import Flow

__all__ = ["Run", "Runbook", "as_runbook", "execute", "runbook"]

MESH = "The mesh to work on: a name, or a path to its topology file."
MODE = "`plan` shows what would be done and changes nothing; `apply` does it."


@dataclass(frozen=True)
class Runbook:
    """One runbook: its body, and what surrounds it."""

    name: str
    body: Callable[..., None]
    title: str = ""  # what to say of its options in the run's name: "fallback {fallback}"
    exclusive: bool = True  # nothing else may run on the mesh meanwhile
    parameters: list[Parameter] = field(default_factory=list)

    @property
    def summary(self) -> str:
        """What it does, in the first sentence of its docstring."""
        return (inspect.getdoc(self.body) or "").partition("\n\n")[0].replace("\n", " ")

    def run_name(self, mesh: str, mode: Mode, options: dict[str, Any]) -> str:
        """The name of one run: `cold-boot acme (fallback wait)`."""
        about = ["plan"] if mode == "plan" else []
        if self.title:
            about.append(self.title.format_map(options))
        return f"{self.name} {Path(mesh).stem}" + (f" ({', '.join(about)})" if about else "")

    def __call__(self, mesh: str, mode: Mode = "plan", **options: Any) -> Report:
        """Run it in this process, as its flow does, without Prefect."""
        return execute(self, mesh=mesh, mode=mode, options=options)


def runbook(
    name: str, *, title: str = "", exclusive: bool = True
) -> Callable[[Callable[..., None]], Any]:
    """
    Make a body a runbook: a Prefect `Flow`, or a `Runbook` where there is no Prefect.

    Its options are the body's parameters after `run`, described in the
    docstring's `Args:`; `mesh` and `mode` are put before them.
    """

    def decorate(body: Callable[..., None]) -> Any:
        made = Runbook(name, body, title, exclusive, parameters_of(body))
        if not has_prefect():
            return made
        return flow_of(made)

    return decorate


def flow_of(book: Runbook) -> Flow[..., Any]:
    """The Prefect flow of a runbook; imports Prefect."""
    from flows.under_prefect import as_flow

    return as_flow(book, _flow_body(book))


def as_runbook(made: Any) -> Runbook:
    """The runbook behind what the decorator gave, whichever of the two it is."""
    found = made if isinstance(made, Runbook) else getattr(made, "runbook", None)
    if not isinstance(found, Runbook):
        raise TypeError(f"{made!r} is no runbook")
    return found


def execute(
    made: Any,
    *,
    mesh: str,
    mode: Mode = "apply",
    options: dict[str, Any] | None = None,
    onlookers: Sequence[Onlooker] = (),
    **order: Any,
) -> Report:
    """
    Run a runbook in this process with no Prefect, and give its report.

    Never raises for what goes wrong in the run: see `outcome` and `problem`.

    Raises:
        BadInput: an option that the runbook does not have, or of another type.
    """
    book = as_runbook(made)
    checked = check_all(book.parameters, options or {})
    return carry_out(
        book, Order(mesh=mesh, mode=mode, options=checked, onlookers=onlookers, **order)
    )


def _flow_body(book: Runbook) -> Callable[..., Any]:
    """The function whose signature is the flow's form."""
    either = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature(
        [
            inspect.Parameter("mesh", either, annotation=str),
            inspect.Parameter("mode", either, annotation=Mode, default="plan"),
            *(
                inspect.Parameter(p.name, either, annotation=p.annotation, default=p.default)
                for p in sorted(book.parameters, key=lambda p: not p.required)
            ),
        ]
    )

    @functools.wraps(book.body)
    def body(*args: Any, **kwargs: Any) -> Any:
        from flows import under_prefect

        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        options = dict(given.arguments)
        mesh, mode = options.pop("mesh"), options.pop("mode")
        if under_prefect.flow_run_id() is None:
            return book(mesh, mode, **options)
        return under_prefect.carry_out_in_flow(book, mesh, mode, options)

    body.__signature__ = signature  # type: ignore[attr-defined]
    body.__doc__ = _flow_docstring(book)
    return body


def _flow_docstring(book: Runbook) -> str:
    # Prefect's form takes a parameter's description from here and nowhere else.
    told = inspect.getdoc(book.body) or ""
    lines = ["Args:", f"    mesh: {MESH}", f"    mode: {MODE}"]
    if "\nArgs:\n" in told:
        return told.replace("\nArgs:\n", "\n" + "\n".join(lines) + "\n", 1)
    return told + "\n\n" + "\n".join(lines) + "\n"
