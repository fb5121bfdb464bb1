"""Loads the model of a training run."""

from __future__ import annotations

import json
from pathlib import Path

import jax

from flowguide import checkpoint, snapshots, storage
from flowguide.autoencoder import Autoencoder, Sizes, load_decoder, load_vae
from flowguide.config import Config, read_config
from flowguide.errors import UserError
from flowguide.kinds import checked
from flowguide.model import Model, from_config
from flowguide.networks import Network
from flowguide.schema import Latents, Series, encoders, info_from_json
from flowguide.training.ema import power_exponent


@checked
def load(
    workdir: str | Path,
    step: int | None = None,
    *,
    ema: float | None = None,
    trust_code: bool = False,
    network: Network | None = None,
    decode: bool = True,
    tile: int = 0,
) -> Model:
    """Loads the model in ``workdir``, with the averaged parameters of one of its checkpoints.

    Args:
      workdir: of the run; also an address, ``gs://bucket/run``.
      step: of the checkpoint; None for the newest or, if the config says so (``use``), the best in validation.
      ema: relative width of another average, 0 < ema < 0.2887, which is made of the snapshots of a run with
        ``posthoc.every``; ``step`` is then that of a snapshot.
      trust_code: allow the import of a network and of text encoders from outside flowguide, if the run names some.
      network: the network that was passed to ``fit`` as an object; no file holds it.
      decode: whether a model of latents returns images. If not, it returns latents, float32 in the autoencoder's units.
      tile: side in latents of the tiles in which they are decoded, where memory is short; 0 for whole images.

    Raises:
      UserError: if there is no run or checkpoint, it cannot be read, it draws nothing (a classifier, an autoencoder),
        it names foreign code that is not trusted, or its snapshots do not give the average ``ema``.
    """
    workdir = storage.path(workdir)
    config = read_config(workdir, trusted=None if trust_code else "")
    if config.task != "flow":
        raise UserError(
            f"{workdir} holds a run of the task {config.task}, which draws nothing: give a run of a velocity"
        )
    model = _restored(workdir, config, step, network, ema)
    if trust_code:
        for field in model.info.fields.values():
            if isinstance(field, Series) and field.encoder:
                encoders.trust(field.encoder)
    examples = model.info.examples
    if decode or not isinstance(examples, Latents):
        return model._replace(decoder=load_decoder(workdir, examples, tile))
    return model._replace(info=model.info._replace(examples=examples._replace(decoded=False)))


@checked
def load_autoencoder(path: str | Path, step: int | None = None) -> Autoencoder:
    """Returns the autoencoder in a file (see ``load_vae``), or that of a run of the task "autoencoder".

    Args:
      path: of the file, or the folder of the run.
      step: of the checkpoint of a run, as for ``load``.

    Raises:
      UserError: if there is none, or it cannot be read.
    """
    place = storage.path(path)
    if not place.is_dir():
        return load_vae(place)
    config = read_config(place)
    if config.task != "autoencoder":
        raise UserError(f"{place} holds a run of the task {config.task}: give one of the task autoencoder, or a file")
    model = _restored(place, config, step)
    n = config.network
    sizes = Sizes(model.info.shape[-1], tuple(n.widths), n.blocks, n.latent, n.groups)
    return Autoencoder(sizes, model.params)


def _restored(
    workdir: Path, config: Config, step: int | None, network: Network | None = None, ema: float | None = None
) -> Model:
    """Returns the model of a run with its averaged parameters, those of width ``ema`` if that is not None."""
    if ema is not None:
        _check_ema(workdir, config, ema)
    file = workdir / "info.json"
    try:
        content = json.loads(storage.read_text(file))
        info = info_from_json(content)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): restore it from a copy, or from the run's command"
        ) from error
    model = from_config(config, info, network)
    like = jax.eval_shape(model.network.init, jax.random.key(0))
    best = checkpoint.best_step(workdir) if step is None and config.use == "best" else None
    if ema is None:
        params, step = checkpoint.restore_ema(workdir, like, step, content, best=best)
    else:
        at = best if step is None else step
        params, step = snapshots.reconstruct(workdir, like, config.posthoc.widths, ema, at, content)
    return model._replace(params=params, step=step, ema=ema)


def _check_ema(workdir: Path, config: Config, ema: float) -> None:
    """Raises ``UserError`` if a run has no snapshots, or no average has this width."""
    try:
        power_exponent(ema)
    except ValueError as error:
        raise UserError(f"ema: {error}: 0.1, say") from error
    if not config.posthoc.every:
        raise UserError(
            f"ema {ema:g} is an average made of snapshots, and the run in {workdir} keeps none: leave ema out, or "
            "train with --config.posthoc.every=100, say"
        )
