"""
The floor under a cold boot: the same servers, with nothing in between.

A bare script for the speed benchmark: it starts the processes that the hosts'
units start, in the order a cold boot needs, polls flat out and does nothing
else: no tasks, no flows, no SSH, no clouds, no report. What it takes is what
the servers take.

    python -m benchmarks.bare_boot day0      from empty disks to a proven mesh
    python -m benchmarks.bare_boot restart   everything dark, data on the disks
    python -m benchmarks.bare_boot cut       SIGKILL to all of it
    python -m benchmarks.bare_boot loop -n 5 day0 and restart, five times

The last line is JSON: seconds from the start to each phase's end. Key shares
and tokens are kept in a file of mode 0400 in its own directory.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import bare_steps as steps
from benchmarks.bare_mesh import Bench
from deployments.lab import processes
from deployments.lab.balancer import Balancer
from deployments.lab.disks import render
from deployments.lab.layout import PRIMARY, SECONDARY, Layout, Size

BALANCER_SECONDS = 0.5

# The two boots


def day0(bench: Bench) -> None:
    """From empty disks: init, set-up, ACLs, CA, federation, services."""
    steps.start_vault(bench, status=501)
    root = steps.initialise(bench)
    steps.unseal(bench, bench.vaults[0])
    active = steps.await_active(bench)
    steps.set_up_vault(bench, active, root)
    # The other Vault nodes join meanwhile: Consul needs the active one only.
    joining = [bench.pool.submit(steps.unseal, bench, host) for host in bench.vaults[1:]]

    # A gateway that is not there when a leader looks around counts as failed.
    bench.start([h.name for h in bench.layout.with_role("gateway")])
    bench.start(bench.servers(PRIMARY))
    steps.await_leader(bench, PRIMARY)
    steps.bootstrap_acls(bench)
    steps.await_acls(bench, PRIMARY)
    bench.start(bench.servers(SECONDARY))
    bench.start([h.name for h in bench.layout.with_role("app")])
    # The secondary's servers want their token before they elect: what their leader
    # replicates without one is nothing, and some of it is not asked for again soon.
    servers = bench.layout.with_role("consul-server")
    bench.all_of(
        partial(steps.connect_ca, bench, PRIMARY),
        *(partial(steps.hand_tokens, bench, h) for h in servers),
    )
    bench.mark("servers have tokens")
    # An agent with a token gets its leaf, and one of the built-in CA is no good elsewhere.
    bench.all_of(
        partial(steps.declare_intentions, bench),
        *(partial(steps.hand_tokens, bench, h) for h in bench.clients(PRIMARY)),
    )

    steps.await_leader(bench, SECONDARY)
    # A token that is not there yet when an agent first uses it is unknown to it for 30 s.
    bench.until("replication", partial(steps.replicated, bench))
    bench.mark("tokens replicated")
    steps.connect_ca(bench, SECONDARY)
    bench.all_of(*(partial(steps.hand_tokens, bench, h) for h in bench.clients(SECONDARY)))
    bench.mark("agents have tokens")
    steps.prove(bench)
    for future in joining:
        future.result()


def restart(bench: Bench) -> None:
    """Everything is dark, the disks are whole: open Vault, then start what hangs on it."""
    steps.start_vault(bench, status=503)
    bench.all_of(*(partial(steps.unseal, bench, h) for h in bench.vaults))
    bench.mark("vault nodes unsealed")
    steps.await_active(bench)
    bench.start([h.name for h in bench.layout.with_role("gateway")])
    bench.start(bench.servers(PRIMARY))
    # Its CA is in its log already: the secondary may come while it establishes itself.
    steps.await_leader(bench, PRIMARY, established=False)
    steps.await_acls(bench, PRIMARY)
    bench.start(bench.servers(SECONDARY))
    bench.start([h.name for h in bench.layout.with_role("app")])
    steps.await_leader(bench, SECONDARY)
    steps.prove(bench)


def fresh(layout: Layout) -> None:
    """New disks in the layout's directory."""
    for name in ("hosts", "pki", "bare.json"):
        path = layout.directory / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    render(layout)


def run(layout: Layout, boot: str) -> dict[str, Any]:
    """One boot from the dark; its timings."""
    processes.kill(layout.id)
    if boot == "day0":
        fresh(layout)
    bench = Bench(layout)
    bench.start_balancer()
    time.sleep(BALANCER_SECONDS)  # it was there before, as a cloud's is
    bench.began = time.monotonic()
    {"day0": day0, "restart": restart}[boot](bench)
    return {
        "boot": boot,
        "size": layout.size,
        "seconds": bench.phases["proven"],
        "began": bench.began,  # by the machine's monotonic clock
        "phases": bench.phases,
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description="Boot the lab's mesh with bare processes")
    parser.add_argument("action", choices=["day0", "restart", "cut", "loop", "balancer"])
    parser.add_argument("--size", choices=["small", "full"], default="full")
    parser.add_argument("--network", default="127.88")
    parser.add_argument("--directory", type=Path, default=Path(".lab/bare"))
    parser.add_argument("-n", type=int, default=5, help="loop: how many times")
    parser.add_argument("--keep", action="store_true", help="leave the mesh running")
    args = parser.parse_args()
    size: Size = args.size
    layout = Layout(size, args.network, args.directory.absolute(), f"bare-{args.network}")
    if args.action == "balancer":
        asyncio.run(_balance(layout))
    if args.action == "cut":
        print(processes.kill(layout.id))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for what is started here
    boots = ["day0", "restart"] * args.n if args.action == "loop" else [args.action]
    done = False
    try:
        for boot in boots:
            print(json.dumps(run(layout, boot)), flush=True)
        done = True
    finally:
        if not (done and args.keep):
            processes.kill(layout.id)
    return 0


async def _balance(layout: Layout) -> None:
    await Balancer(layout).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.exit(main())
