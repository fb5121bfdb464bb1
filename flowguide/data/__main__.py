"""``python -m flowguide.data prepare NAME`` and ``python -m flowguide.data list``."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

import tensorflow_datasets as tfds

from flowguide.data import OURS, DataError, prepare
from flowguide.data.preparing import find_builder


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flowguide.data", description="Prepare and list data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare", help="prepare a data set, so that it can be read without TensorFlow")
    one.add_argument("name", help="a TFDS name, e.g. fashion_mnist")
    one.add_argument("--manual_dir", "--files", metavar="DIR", help="files of the source that you have already")
    every = commands.add_parser("list", help="list what is prepared, and what could be")
    for command in (one, every):
        command.add_argument("--data_dir", help="default: $TFDS_DATA_DIR or ~/tensorflow_datasets")
    options = parser.parse_args(arguments)
    if options.command == "list":
        _list(options.data_dir)
        return 0
    try:
        builder = prepare(options.name, options.data_dir, options.manual_dir)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    splits = ", ".join(f"{name} {split.num_examples:,}" for name, split in builder.info.splits.items())
    print(f"{options.name} is prepared in {builder.data_dir}: {splits}")
    return 0


def _list(data_dir: str | None) -> None:
    folder = Path(find_builder(OURS[0], data_dir).data_dir_root)  # knows where TFDS keeps its data
    prepared = sorted({path.relative_to(folder).parts[0] for path in folder.glob("*/**/dataset_info.json")})
    others = [name for name in tfds.list_builders(with_community_datasets=False) if name not in OURS]
    for title, names in (
        ("flowguide's own, prepared on first use", OURS),
        (f"prepared in {folder}", prepared),
        ("known to TFDS", others),
    ):
        print(f"{title}:")
        print(textwrap.fill(", ".join(names) or "none", 100, initial_indent="  ", subsequent_indent="  "))


if __name__ == "__main__":
    sys.exit(main())
