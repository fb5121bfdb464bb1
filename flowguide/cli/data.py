"""The command ``data``: prepare a data set, describe one, list them."""

from __future__ import annotations

import itertools
import textwrap
from typing import Any

import tensorflow_datasets as tfds
from absl import flags

from flowguide import sampling, storage
from flowguide.cli.command import Command
from flowguide.cli.common import columns_in, define_column_flags
from flowguide.data import OURS, describe_dataset, embed, encode, import_path, is_path, open_path, prepare
from flowguide.data.preparing import find_builder
from flowguide.errors import UserError, hint, listed
from flowguide.schema import Records

DESCRIPTION = """
Prepares, imports, embeds, encodes, describes and lists data sets.

  flowguide data prepare fashion_mnist --files=DIR    prepare a set, so that it can be read without TensorFlow
  flowguide data import photos/ my_photos             write a file or folder as a prepared set, to read it by name
  flowguide data embed photos/ --field=caption --encoder=hf:google-t5/t5-base --out=my_photos
                                                      the same with texts as embeddings; also of a set, by its name
  flowguide data encode avatars --vae=FILE --out=avatars_latents    write the latents of a set, or a file or folder
  flowguide data describe avatars                     shape, kind and fields of a set, or of a file or folder
  flowguide data list                                 what is prepared, and what could be

An imported set is read by all processes of a pod, also from a bucket (--data_dir=gs://BUCKET/data), and trains as
--data=PATH does. --example, --fields and --image_size say what of a file or folder to take.

embed replaces the texts of --field by their embeddings, so that prompts may be any text that --encoder takes: a text
encoder of Hugging Face's Transformers, or package.module:function of yours.

An encoded set holds latents, and a model trained on it draws images; --vae is an autoencoder's file (safetensors or
PyTorch, as Stable Diffusion's) or a run of the task autoencoder. embed and encode resume when they are run again.
"""
# By name, what each takes.
ACTIONS = {
    "prepare": ("name",),
    "import": ("path", "name"),
    "embed": ("name or path",),
    "encode": ("name or path",),
    "describe": ("name",),
    "list": (),
}

EMBED = ("field", "encoder", "length")
_COLUMNS = ("example", "fields", "image_size")
# By action, the flags that it uses; all use --data_dir.
FLAGS = {
    "prepare": ("files",),
    "import": _COLUMNS,
    "embed": (*_COLUMNS, "out", "batch_size", *EMBED),
    "encode": (*_COLUMNS, "out", "batch_size", "vae", "test_split", "flips", "scale", "latent_dtype"),
    "describe": _COLUMNS,
    "list": (),
}


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
    flags.DEFINE_string("out", None, "embed, encode: name of the new set", flag_values=values)
    flags.DEFINE_integer(
        "batch_size",
        None,
        "embed, encode: texts or images at a time; by default 64 and 32",
        lower_bound=1,
        flag_values=values,
    )
    _define_embedding(values)
    _define_encoding(values)


def _define_embedding(values: flags.FlagValues) -> None:
    flags.DEFINE_string("field", None, "embed: the column or feature that holds the texts", flag_values=values)
    flags.DEFINE_string(
        "encoder",
        None,
        "embed: hf:NAME of a text encoder that Transformers knows, or package.module:function, from a list of texts to "
        "a list of float arrays (L, size)",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "length",
        None,
        "embed: the largest number of vectors of a text; longer ones are cut. By default that of the longest text",
        lower_bound=1,
        flag_values=values,
    )


def _define_encoding(values: flags.FlagValues) -> None:
    flags.DEFINE_string("vae", None, "encode: the autoencoder, a file or the folder of its run", flag_values=values)
    flags.DEFINE_string("test_split", "test", "encode: what becomes the split test", flag_values=values)
    flags.DEFINE_bool("flips", True, "encode: also the mirrored images, for --config.flip", flag_values=values)
    flags.DEFINE_float(
        "scale",
        None,
        "encode: factor of the latents that the network sees, 0.18215 for Stable Diffusion's; by default each channel "
        "is standardised",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "latent_dtype", "float32", ["float32", "float16"], "encode: of what is stored", flag_values=values
    )


def main(values: flags.FlagValues, *words: str) -> None:
    """Runs one action."""
    action, *names = words or ("",)
    if action not in ACTIONS:
        raise UserError(f"expected an action, {', '.join(ACTIONS)}; got {action!r:.100}{hint(action, ACTIONS)}")
    if len(names) != len(ACTIONS[action]):
        takes = "".join(f" and one {word}" for word in ACTIONS[action])
        raise UserError(f"expected {action}{takes}; got {' '.join(words)!r:.100}")
    _check_flags(action, values)
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
    elif action == "embed":
        _embed(names[0], values, columns)
    elif action == "encode":
        _encode(names[0], values, columns)
    else:
        _describe(names[0], values.data_dir, columns)


def _check_flags(action: str, values: flags.FlagValues) -> None:
    """Raises ``UserError`` for flags that do nothing."""
    for flag in dict.fromkeys(itertools.chain(*FLAGS.values())):
        if values[flag].present and flag not in FLAGS[action]:
            users = listed(other for other in FLAGS if flag in FLAGS[other])
            raise UserError(f"--{flag} is for {users}; got {action}: leave it out")


def _prepare(name: str, data_dir: str | None, files: str | None) -> None:
    print(_prepared(name, prepare(name, data_dir, files)))


def _import(path: str, name: str, data_dir: str | None, columns: dict[str, Any]) -> None:
    done = import_path(path, name, data_dir, **columns, progress=True)
    _tell(name, done.builder, done.written, data_dir)


def _embed(source: str, values: flags.FlagValues, columns: dict[str, Any]) -> None:
    if values.field is None or values.encoder is None or values.out is None:
        raise UserError("embed takes --field=COLUMN, --encoder=ENCODER and --out=NAME of the new set")
    options = {name: values[name].value for name in EMBED}
    if values.batch_size is not None:
        options["batch_size"] = values.batch_size
    name = values.out
    done = embed(source, name, values.data_dir, **options, **columns, progress=True)
    if done.cut:
        length, _ = describe_dataset(name, data_dir=values.data_dir).fields[values.field].shape
        print(f"{done.cut:,} texts were cut to {length} vectors: --length allows more, if the encoder does")
    _tell(name, done.builder, done.written, values.data_dir, f" --fields={values.field}")


def _tell(name: str, builder: Any, written: bool, data_dir: str | None, fields: str = "") -> None:
    print(_prepared(name, builder) + ("" if written else " (the same data as before: nothing was written)"))
    option = f" --config.data.data_dir={data_dir}" if data_dir else ""
    print(f"train on it: flowguide train --data={name}{fields}{option} --workdir=runs/{name}")
    print(f"or with a config: --config.data.name={name}{option}")


def _encode(source: str, values: flags.FlagValues, columns: dict[str, Any]) -> None:
    if not values.vae or not values.out:
        raise UserError("encode takes --vae=FILE, or the folder of a run, and --out=NAME of the new set")
    autoencoder = sampling.load_autoencoder(values.vae)
    done = encode(
        source,
        values.out,
        autoencoder,
        values.data_dir,
        **columns,
        test_split=values.test_split,
        flips=values.flips,
        scale=values.scale,
        dtype=values.latent_dtype,
        **({} if values.batch_size is None else {"batch": values.batch_size}),
        progress=True,
    )
    _tell(values.out, done.builder, done.written, values.data_dir)


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
