"""The optimiser: AdamW with warm-up, a decay and clipping, all from Optax."""

from __future__ import annotations

import jax
import optax


def adamw(
    lr: float,
    steps: int,
    *,
    warmup: int = 0,
    decay: str = "cosine",
    b1: float = 0.9,
    b2: float = 0.99,
    weight_decay: float = 0.0,
    clip: float = 1.0,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The transformation and its learning rate by step.

    Args:
      lr: peak learning rate.
      steps: length of the run; the decay ends there.
      warmup: steps of linear rise.
      decay: "cosine" to 0, "linear" to 0, or "none".
      b1: AdamW's decay of the first moment.
      b2: AdamW's decay of the second moment.
      weight_decay: decoupled weight decay, of parameters with two axes or more.
      clip: largest global norm of the gradient; 0 for no clipping.

    Raises:
      ValueError: for another word in ``decay``, or a warm-up as long as the run.
    """
    if warmup >= steps:
        raise ValueError(f"the warm-up must end before the run does; got warmup={warmup}, steps={steps}")
    decays = {
        "cosine": lambda: optax.cosine_decay_schedule(lr, steps - warmup),
        "linear": lambda: optax.linear_schedule(lr, 0.0, steps - warmup),
        "none": lambda: optax.constant_schedule(lr),
    }
    if decay not in decays:
        raise ValueError(f"decay must be one of {sorted(decays)}; got {decay!r}")
    # The first rate is lr/warmup, not 0: a step that changes nothing is a wasted one.
    rise = optax.linear_schedule(lr / max(warmup, 1), lr, max(warmup - 1, 1))
    schedule = optax.join_schedules([rise, decays[decay]()], [warmup])

    def has_two_axes(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda p: p.ndim > 1, params)

    descent = optax.adamw(schedule, b1=b1, b2=b2, weight_decay=weight_decay, mask=has_two_axes)
    return optax.chain(optax.clip_by_global_norm(clip), descent) if clip else descent, schedule
