"""A sampler as one file of StableHLO that runs with jax alone: network, guidance and solver, compiled anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from flowguide import prompts
from flowguide.condition import Condition, given
from flowguide.data import to_image
from flowguide.errors import UserError
from flowguide.sampling.checks import check, resolve_defaults
from flowguide.sampling.conditions import Cond
from flowguide.sampling.config import DEFAULT, SamplerConfig, SampleRequest, ask
from flowguide.sampling.draw import drawing
from flowguide.sampling.run import Run
from flowguide.typing import Array, PyTree

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    run: Run,
    *,
    negative: Cond = (),
    gamma_negative: float = 1.0,
    compose: Sequence[tuple[str, float]] = (),
    method: SamplerConfig = DEFAULT,
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """The sampler ``(seed, index, gamma, value, present) -> x``, for ``jax.export.deserialize``.

    ```python
    sampler = jax.export.deserialize(bytearray(file.read_bytes()))
    x = sampler.call(np.uint32(0), np.arange(8, dtype=np.int32), gamma, {"label": labels}, {"label": np.ones(8, bool)})
    ```

    seed is uint32 (); index int32 ``(b,)`` says which samples of that seed, which are those that ``sample`` draws;
    gamma float32 ``(b,)``; value and present have what each field is asked to be, ``(b, ...)``, and whether it is. The
    batch b is symbolic: any number. x is uint8 ``(b, *D)`` for images, float32 for points. The parameters are in it.

    Args:
      run: from ``load``.
      negative: what to avoid in every sample, as in ``sample``.
      gamma_negative: their weight.
      compose: further prompts with their weights, as in ``sample``.
      method: how to guide and integrate; one program for all of its settings.
      platforms: that the file is for, "cpu", "cuda", "rocm" or "tpu".

    Raises:
      UserError: for settings that cannot be.
    """
    method = resolve_defaults(method)
    if method.sampler == "fkc":
        raise UserError("sampler 'fkc' draws particles together: only samplers of single samples are exported")
    fields, gamma_conditioned = run.info.fields, run.gammas is not None
    each = {name: prompts.blank(field) for name, field in fields.items()}
    anything = given({name: a[None] for name, a in each.items()})
    gamma = run.gammas[0] if run.gammas is not None else 1.0
    asked, weights = ask(run, anything, 1, gamma, negative, gamma_negative, compose)
    check(run, asked, weights, method)
    draw = drawing(run.network, None, gamma_conditioned, run.path, run.info.shape, method)

    def sampler(seed: Array, index: Array, gamma: Array, value: PyTree, present: PyTree) -> Array:
        def same(c: Condition) -> Condition:
            return jax.tree.map(lambda a: jnp.broadcast_to(a, (index.shape[0], *a.shape[1:])), c)

        root = jax.random.key(seed)
        keys = jax.vmap(lambda i: jax.random.fold_in(root, i))(index)
        away, others = (tuple(same(c) for c in cs) for cs in (asked.negatives, asked.composed))
        request: Any = SampleRequest(Condition(value, present), away, others, gamma)  # pyright: ignore[reportArgumentType]
        x, *_ = draw((run.params, None), keys, request, jnp.asarray(weights))
        return to_image(x) if run.info.kind == "image" else x

    (b,) = jax_export.symbolic_shape("b")
    arguments = (
        jax.ShapeDtypeStruct((), np.uint32),
        jax.ShapeDtypeStruct((b,), np.int32),
        jax.ShapeDtypeStruct((b,), np.float32),
        {name: jax.ShapeDtypeStruct((b, *a.shape), a.dtype) for name, a in each.items()},
        {name: jax.ShapeDtypeStruct((b,), bool) for name in each},
    )
    return bytes(jax_export.export(jax.jit(sampler), platforms=tuple(platforms))(*arguments).serialize())
