"""``python -m compass_coordinator`` is ``compass``."""

import sys

from compass_coordinator.cli import main

if __name__ == "__main__":
    sys.exit(main())
