"""``python -m compass_agent`` is ``compass-agent``."""

import sys

from compass_agent.cli import main

if __name__ == "__main__":
    sys.exit(main())
