"""Plans from a clone: ``python plan.py --config=configs/imagenet64.py --devices=256 --chip=v5e``; see --help."""

import sys

from flowguide.cli import main

if __name__ == "__main__":
    sys.exit(main(["plan", *sys.argv[1:]], "plan.py"))
