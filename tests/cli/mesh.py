"""`mesh` with the sample runbook beside its own: for tests, run as a module."""

from __future__ import annotations

import sys

from deployments.cli import main
from flows import registry

if __name__ == "__main__":
    registry.RUNBOOKS["sample"] = "tests.runbook.sample:sample"
    sys.exit(main())
