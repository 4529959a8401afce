"""The lab's commands without the rest of `mesh`."""

import sys

from deployments.lab.commands import main

if __name__ == "__main__":
    sys.exit(main())
