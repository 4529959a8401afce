"""`mesh lab`: the commands that bring a lab up, cut its power, show it and take it down."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from blocks.errors import BadInput
from deployments.lab import control, hosts, lifecycle, state
from deployments.lab.layout import DATACENTERS, Layout

DONE, FAILED, BAD_INPUT = 0, 1, 2


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add `lab` and its commands to a program's; `run` carries them out."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "lab",
        help="the mesh on this machine, out of real servers",
        description="The mesh on this machine, out of real servers. "
        f"Its state is in ${state.DIRECTORY_VARIABLE} (default {state.DEFAULT_DIRECTORY}), its "
        f"addresses in ${state.NETWORK_VARIABLE} (default {state.DEFAULT_NETWORK}).",
    )
    add_commands(parser)
    return parser


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Add the lab's commands to a parser of their own."""
    commands = parser.add_subparsers(dest="lab_command", metavar="COMMAND", required=True)

    up = commands.add_parser("up", help="start the clouds, with every host off")
    up.add_argument(
        "--size",
        choices=("small", "full"),
        help="small: one server a role; full: three (default: small, or that of the disks there)",
    )
    up.add_argument(
        "--wait", action="store_true", help="stay; Ctrl-C takes the lab down (its disks stay)"
    )

    status = commands.add_parser("status", help="show every host")
    status.add_argument("--json", action="store_true", help="as one line of JSON")

    cut = commands.add_parser("power-cut", help="kill -9 every process of every host at once")
    _add_datacenter(cut)

    on = commands.add_parser("power-on", help="switch hosts on and wait until they have booted")
    _add_datacenter(on)
    on.add_argument("hosts", nargs="*", metavar="HOST", help="default: all")

    down = commands.add_parser("down", help="end the lab: no process left, all ports free")
    down.add_argument("--wipe", action="store_true", help="remove its disks as well")

    logs = commands.add_parser("logs", help="show what a unit of a host has written")
    logs.add_argument("host", metavar="HOST")
    logs.add_argument("unit", metavar="UNIT", help="a unit, or sshd, or boot")
    logs.add_argument("-n", "--lines", type=int, default=50, metavar="N", help="last N lines")


def _add_datacenter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--datacenter", choices=DATACENTERS, help="only this one's")


def run(args: argparse.Namespace) -> int:
    """Carry out a command of `mesh lab`; its exit status."""
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "up": _up,
        "status": _status,
        "power-cut": _power_cut,
        "power-on": _power_on,
        "down": _down,
        "logs": _logs,
    }
    try:
        return commands[args.lab_command](args)
    except BadInput as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return BAD_INPUT
    except (control.ControlFailed, lifecycle.LabFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m deployments.lab`."""
    parser = argparse.ArgumentParser(prog="mesh lab")
    add_commands(parser)
    return run(parser.parse_args(arguments))


def _up(args: argparse.Namespace) -> int:
    up = lifecycle.up(args.size)
    lab = up.layout
    disks = "disks as they were left" if up.reused else "new disks"
    print(
        f"lab {lab.size} is up in {up.seconds:.1f} s: {len(lab.hosts)} hosts, all off, {disks}\n"
        f"  aws       {lab.aws_url}\n"
        f"  proxmox   {lab.proxmox_url}\n"
        f"  topology  {lab.directory / 'mesh.yaml'}"
    )
    if not args.wait:
        return DONE
    print("  Ctrl-C takes it down", flush=True)
    for which in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(which, signal.default_int_handler)
    try:
        while state.holder(lab.directory) is not None:
            time.sleep(0.5)
    except KeyboardInterrupt:
        pass
    lifecycle.down()
    print("lab is down")
    return DONE


def _status(args: argparse.Namespace) -> int:
    directory = state.directory()
    if state.holder(directory) is None:
        if args.json:
            print(json.dumps({"running": False, "directory": str(directory)}))
            return DONE
        raise BadInput(f"no lab runs in {directory}: `mesh lab up` starts one")
    seen = control.request(directory, "status")
    if args.json:
        print(json.dumps({**seen, "directory": str(directory)}))
        return DONE
    print(
        f"lab {seen['size']} in {directory}, network {seen['network']}, "
        f"up for {_duration(seen['seconds'])}, pid {seen['pid']}\n"
    )
    rows = [("host", "cloud", "address", "power", "units")]
    rows += [
        (h["name"], h["cloud"], h["address"], h["power"], _units(h["units"], h["active"]))
        for h in seen["hosts"]
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        print(f"  {'  '.join(cells)}  {row[4]}".rstrip())
    print(
        f"\n  {seen['facade']} is a facade: OpenBao, and beside it a Consul secrets engine of the lab's"
    )
    return DONE


def _power_cut(args: argparse.Namespace) -> int:
    lab, names = _hosts_of(args.datacenter)
    answer = control.request(lab.directory, "power-cut", hosts=names)
    where = args.datacenter or "all datacenters"
    print(
        f"power cut in {where}: {len(names)} hosts off, {answer['killed']} processes killed "
        f"in {answer['seconds'] * 1000:.0f} ms"
    )
    return DONE


def _power_on(args: argparse.Namespace) -> int:
    lab, names = _hosts_of(args.datacenter, args.hosts)
    answer = control.request(lab.directory, "power-on", hosts=names)
    print(f"{answer['started']} of {len(names)} hosts switched on in {answer['seconds']:.1f} s")
    return DONE


def _down(args: argparse.Namespace) -> int:
    ran = lifecycle.down(wipe=args.wipe)
    ended = "lab is down" if ran else "no lab was running"
    print(f"{ended}, its disks are wiped" if args.wipe else ended)
    return DONE


def _logs(args: argparse.Namespace) -> int:
    directory = state.directory()
    lab = state.read(directory)
    if lab is None:
        raise BadInput(f"there is no lab in {directory}: `mesh lab up` makes one")
    known = [h.name for h in lab.hosts]
    if args.host not in known:
        raise BadInput(f"{args.host}: no host of this lab ({', '.join(known)})")
    root = lab.root(args.host)
    file = hosts.log_file(root, args.unit)
    if not file.exists():
        written = ", ".join(hosts.logs(root)) or "none"
        raise BadInput(f"{args.unit} has written nothing on {args.host} (written have: {written})")
    with file.open(errors="replace") as stream:
        sys.stdout.writelines(deque(stream, max(args.lines, 0)))
    return DONE


def _hosts_of(datacenter: str | None, asked: Sequence[str] = ()) -> tuple[Layout, list[str]]:
    """The running lab, and the hosts that are meant."""
    directory = state.directory()
    lab = state.read(directory)
    if lab is None or state.holder(directory) is None:
        raise BadInput(f"no lab runs in {directory}: `mesh lab up` starts one")
    names = [h.name for h in lab.hosts if datacenter in {None, h.datacenter}]
    if unknown := [name for name in asked if name not in names]:
        where = f"of {datacenter}" if datacenter else "of this lab"
        raise BadInput(f"{n}: no host {where} ({', '.join(names)})" for n in unknown)
    return lab, list(asked) or names


def _units(units: Sequence[str], active: Sequence[str]) -> str:
    on = [u for u in units if u in active]
    if not on:
        return "-"
    return f"{len(on)} of {len(units)} active: {' '.join(on)}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
