"""Guided velocities: guidance rules, scale schedules γ(t), and reference velocities.

γ is the guidance scale of (1 − γ)·u(x, ∅) + γ·u(x, c), as ``guidance_scale`` in Diffusers: 1 is conditional sampling, 0
unconditional. Several papers use w = γ − 1 instead. Needs only jax and numpy.
"""

from flowguide.guidance import inverse, methods, schedules
from flowguide.guidance.diagnostics import Gap, gap
from flowguide.guidance.guide import (
    Guidance,
    Passes,
    Reference,
    Terms,
    against,
    always,
    classifier_free,
    compose,
    evaluate,
    evaluations_at,
    guide,
    needed,
    network_evaluations,
    on_channels,
    terms_where,
)
from flowguide.guidance.inverse import Measurement, with_measurement
from flowguide.guidance.magnitude import beta_normalised, contrastive, magnitude_aware
from flowguide.guidance.posterior import dynamic_negative, feedback
from flowguide.guidance.projection import frequencies, laplacian, perpendicular, projected, tangential, zero_star
from flowguide.guidance.rules import (
    StatefulRule,
    cfg,
    cfg_negative,
    composed,
    first_channels,
    perturbed,
    remember,
    renormalise,
    rescale,
    threshold,
    zero_init,
)
from flowguide.guidance.schedules import SCHEDULES, constant, interval, within
from flowguide.guidance.sources import annealed, independent, rectified, retimed, with_gradient

__all__ = [
    "SCHEDULES",
    "Gap",
    "Guidance",
    "Measurement",
    "Passes",
    "Reference",
    "StatefulRule",
    "Terms",
    "against",
    "always",
    "annealed",
    "beta_normalised",
    "cfg",
    "cfg_negative",
    "classifier_free",
    "compose",
    "composed",
    "constant",
    "contrastive",
    "dynamic_negative",
    "evaluate",
    "evaluations_at",
    "feedback",
    "first_channels",
    "frequencies",
    "gap",
    "guide",
    "independent",
    "interval",
    "inverse",
    "laplacian",
    "magnitude_aware",
    "methods",
    "needed",
    "network_evaluations",
    "on_channels",
    "perpendicular",
    "perturbed",
    "projected",
    "rectified",
    "remember",
    "renormalise",
    "rescale",
    "retimed",
    "schedules",
    "tangential",
    "terms_where",
    "threshold",
    "with_gradient",
    "with_measurement",
    "within",
    "zero_init",
    "zero_star",
]
