"""``fit``: from arrays, or a path, to a model in one call. It trains as ``train.py`` does."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from flowguide import sampling, storage
from flowguide.build import Splits, completing
from flowguide.config import Config, check_types
from flowguide.data import describe_table, of_arrays, open_path, open_table
from flowguide.data.embedding import embed_captions
from flowguide.data.tables import as_column
from flowguide.errors import UserError
from flowguide.kinds import checked
from flowguide.model import Model
from flowguide.networks import Network
from flowguide.schema import DataInfo, Records
from flowguide.training.loop import train
from flowguide.workdir import config_to_use

MINUTES = 5.0  # that a fit takes if nothing says how long
EXAMPLES = "examples"  # their column, beside those of the conditions


@checked
def fit(
    x: Any,
    condition: Any = None,
    *,
    workdir: str | Path | None = None,
    minutes: float | None = None,
    config: Config | None = None,
    network: Network | None = None,
    fields: Sequence[str] | None = None,
    example: Sequence[str] = (),
    image_size: int | None = None,
    known: bool = False,
    text_encoder: str | Callable[[list[str]], Any] | None = None,
    name: str = "data",
) -> Model:
    """Trains a flow-matching model of p(x | condition), and returns it.

    ```python
    model = flowguide.fit(images, labels, workdir="runs/mine", minutes=5)
    x = model.sample("cat", num=16, gamma=2.0)
    ```

    What the examples and the conditions are follows from dtypes and shapes, and is printed. Numbers are standardised,
    and samples are in your units again. A tenth of the examples is held out to validate with. Ctrl-C ends the training
    early and still returns a model; the same call resumes.

    Args:
      x: examples ``(N, ...)``: uint8 images ``(N, H, W)`` or ``(N, H, W, C)``, vectors ``(N, d)``, signals
        ``(N, T, C)``, images or volumes of floats ``(N, [D,] H, W, C)``; a dict, a data frame or a structured array of
        columns ``(N,)``, of which texts and booleans are classes; or a path, see ``data.files.tables_of``.
      condition: one for each example: whole numbers or texts of few different values are classes, other texts are
        captions, other numbers ``(N,)`` or ``(N, k)`` are vectors; or a dict or a data frame of several by name. None
        trains without.
      workdir: folder of the run; ``load`` finds the model there. By default a new temporary folder, which is printed.
      minutes: to train for, compilation included; by default 5, or what ``config`` says.
      config: settings of ``train.py``, if you want to choose them: ``config.default()``, changed.
      network: a network of your own (``networks.as_network`` of an NNX module, or ``Network(init, velocity)`` of pure
        functions). ``load`` needs it again.
      fields: of a path, the columns of the condition; by default all that are no examples.
      example: of a path, the columns that are the examples.
      image_size: of a path, the side to which images are cropped and resized.
      known: whether the model also learns to complete an example from any part of it, for inpainting and imputation:
        ``model.sample({"known": x})`` with NaN where x is unknown.
      text_encoder: of the conditions that are captions: a function from a list of texts to a list of float arrays
        ``(L_i, size)``, or its name, see ``schema.encoders``. By default each word has a vector that is learned.
      name: of the data, for messages.

    Raises:
      UserError: for data that cannot be used, before anything is computed or written.
    """
    data = _opened(x, condition, name, example, fields, image_size, text_encoder)
    if known:
        data = completing(data)
    if minutes is None and config is None:
        minutes = MINUTES
    reason = None
    if config is None:
        there = None if workdir is None else storage.path(workdir)
        config, reason = config_to_use(there, data.train, minutes)
    chosen: Config = config
    check_types(chosen)
    chosen = chosen.copy_and_resolve_references()
    if network is not None:
        with chosen.unlocked():
            chosen.network = {"name": "given"}
    chosen.data.known = known
    if isinstance(x, str | Path):
        chosen.data.update({"path": str(x), "example": tuple(example), "fields": tuple(fields or ())})
    place = tempfile.mkdtemp(prefix="flowguide-") if workdir is None else workdir
    print(*filter(None, (describe(data), reason if network is None else None)), sep="\n", file=sys.stderr)
    print(f"the run is in {place}", file=sys.stderr)
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # Orbax warns of things that are meant to be
    try:
        train(chosen, place, data=data, network=network, minutes=minutes)
    finally:
        logging.set_verbosity(verbosity)
    return sampling.load(storage.path(place), network=network)


def _name_of(condition: Any) -> str:
    """Returns what a condition without a name is called."""
    a = as_column("condition", condition)
    return "label" if a.ndim == 1 and a.dtype.kind != "f" else "c"


def describe(data: Splits) -> str:
    """Returns what the data are found to be, in one line for examples and one for each field."""
    info = data.train.info
    lines = [f"{data.train.size:,} examples to train on and {data.test.size:,} held out: {_kind(info)}"]
    lines += [f"conditioned on {name}: {field.kind}, {field.takes:.200}" for name, field in info.fields.items()]
    return "\n".join(lines if info.fields else [*lines, "not conditioned on anything"])


def _kind(info: DataInfo) -> str:
    if isinstance(info.examples, Records):
        return f"rows of {info.examples.about}"
    if info.examples.as_pictures:
        return "images of {} x {} pixels, {} channels".format(*info.shape)
    names = {1: "vectors of {} numbers", 2: "signals of {} steps, {} channels"}
    text = names.get(len(info.shape), "float arrays of shape " + " x ".join(["{}"] * len(info.shape)))
    return text.format(*info.shape)


def _opened(
    x: Any,
    condition: Any,
    name: str,
    example: Sequence[str],
    fields: Sequence[str] | None,
    image_size: int | None,
    text_encoder: str | Callable[[list[str]], Any] | None = None,
) -> Splits:
    if isinstance(x, str | Path):
        if text_encoder is not None:
            raise UserError(f"text_encoder is for arrays; got the path {x}: embed its texts by `flowguide data embed`")
        if condition is not None:
            raise UserError(f"got a condition beside the path {x}: name columns of the path, fields=[...]")
        return Splits(*open_path(x, example, fields, image_size=image_size))
    if example or fields is not None or image_size is not None:
        raise UserError("example, fields and image_size are for paths; give arrays as x and condition")
    conditions = _columns(condition)
    if conditions is None:
        conditions = {} if condition is None else {_name_of(condition): condition}
    columns = {str(key): column for key, column in (_columns(x) or {EXAMPLES: x}).items()}
    if both := [name for name in conditions if name in columns]:
        raise UserError(f"got a condition called {both[0]!r}, as the examples are: call it something else")
    table, chosen = of_arrays(name, {**columns, **conditions}), tuple(columns)
    info = describe_table(table, chosen, tuple(conditions))
    if text_encoder is not None:
        table, info = embed_captions(table, info, text_encoder)
    return Splits(*(open_table(table, split, info, chosen) for split in ("train", "test")))


def _columns(given: Any) -> dict[Any, Any] | None:
    """Returns the columns of a dict, a data frame or a structured array by name; None for anything else."""
    if isinstance(given, Mapping):
        return dict(given)
    names = getattr(given, "columns", None)
    if names is None:
        names = getattr(getattr(given, "dtype", None), "names", None)
    return None if names is None else {name: given[name] for name in names}
