"""Guided velocities: rules, scales over time, and where the references come from. Needs only jax and numpy."""

from flowguide.guidance.guide import Guidance, Passes, Reference, classifier_free, guide, network_evaluations
from flowguide.guidance.rules import cfg, cfg_negative, rescale
from flowguide.guidance.schedules import constant, interval

__all__ = [
    "Guidance",
    "Passes",
    "Reference",
    "cfg",
    "cfg_negative",
    "classifier_free",
    "constant",
    "guide",
    "interval",
    "network_evaluations",
    "rescale",
]
