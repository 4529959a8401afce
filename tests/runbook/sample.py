"""A runbook that behaves as it is told, and changes nothing but a file of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from blocks import calls
from blocks.errors import BadInput, Forbidden, Invalid, Transient, Unreachable, Unsafe
from flows.report import PlanRow, Problem
from flows.run import Stage
from flows.runbook import Run, runbook
from tasks import record, stopping
from tasks.record import ItemRow
from tasks.step import fan_out, in_flow_run, step

Behaviour = Literal[
    "change",
    "nothing",
    "check",
    "refuse",
    "refuse-many",
    "unsafe-late",
    "forbidden-early",
    "unreachable-early",
    "bad-input",
    "fail",
    "not-safe",
    "defect",
    "defect-early",
    "plan-changes",
    "hang",
    "cleanup",
    "stubborn",
    "leak",
    "leak-text",
    "leak-retry",
    "many",
]

MANY = 2500  # items of `many`; the last of them fails

TOUCHED: list[str] = []  # the world this runbook changes

# Planted where a client library would quote a request; it may appear nowhere.
CANARY = "hvs.c4n4ry-s3cr3t"


@step("touch {name}")
def touch(name: str) -> None:
    """Change something: one mutating call."""
    with calls.call(f"host {name}", f"touch {name}", mutates=True):
        TOUCHED.append(name)
    record.current().change(name, "touched", before="-", after="x", seconds=0.01)
    record.current().seen(name, "up")


@step("look at {name}")
def look(name: str) -> None:
    """Look at something: one call that changes nothing."""
    with calls.call(f"host {name}", f"look at {name}", mutates=False):
        pass


@step("leak {how}")
def leak(how: str) -> None:
    """Fail as a client library might: with a secret in the error's text, or in its cause."""
    try:
        raise RuntimeError(f"PUT /v1/x token={CANARY}")
    except RuntimeError as cause:
        if how == "leak-text":
            raise
        kind = Transient if how == "leak-retry" else Invalid
        raise kind("the server rejects it", where="vault vault-1", remedy="mend it") from cause


def _touched(host: str, stage: Stage) -> None:
    touch(host)
    stage.done(host)


def _many(run: Run) -> None:
    names = [f"item-{number:04}" for number in range(MANY)]
    run.recorder.items = lambda: [
        ItemRow(name, "done" if name != names[-1] else "failed at prove", "due", 60, "old", "new")
        for name in names
    ]
    with run.stage("tokens", of=MANY) as stage, record.current().summed():
        for name in names[:-1]:
            record.current().changed_one("vault", "token of {} promoted", name, after="new")
            stage.done()


def _wait(marker: str, seconds: float) -> None:
    if marker:
        Path(marker).write_text(str(os.getpid()))
    record.current().waiting("a-1", "an answer that never comes", deadline=seconds)
    stopping.pause(seconds)


@runbook("sample", title="{behaviour}")
def sample(
    run: Run,
    *,
    behaviour: Behaviour = "change",
    hosts: list[str] = ["a-1", "a-2"],  # noqa: B006 - shown in a form, never changed
    seconds: float = 30.0,
    marker: str = "",
    loud: bool = False,
) -> None:
    """
    Do as a test says.

    1. Look at every host.
    2. Touch every host.

    Args:
        behaviour: What to do, and
            how to end.
        hosts: Names of what to touch.
        seconds: How long `hang` takes.
        marker: File to write once the hanging begins.
        loud: Say more.
    """
    run.measures["under_prefect"] = in_flow_run()
    with run.stage("survey", of=len(hosts)) as stage:
        for host in hosts:
            look(host)
            stage.done()
        match behaviour:
            case "forbidden-early":
                raise Forbidden(
                    "403 permission denied", where="ec2 us-east-1", remedy="mend the key"
                )
            case "unreachable-early":
                raise Unreachable("no answer", where="proxmox eu-west-1")
            case "bad-input":
                raise BadInput(["one thing is wrong", "another thing is wrong"])
            case "defect-early":
                raise KeyError(CANARY)
            case "refuse":
                run.refuse(
                    "2 of the 3 shares needed can be reached",
                    details=['holder "ops-b": AccessDenied', 'holder "ops-c": mode 0644'],
                    do="chmod 0400 the file",
                )
            case "refuse-many":
                run.refuse([Problem(error="first", where="x", do="A"), "second"])
            case "plan-changes":
                touch(hosts[0])

    rows = [] if behaviour == "nothing" else [
        PlanRow(step=1, action="touch", targets=" ".join(hosts), reason="they are off"),
        PlanRow(step=2, action="prove", targets="1 check", waits_for="1"),
    ]  # fmt: skip
    run.show_plan(rows, notices=["a notice"], header=[f"{run.mesh.name}: {len(hosts)} hosts"])

    if behaviour != "nothing":
        with run.stage("touch", step=1, of=len(hosts)) as stage:
            fan_out(lambda host: _touched(host, stage), hosts)
    match behaviour:
        case "many":
            _many(run)
        case "hang":
            with run.stage("hang", step=2):
                _wait(marker, seconds)
        case "cleanup":
            try:
                with run.stage("hang", step=2):
                    _wait(marker, seconds)
            finally:
                with stopping.shielded():
                    touch("put-back")
        case "stubborn":
            with stopping.shielded():
                _wait(marker, seconds)
        case "unsafe-late":
            raise Unsafe("too late to refuse")
        case "fail":
            with run.stage("fail", step=2):
                raise Transient(
                    "us-consul-3 did not join", where="us-consul-3", remedy="see its log"
                )
        case "not-safe":
            error = Invalid("the reply to init was lost")
            error.safe_to_rerun = False
            raise error
        case "leak" | "leak-text" | "leak-retry":
            with run.stage("leak", step=2):
                leak(behaviour)
        case "defect":
            with run.stage("defect", step=2):
                raise KeyError(CANARY)
    run.recorder.check("all touched", behaviour != "check", "as expected")
