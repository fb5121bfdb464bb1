"""Samples from a clone: ``python sample.py --workdir=runs/avatars --cond="hat=red" --gamma=3``; see --help."""

import sys

from flowguide.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]], "sample.py"))
