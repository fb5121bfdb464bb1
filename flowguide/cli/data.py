"""The command ``data``: prepare a data set, describe one, list them."""

from __future__ import annotations

import textwrap
from typing import Any

import tensorflow_datasets as tfds
from absl import flags

from flowguide import storage
from flowguide.cli.command import Command
from flowguide.cli.common import columns_in, define_column_flags
from flowguide.data import OURS, describe_dataset, import_path, is_path, open_path, prepare
from flowguide.data.preparing import find_builder
from flowguide.errors import UserError, hint
from flowguide.schema import Records

DESCRIPTION = """
Prepares, imports, describes and lists data sets.

  flowguide data prepare fashion_mnist --files=DIR    prepare a set, so that it can be read without TensorFlow
  flowguide data import photos/ my_photos             write a file or folder as a prepared set, to read it by name
  flowguide data describe avatars                     shape, kind and fields of a set, or of a file or folder
  flowguide data list                                 what is prepared, and what could be

An imported set is read by all processes of a pod, also from a bucket (--data_dir=gs://BUCKET/data), and trains as
--data=PATH does. --example, --fields and --image_size say what of a file or folder to take.
"""
# By name, what each takes.
ACTIONS = {"prepare": ("name",), "import": ("path", "name"), "describe": ("name",), "list": ()}


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
    define_column_flags(values)


def main(values: flags.FlagValues, *words: str) -> None:
    """Runs one action."""
    action, *names = words or ("",)
    if action not in ACTIONS:
        raise UserError(f"expected an action, {', '.join(ACTIONS)}; got {action!r:.100}{hint(action, ACTIONS)}")
    if len(names) != len(ACTIONS[action]):
        takes = "".join(f" and one {word}" for word in ACTIONS[action])
        raise UserError(f"expected {action}{takes}; got {' '.join(words)!r:.100}")
    columns = {
        "example": columns_in("example", values.example),
        "fields": columns_in("fields", values.fields) or None,
        "image_size": values.image_size,
    }
    if action == "list":
        _list(values.data_dir)
    elif action == "prepare":
        _prepare(names[0], values.data_dir, values.files)
    elif action == "import":
        _import(names[0], names[1], values.data_dir, columns)
    else:
        _describe(names[0], values.data_dir, columns)


def _prepare(name: str, data_dir: str | None, files: str | None) -> None:
    print(_prepared(name, prepare(name, data_dir, files)))


def _import(path: str, name: str, data_dir: str | None, columns: dict[str, Any]) -> None:
    done = import_path(path, name, data_dir, **columns, progress=True)
    print(_prepared(name, done.builder) + ("" if done.written else " (the same data as before: nothing was written)"))
    option = f" --config.data.data_dir={data_dir}" if data_dir else ""
    print(f"train on it: flowguide train --data={name}{option} --workdir=runs/{name}")
    print(f"or with a config: --config.data.name={name}{option}")


def _prepared(name: str, builder: Any) -> str:
    splits = ", ".join(f"{split} {about.num_examples:,}" for split, about in builder.info.splits.items())
    return f"{name} is prepared in {builder.data_dir}: {splits}"


def _describe(name: str, data_dir: str | None, columns: dict[str, Any]) -> None:
    if name not in OURS and is_path(name):
        train, test = open_path(name, **columns)
        print(f"{train.size:,} examples to train on, {test.size:,} held out")
        info = train.info
    elif columns["example"]:
        raise UserError(f"--example is about files and folders; got the set {name}: leave it out")
    else:
        info = describe_dataset(name, columns["fields"], data_dir, image_size=columns["image_size"])
    about = f" of {info.examples.about}" if isinstance(info.examples, Records) else ""
    print(textwrap.fill(f"{name}: {info.examples.kind} {info.shape}{about}", 100, subsequent_indent="    "))
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
