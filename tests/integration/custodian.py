"""
A custodian who gives shares to Vault by hand while a runbook is at it.

    python -m tests.integration.custodian DIRECTORY NETWORK HOLDER...

gives all shares of these holders to the first node of a small lab.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.harness.lab import Lab
from tests.integration.outside import Outside


def main(directory: str, network: str, *holders: str) -> None:
    """Give the shares, one by one."""
    seen = Outside(Lab(Path(directory), network, "small"))
    node = seen.vaults[0]
    for share in seen.shares(*holders):
        seen.vault("sys/unseal", host=node, verb="PUT", json={"key": share}).raise_for_status()


if __name__ == "__main__":
    main(*sys.argv[1:])
