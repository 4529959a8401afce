"""How long a plan takes for a mesh of 1,000 hosts; in process, nothing is talked to."""

from __future__ import annotations

import statistics
import time
from datetime import UTC, datetime
from typing import Any

from blocks.topology import Mesh, parse
from tasks.planning.cold_boot import plan_cold_boot
from tasks.planning.survey import dark

HOSTS = 1000
DATACENTERS = 10
RUNS = 5


def mesh() -> Mesh:
    """Ten datacenters of a hundred hosts, five servers each, a service on every other host."""
    datacenters, services = [], []
    per = HOSTS // DATACENTERS
    for number in range(DATACENTERS):
        dc = f"dc-{number}"
        names = [f"{dc}-host-{i}" for i in range(per)]
        datacenters.append(
            {
                "name": dc,
                "cloud": {"kind": "aws", "region": "us-east-1"},
                "hosts": [
                    {"name": name, "address": f"10.{number}.0.{i + 1}", "host_key": "ssh-ed25519 A"}
                    for i, name in enumerate(names)
                ],
                "consul": {"servers": names[:5], "intermediate_pki_path": f"intermediate-{number}"},
                "gateways": [
                    {
                        "host": names[5],
                        "lan": f"10.{number}.0.6:8443",
                        "wan": f"192.0.2.{number}:8443",
                    }
                ],
            }
        )
        first = 9 if number == 0 else 6
        services += [
            {
                "name": f"service-{number}-{i}",
                "datacenter": dc,
                "host": name,
                "units": [f"service-{i}"],
                "port": 8080,
            }
            for i, name in enumerate(names[first:])
        ]
    return parse(
        {
            "name": "thousand",
            "primary": "dc-0",
            "datacenters": datacenters,
            "vault": {
                "nodes": ["dc-0-host-6", "dc-0-host-7", "dc-0-host-8"],
                "address": "https://vault.example:8200",
                "holders": [
                    {"name": name, "store": "prompt", "shares": shares}
                    for name, shares in (("a", 2), ("b", 2), ("c", 1))
                ],
            },
            "services": services,
        }
    )


def measure() -> dict[str, Any]:
    """Median seconds from a survey to a plan that can be shown."""
    topology = mesh()
    survey = dark(topology, datetime.now(UTC))
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        plan = plan_cold_boot(topology, survey)
        rows = plan.as_rows()
        taken.append(time.perf_counter() - began)
    if not plan.steps:
        raise SystemExit(f"no plan: {plan.refusals}")
    hosts = sum(len(dc.hosts) for dc in topology.datacenters)
    return {
        "hosts": hosts,
        "steps": len(plan.steps),
        "rows": len(rows),
        "seconds": round(statistics.median(taken), 3),
    }
