"""Runs of released weights: written from a state dict, and back to one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from flowguide import checkpoint, config, storage
from flowguide.autoencoder import FILE, Autoencoder, save_vae
from flowguide.config import Config
from flowguide.convert.family import Family, Sizes
from flowguide.errors import UserError
from flowguide.model import Model, from_config
from flowguide.networks import leaves_by_path
from flowguide.schema import DataInfo, Examples, Images, Label, Latents, Vectors, info_to_json
from flowguide.training.step import TrainState
from flowguide.typing import PyTree

LABEL = "label"


def config_of(family: Family, sizes: Sizes) -> Config:
    """Returns the config of a run of such a network."""
    c = config.default()
    c.network, c.output = family.network(sizes), family.output(sizes)
    c.update_from_flattened_dict(family.settings)
    return config.complete(c)


def info_of(family: Family, sizes: Sizes, classes: Sequence[str], vae: Autoencoder | None = None) -> DataInfo:
    """Returns what such a network was trained on.

    Args:
      family: of the network.
      sizes: of the network.
      classes: their names.
      vae: the autoencoder that decodes its latents; None if they are to stay latents, or for images.

    Raises:
      UserError: if there are not as many names as classes, or the autoencoder has other latents.
    """
    if len(classes) != sizes.classes:
        raise UserError(f"expected the names of {sizes.classes} classes; got {len(classes)}: give one for each")
    return DataInfo("imagenet", _examples(family, sizes, vae), {LABEL: Label(tuple(classes))})


def _examples(family: Family, sizes: Sizes, vae: Autoencoder | None) -> Examples:
    side, channels = sizes.side * sizes.patch, sizes.channels
    shape = (side, side, channels)
    if vae is not None and (not family.factor or vae.sizes.latent != channels):
        seen = f"{channels} channels of one like Stable Diffusion's" if family.factor else "no latents that it knows"
        raise UserError(
            f"--vae has latents of {vae.sizes.latent} channels, and this {family.title} sees {seen}: leave --vae out"
        )
    if family.pixels:
        return Images(shape)
    scale = (1 / family.factor,) * channels if family.factor else ()
    if vae is None:
        return Vectors(shape, scale=scale)
    image = (side * vae.sizes.factor, side * vae.sizes.factor, vae.sizes.channels)
    return Latents(image, shape, vae.identity, scale=scale)


def model_of(family: Family, sizes: Sizes, classes: Sequence[str]) -> Model:
    """Returns the model of such a network, without parameters."""
    return from_config(config_of(family, sizes), info_of(family, sizes, classes))


def write_run(
    workdir: Path,
    family: Family,
    sizes: Sizes,
    params: PyTree,
    classes: Sequence[str],
    vae: Autoencoder | None = None,
) -> None:
    """Writes a run: all of it, or nothing.

    It is of step 0, and holds no state of an optimiser: nothing is known of the training.

    Args:
      workdir: of the run; nothing may be there.
      family: of the network.
      sizes: of the network.
      params: as ``read_weights`` returns them.
      classes: their names.
      vae: the autoencoder that decodes its latents; the run keeps a copy. None without one.

    Raises:
      UserError: if something is there, or it cannot be written to.
    """
    check_free(workdir)
    c, info = config_of(family, sizes), info_of(family, sizes, classes, vae)
    _check_fits(from_config(c, info), params)
    texts = {"info.json": json.dumps(info_to_json(info), indent=1) + "\n", "config.json": config.config_text(c)}
    try:
        if storage.is_remote(workdir):  # the config comes last: without it there is no run
            _write(workdir, params, info, texts, vae)
        else:
            workdir.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{workdir.name}-", dir=workdir.parent) as beside:
                made = Path(beside) / workdir.name
                _write(made, params, info, texts, vae)
                made.rename(workdir)
    except (OSError, checkpoint.SaveError) as error:
        raise UserError(f"cannot write the run {workdir} ({error}): make room, or choose another folder") from error


def check_free(workdir: Path) -> None:
    """Raises ``UserError`` if something is at ``workdir`` already, or Orbax cannot write there."""
    checkpoint.check_place(workdir)
    if storage.exists(workdir):
        raise UserError(f"{workdir} is there already: choose another --workdir")


def _write(workdir: Path, params: PyTree, info: DataInfo, texts: Mapping[str, str], vae: Autoencoder | None) -> None:
    storage.make_folder(workdir)
    storage.make_folder(checkpoint.folder(workdir))
    state = TrainState(np.zeros((), np.int32), params, params, ())  # type: ignore[arg-type]
    nowhere: Any = SimpleNamespace(get_state=dict)  # no data were read
    saves = checkpoint.manager(workdir)
    with checkpoint.closing(saves):
        checkpoint.save(saves, state, nowhere, {"released": True}, info=info_to_json(info), wait=True)
    if vae is not None:
        save_vae(vae, workdir / FILE)
    for name, text in texts.items():
        storage.replace_text(workdir / name, text)


def _check_fits(model: Model, params: PyTree) -> None:
    """Raises ``TypeError`` if the parameters are not those of the model: the tables of a family are wrong."""
    expected = jax.eval_shape(model.network.init, jax.random.key(0))
    found, wanted = ({k: a.shape for k, a in leaves_by_path(tree).items()} for tree in (params, expected))
    if found != wanted:
        apart = sorted(found.items() ^ wanted.items())
        raise TypeError(f"the parameters are not those of the network: {apart[:6]}")
