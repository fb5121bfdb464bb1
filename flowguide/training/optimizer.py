"""Optimisers and learning rates, all from Optax."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from flowguide.typing import PyTree


def learning_rate(lr: float, steps: int, *, warmup: int = 0, decay: str = "cosine") -> optax.Schedule:
    """Returns the learning rate by step.

    Args:
      lr: peak learning rate.
      steps: length of the run; the decay ends there.
      warmup: steps of linear rise.
      decay: "cosine" to 0, "linear" to 0, or "none".

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
    # The first rate is lr/warmup, not 0: a step that changes nothing is wasted.
    rise = optax.linear_schedule(lr / max(warmup, 1), lr, max(warmup - 1, 1))
    return optax.join_schedules([rise, decays[decay]()], [warmup])


def slower(decay: str, of_steps: float, of_time: float) -> float:
    """Returns the factor by which the learning rate of a run with a time limit is below that of its step.

    With it the rate has decayed as far as the shares of the steps and of the time that are over say, whichever is more.

    Args:
      decay: as in ``learning_rate``.
      of_steps: share of the steps that is over, in [0, 1).
      of_time: share of the time.
    """
    shape = {"cosine": lambda p: (1 + math.cos(math.pi * p)) / 2, "linear": lambda p: 1 - p, "none": lambda _: 1.0}
    return shape[decay](min(max(of_steps, of_time), 1.0)) / shape[decay](of_steps)


def adamw(
    rate: optax.Schedule, *, b1: float = 0.9, b2: float = 0.99, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """AdamW (Loshchilov & Hutter 2019); decays only parameters with two axes or more."""
    return optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=_has_two_axes)


def lion(
    rate: optax.Schedule, *, b1: float = 0.9, b2: float = 0.99, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Lion (Chen et al. 2023): signs of a momentum; needs a third to a tenth of AdamW's learning rate."""
    return optax.lion(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=_has_two_axes)


def orthogonal(
    rate: optax.Schedule, *, beta: float = 0.95, weight_decay: float = 0.0, adam_b1: float = 0.9, adam_b2: float = 0.99
) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the kernels of dense layers, stacked ones too; AdamW for everything else."""
    kernels = muon(
        rate,
        beta=beta,
        weight_decay=weight_decay,
        muon_weight_dimension_numbers=lambda kernels: jax.tree.map(lambda _: MuonDimensionNumbers(-2, -1), kernels),
        consistent_rms=0.2,  # updates as large as AdamW's, so that its learning rates serve
    )
    # Not by Muon's own AdamW, which would decay biases too and take Nesterov momentum.
    others = adamw(rate, b1=adam_b1, b2=adam_b2, weight_decay=weight_decay)
    return optax.partition({"kernels": kernels, "others": others}, _kernels_and_others)


def sgd(rate: optax.Schedule, *, momentum: float = 0.9, nesterov: bool = True) -> optax.GradientTransformation:
    """Gradient descent with momentum."""
    return optax.sgd(rate, momentum=momentum, nesterov=nesterov)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "adamw": adamw,
    "lion": lion,
    "muon": orthogonal,
    "sgd": sgd,
}


def clipped(descent: optax.GradientTransformation, clip: float) -> optax.GradientTransformation:
    """Clips the global norm of the gradient to ``clip`` before ``descent``; 0 for no clipping."""
    return optax.chain(optax.clip_by_global_norm(clip), descent) if clip else descent


def _has_two_axes(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _kernels_and_others(params: PyTree) -> PyTree:
    """Labels the kernels of dense layers, ``(in, out)`` or stacked ``(layers, in, out)``, and everything else.

    The bias tells them from convolutions: that of a dense layer has one axis less than its kernel, stacked or not, and
    that of a convolution over k axes k + 1 less. A kernel without a bias is dense if it has two axes.
    """

    def name(path: tuple[jax.tree_util.KeyEntry, ...]) -> str:
        return jax.tree_util.keystr(path, simple=True, separator="/")

    axes = {name(path): leaf.ndim for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def label(path: tuple[jax.tree_util.KeyEntry, ...], leaf: jax.Array) -> str:
        layer, last = name(path[:-1]), name(path[-1:])
        bias = f"{layer}/bias" if layer else "bias"
        return "kernels" if last == "kernel" and leaf.ndim == axes.get(bias, 1) + 1 else "others"

    return jax.tree_util.tree_map_with_path(label, params)
