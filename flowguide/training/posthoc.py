"""Post-hoc EMA (Karras et al. 2024, §3.2, appendix C): an average of any width from snapshots of a few averages.

A power-function average of width σ at step t weighs the parameters of step τ by p(τ) = (γ + 1)·τ^γ/t^(γ + 1) on [0, t],
with γ of ``power_exponent``. Averages are linear in their weights, so a combination of snapshots whose weights sum to
nearly p is nearly the average of p.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from flowguide.training.ema import power_exponent


class Mixture(NamedTuple):
    """A combination of snapshots.

    Attributes:
      coefficients: x, float64 ``(n,)``, of sum 1.
      error: ‖p − Σ_i x_i·p_i‖/‖p‖ of the weights, 0 to 1.
    """

    coefficients: np.ndarray
    error: float


def mixture(steps: ArrayLike, widths: ArrayLike, step: float, width: float) -> Mixture:
    """Returns the coefficients x that minimise ∫(p − Σ_i x_i·p_i)²dτ among those of sum 1 (algorithm 3).

    The paper does not fix the sum, and with few snapshots its solution scales all parameters by up to 1 %. We fix it to
    1, which costs almost no accuracy and leaves parameters that never change exact. With the Gram matrix C of the
    functions divided by their norms, b = (<p_i, p>/‖p_i‖‖p‖)_i, a = (‖p‖/‖p_i‖)_i and y = x/a this is

      C·y + λ·a = b,  aᵀ·y = 1.

    Args:
      steps: t_i > 0, of the snapshots ``(n,)``.
      widths: σ_i, of the snapshots ``(n,)``.
      step: t > 0 that is wanted.
      width: σ that is wanted.

    Raises:
      ValueError: if a width is out of range.
    """
    t, gamma = np.asarray(steps, np.float64), np.array([power_exponent(float(w)) for w in np.asarray(widths)])
    exponent = power_exponent(width)
    gram, wanted = cosine(t[:, None], gamma[:, None], t, gamma), cosine(t, gamma, step, exponent)
    ratio = norm(step, exponent) / norm(t, gamma)
    equations = np.block([[gram, ratio[:, None]], [ratio, 0.0]])
    y = np.linalg.lstsq(equations, np.append(wanted, 1.0), rcond=None)[0][:-1]
    error = np.sqrt(max(0.0, 1.0 - 2.0 * wanted @ y + y @ gram @ y))
    return Mixture(ratio * y, float(error))


def norm(t: ArrayLike, gamma: ArrayLike) -> np.ndarray:
    """Returns ‖p‖ = (γ + 1)/√((2γ + 1)·t)."""
    t, gamma = np.asarray(t), np.asarray(gamma)
    return (gamma + 1.0) / np.sqrt((2.0 * gamma + 1.0) * t)


def cosine(t_a: ArrayLike, gamma_a: ArrayLike, t_b: ArrayLike, gamma_b: ArrayLike) -> np.ndarray:
    """Returns <p_a, p_b>/‖p_a‖‖p_b‖ = √((2γ_a + 1)(2γ_b + 1))/(γ_a + γ_b + 1)·r^(γ_l + ½), shapes broadcast.

    r ≤ 1 is the ratio of the steps, and γ_l is that of the later one, so nothing overflows.
    """
    t_a, gamma_a, t_b, gamma_b = map(np.asarray, (t_a, gamma_a, t_b, gamma_b))
    ratio = np.minimum(t_a, t_b) / np.maximum(t_a, t_b)
    later = np.where(t_a < t_b, gamma_b, gamma_a)
    at_once = np.sqrt((2.0 * gamma_a + 1.0) * (2.0 * gamma_b + 1.0)) / (gamma_a + gamma_b + 1.0)
    return at_once * ratio ** (later + 0.5)


def spread(steps: Sequence[int], keep: int) -> list[int]:
    """Returns at most ``keep`` of some rising steps, evenly spread: it drops those whose neighbours are closest.

    The last one stays. Among equals the oldest goes; before the first one is step 0.
    """
    kept = list(steps)
    while len(kept) > max(keep, 1):
        gaps = np.subtract(kept[1:], [0, *kept[:-2]])
        del kept[int(np.argmin(gaps))]
    return kept
