"""``python -m flowguide`` is the command ``flowguide``."""

import sys

from flowguide.cli import main

if __name__ == "__main__":
    sys.exit(main())
