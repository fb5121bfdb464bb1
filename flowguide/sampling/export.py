"""Exports a sampler, with network, guidance and solver, as one file of StableHLO that runs with jax alone."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from flowguide.condition import Condition, given
from flowguide.errors import UserError
from flowguide.model import Model
from flowguide.sampling.checks import check, resolve_defaults
from flowguide.sampling.config import DEFAULT, SamplerConfig
from flowguide.sampling.draw import drawing, functions_of
from flowguide.sampling.request import SampleRequest, request
from flowguide.schema import blank, output
from flowguide.schema.conditions import Cond
from flowguide.typing import Array, PyTree

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    model: Model,
    *,
    negative: Cond = (),
    gamma_negative: float = 1.0,
    compose: Sequence[tuple[str, float]] = (),
    config: SamplerConfig = DEFAULT,
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """Returns the sampler ``(seed, index, gamma, value, present) -> x``, for ``jax.export.deserialize``.

    ```python
    sampler = jax.export.deserialize(bytearray(file.read_bytes()))
    x = sampler.call(np.uint32(0), np.arange(8, dtype=np.int32), gamma, {"label": labels}, {"label": np.ones(8, bool)})
    ```

    seed is uint32 (); index int32 ``(b,)`` says which samples of that seed to draw, the same ones that ``sample``
    draws; gamma float32 ``(b,)``; value and present say what each field is asked to be, ``(b, ...)``, and whether it is
    asked at all. The batch size b is symbolic: any number. x is uint8 ``(b, *D)`` for images, float32 for vectors,
    and for rows of a table, with a class by its number; of a model of latents it is the latents, float32 in the
    autoencoder's own units, of which ``load_vae(WORKDIR/autoencoder.safetensors).decode`` makes images. The file
    contains the parameters.

    Args:
      model: from ``load``.
      negative: what to move away from in every sample, as in ``sample``.
      gamma_negative: weight of the negative conditions.
      compose: further conditions with their weights, as in ``sample``.
      config: how to guide and integrate; one program for all of its settings.
      platforms: that the file is for, "cpu", "cuda", "rocm" or "tpu".

    Raises:
      UserError: for settings that cannot be.
    """
    config = resolve_defaults(config, model)
    if config.sampler == "fkc":
        raise UserError("sampler 'fkc' draws particles together: only samplers of single samples are exported")
    each = {name: blank(field) for name, field in model.info.fields.items()}
    anything = given({name: a[None] for name, a in each.items()})
    asked = request(model, anything, 1, None, negative, gamma_negative, compose)
    check(model, asked, config)
    draw = drawing(functions_of(model), config)

    def sampler(seed: Array, index: Array, gamma: Array, value: PyTree, present: PyTree) -> Array:
        def same(c: Condition) -> Condition:
            return jax.tree.map(lambda a: jnp.broadcast_to(a, (index.shape[0], *a.shape[1:])), c)

        root = jax.random.key(seed)
        keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(index)
        batch: SampleRequest = asked._replace(
            c=Condition(value, present),
            negatives=tuple(map(same, asked.negatives)),
            composed=tuple(map(same, asked.composed)),
            gamma=gamma,
        )
        x, *_ = draw((model.params, None), keys, batch)
        return output(model.info, x, batch.c)

    (b,) = jax_export.symbolic_shape("b")
    arguments = (
        jax.ShapeDtypeStruct((), np.uint32),
        jax.ShapeDtypeStruct((b,), np.int32),
        jax.ShapeDtypeStruct((b,), np.float32),
        {name: jax.ShapeDtypeStruct((b, *a.shape), a.dtype) for name, a in each.items()},
        {name: jax.ShapeDtypeStruct((b,), bool) for name in each},
    )
    return bytes(jax_export.export(jax.jit(sampler), platforms=tuple(platforms))(*arguments).serialize())
