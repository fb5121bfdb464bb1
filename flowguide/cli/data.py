"""The command ``data``: prepare a data set, describe one, list them."""

from __future__ import annotations

import textwrap

import tensorflow_datasets as tfds
from absl import flags

from flowguide import storage
from flowguide.cli.command import Command
from flowguide.data import OURS, describe_dataset, is_path, open_path, prepare
from flowguide.data.preparing import find_builder
from flowguide.errors import UserError, hint

DESCRIPTION = """
Prepares, describes and lists data sets.

  flowguide data prepare fashion_mnist --files=DIR    prepare a set, so that it can be read without TensorFlow
  flowguide data describe avatars                     shape, kind and fields of a set, or of a file or folder
  flowguide data list                                 what is prepared, and what could be
"""
ACTIONS = ("prepare", "describe", "list")


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string(
        "files", None, "folder with the source's own files, if you have them already", flag_values=values
    )
    flags.DEFINE_alias("manual_dir", "files", flag_values=values)
    flags.DEFINE_string(
        "data_dir",
        None,
        "where prepared sets are; by default $TFDS_DATA_DIR or ~/tensorflow_datasets",
        flag_values=values,
    )


def main(values: flags.FlagValues, *words: str) -> None:
    """Runs one action."""
    action, *names = words or ("",)
    if action not in ACTIONS:
        raise UserError(f"expected an action, {', '.join(ACTIONS)}; got {action!r:.100}{hint(action, ACTIONS)}")
    if len(names) != (action != "list"):
        raise UserError(f"expected {action}{' and one name' * (action != 'list')}; got {' '.join(words)!r:.100}")
    if action == "list":
        _list(values.data_dir)
    elif action == "prepare":
        _prepare(names[0], values.data_dir, values.files)
    else:
        _describe(names[0], values.data_dir)


def _prepare(name: str, data_dir: str | None, files: str | None) -> None:
    builder = prepare(name, data_dir, files)
    splits = ", ".join(f"{split} {about.num_examples:,}" for split, about in builder.info.splits.items())
    print(f"{name} is prepared in {builder.data_dir}: {splits}")


def _describe(name: str, data_dir: str | None) -> None:
    if name not in OURS and is_path(name):
        train, test = open_path(name)
        print(f"{train.size:,} examples to train on, {test.size:,} held out")
        info = train.info
    else:
        info = describe_dataset(name, data_dir=data_dir)
    print(f"{name}: {info.examples.kind} {info.shape}")
    for field_name, field in info.fields.items():
        print(textwrap.fill(f"{field_name}: {field.kind}, takes {field.takes}", 100, subsequent_indent="    "))


def _list(data_dir: str | None) -> None:
    folder = storage.path(find_builder(OURS[0], data_dir).data_dir_root)  # knows where TFDS keeps its data
    infos = [path for depth in ("*/*", "*/*/*") for path in folder.glob(f"{depth}/dataset_info.json")]
    prepared = sorted({path.relative_to(folder).parts[0] for path in infos})
    others = [name for name in tfds.list_builders(with_community_datasets=False) if name not in OURS]
    for title, names in (
        ("flowguide's own, prepared on first use", OURS),
        (f"prepared in {folder}", prepared),
        ("known to TFDS", others),
    ):
        print(f"{title}:")
        print(textwrap.fill(", ".join(names) or "none", 100, initial_indent="  ", subsequent_indent="  "))


COMMAND = Command(DESCRIPTION, define, main, takes_words=True)
