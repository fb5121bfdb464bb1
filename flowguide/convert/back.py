"""From a run back to a state dict that the authors' code reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flowguide import build, config, kinds, sampling, storage, weights
from flowguide.config import Config
from flowguide.convert.families import FAMILIES
from flowguide.convert.family import Family, Sizes
from flowguide.convert.parts import shapes, to_state
from flowguide.convert.runs import LABEL, config_of
from flowguide.errors import UserError, listed, one_line
from flowguide.schema import DataInfo, Label, Latents

# Settings that change how a network is computed, and not what.
COMPUTATION = ("remat", "unroll", "dtype", "attention")


class Written(NamedTuple):
    """A file of weights that was written.

    Attributes:
      layout: name of its layout, in ``FAMILIES``.
      metadata: what the file says of itself. For a network of latents it holds the ``latent_mean`` and ``latent_scale``
        of each channel: the network sees (z - mean) / scale.
    """

    layout: str
    metadata: dict[str, str]


def to_file(workdir: Path, file: Path, name: str | None = None) -> Written:
    """Writes the averaged weights of a run as a safetensors file of a released network's layout.

    What a network here does not have is written as zeros (the channels of SiT that mean nothing) or left out (REPA's
    projectors).

    Args:
      workdir: of the run.
      file: to write, which must not be there.
      name: of the layout, in ``FAMILIES``; None for the first that the network has.

    Raises:
      UserError: if the run cannot be read, its network has no such layout, or the file is there or cannot be written.
    """
    if storage.exists(file):
        raise UserError(f"{file} is there already: choose another name for --to")
    model = sampling.load(workdir, decode=False)
    family, sizes = layout_of(config.read_config(workdir), model.info, name)
    parts = FAMILIES[family].parts(sizes)
    params = jax.tree.map(np.asarray, model.params)
    state = {key: np.ascontiguousarray(a, np.float32) for key, a in to_state(parts, sizes.depth, params).items()}
    metadata = {"format": "pt", "layout": FAMILIES[family].title}
    if isinstance(latents := model.info.examples, Latents):
        channels = latents.latent[-1]
        metadata["latent_mean"] = json.dumps(latents.mean or (0.0,) * channels)
        metadata["latent_scale"] = json.dumps(latents.scale or (1.0,) * channels)
    try:
        weights.write(file, state, metadata)
    except OSError as error:
        raise UserError(f"cannot write {file} ({one_line(error)}): make room, or choose another place") from error
    return Written(family, metadata)


def layout_of(c: Config, info: DataInfo, name: str | None = None) -> tuple[str, Sizes]:
    """Returns the name of the layout that a run's network has, and its sizes.

    Args:
      c: config of the run.
      info: of its data.
      name: the only layout to try.

    Raises:
      UserError: if it has none; it names the settings that are in the way of the one it is closest to.
    """
    if c.network.name != "dit" or len(info.model_shape) != 3 or len(set(info.model_shape[:2])) != 1:
        raise UserError(
            f"expected a run of the network 'dit' on square images or latents; got {c.network.name!r:.100} on "
            f"{info.model_shape}: no released network is like it"
        )
    if build.target(c).gammas is not None:
        raise UserError(
            f"expected a network of t, x and the class; got one of the target {c.target.name!r}, which also takes γ: "
            "no released network does"
        )
    if [(k, type(field)) for k, field in info.fields.items()] != [(LABEL, Label)]:
        raise UserError(
            f"expected a run whose only condition is the class, called {LABEL!r}; got {listed(info.fields) or 'none'}"
        )
    found = {}
    for each in FAMILIES if name is None else (name,):
        for sizes in _sizes(c, info, FAMILIES[each]):
            apart = _apart(c, FAMILIES[each], sizes)
            if not apart:
                return each, sizes
            found[each] = min(found.get(each, apart), apart, key=len)
    closest = min(found, key=lambda each: len(found[each]))
    raise UserError(f"the run's network is not laid out as {closest}: {'; '.join(found[closest])}")


def _sizes(c: Config, info: DataInfo, family: Family) -> list[Sizes]:
    n, (side, _, channels) = c.network, info.model_shape
    classes = len(info.fields[LABEL].values)  # type: ignore[attr-defined]
    rest = classes, n.bottleneck, n.class_tokens, n.class_tokens_from
    outputs = (2 * channels, channels) if family.doubled else (channels,)
    return [Sizes(n.width, n.depth, n.heads, n.patch, side // n.patch, channels, out, *rest) for out in outputs]


def _apart(c: Config, family: Family, sizes: Sizes) -> list[str]:
    """Returns the settings by which the run's network is another, each with what it is and what it would be."""
    mine, other = _settings(c), _settings(config_of(family, sizes))
    names = sorted({*mine, *other})
    if apart := [k for k in names if mine.get(k) != other.get(k)]:
        return [f"{k} is {mine.get(k)!r}, not {other.get(k)!r}" for k in apart]
    tensors = shapes(family.parts(sizes), sizes.depth)
    return [f"{key} would be empty" for key, shape in tensors.items() if not all(shape)][:1]


def _settings(c: Config) -> Mapping[str, Any]:
    groups: dict[str, Any] = kinds.tuples({name: c[name].to_dict() for name in ("network", "output", "path")})
    return {
        f"{group}.{name}": value
        for group, inside in groups.items()
        for name, value in inside.items()
        if name not in COMPUTATION
    }
