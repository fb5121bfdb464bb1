"""Exact references: distributions with known velocity fields, and closed forms of what guidance samples from them."""

from flowguide.analytic.guided import (
    Moments,
    existence,
    guided_moments,
    scheduled_variance,
    tail_precision,
    tilted_moments,
)
from flowguide.analytic.integrated import integrated_moments
from flowguide.analytic.laws import (
    Joint,
    Mixture,
    flow_matching_minimum,
    joint,
    log_density,
    mixture,
    moments,
    observation,
    sample,
    score,
    velocity,
)

__all__ = [
    "Joint",
    "Mixture",
    "Moments",
    "existence",
    "flow_matching_minimum",
    "guided_moments",
    "integrated_moments",
    "joint",
    "log_density",
    "mixture",
    "moments",
    "observation",
    "sample",
    "scheduled_variance",
    "score",
    "tail_precision",
    "tilted_moments",
    "velocity",
]
