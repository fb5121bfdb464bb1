"""Trains from a clone: ``python train.py --config=configs/avatars.py --workdir=runs/avatars``; see --help."""

import sys

from flowguide.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]], "train.py"))
