"""Lines that tell the user which setting to change."""

from __future__ import annotations

from flowguide.config import Config
from flowguide.data import Dataset
from flowguide.planning import time_text

PATIENCE = 6 * 3600.0  # seconds that a run on a CPU may take without a word
FEW = 100  # steps, after which no network draws more than noise


def unused_fields(config: Config, data: Dataset) -> str:
    """Returns what could be conditioned on too, and how; empty if nothing could, or if the config names its fields."""
    if config.data.fields or not data.unused:
        return ""
    every = ",".join((*data.info.fields, *data.unused))
    return f"; not used: {', '.join(data.unused)} (--config.data.fields={every})"


def slow_on_cpu(config: Config, platform: str, examples: int, rate: float) -> str | None:
    """Returns a line for a run that is meant for a GPU, and None for any other.

    Args:
      config: of the run.
      platform: of the devices, "cpu" or another.
      examples: that are left to train on.
      rate: examples a second.
    """
    seconds = examples / rate
    if platform != "cpu" or seconds < PATIENCE:
        return None
    return (
        f"{time_text(seconds)} are left at {rate:,.0f} examples/s: this config is for a GPU. On a CPU lower "
        f"--config.steps={config.steps}, --config.batch_size={config.batch_size} or --config.network.*, or see the "
        "configs for CPUs: avatars, digits, fashion_mnist_cpu"
    )


def hardly_trained(step: int) -> str | None:
    """Returns a line for a run that a limit of time ended after few steps, and None for any other.

    Args:
      step: the last one of the run.
    """
    if step >= FEW:
        return None
    return (
        f"warning: the limit of time ended the training after {step} {'step' if step == 1 else 'steps'}, and samples "
        "will be noise: give more minutes (the same call resumes), smaller examples, or a smaller "
        "config.network or config.batch_size"
    )
