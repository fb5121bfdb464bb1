"""Every setting of a config: its default, its meaning and the numbers it may be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from ml_collections import ConfigDict

# A ConfigDict; a type checker cannot know its attributes.
Config: TypeAlias = Any


class Range(NamedTuple):
    """The finite numbers that a setting may be, in words and as a test."""

    text: str
    holds: Callable[[float], bool]


FINITE = Range("finite", lambda value: True)
POSITIVE = Range("finite and above 0", lambda value: value > 0)
NOT_NEGATIVE = Range("finite and at least 0", lambda value: value >= 0)
COUNT = Range("at least 1", lambda value: value >= 1)
COUNT_OR_NONE = Range("at least 0", lambda value: value >= 0)
SEED = Range("from 0 to 2^32 - 1", lambda value: 0 <= value < 2**32)
PROBABILITY = Range("a probability, 0 to 1", lambda value: 0 <= value <= 1)
SHARE = Range("above 0 and at most 1", lambda value: 0 < value <= 1)
BETWEEN = Range("between 0 and 1", lambda value: 0 < value < 1)
BELOW_1 = Range("from 0 to less than 1", lambda value: 0 <= value < 1)
WIDTH = Range("above 0 and below 12^-½ = 0.2887", lambda value: 0 < value < 12**-0.5 - 1e-6)
BENT = Range("from -1 to 2/(π - 2) = 1.7519", lambda value: -1 <= value <= 2 / (math.pi - 2))


class Setting(NamedTuple):
    """One setting.

    Attributes:
      default: its type is the type of the setting.
      meaning: one line.
      allowed: the numbers it may be; for a tuple, each of them.
    """

    default: Any
    meaning: str
    allowed: Range | None = None


# By name, with dots between groups. A default {"name": ...} is a named choice with settings of its own: choices.py.
SETTINGS: dict[str, Setting] = {
    "seed": Setting(0, "root of all random draws, and of the order of the data", SEED),
    "task": Setting(
        "flow", "flow: a velocity network; classifier: of noisy data, for classifier guidance; autoencoder: of images"
    ),
    "init": Setting("", "folder of a run whose averaged parameters training starts from; empty: random ones"),
    "steps": Setting(10_000, "training steps", COUNT),
    "batch_size": Setting(128, "examples a step, over all devices", COUNT),
    "accumulate": Setting(1, "parts in which a device works through its share of the batch, to save memory", COUNT),
    "lr": Setting(1e-3, "peak learning rate", POSITIVE),
    "warmup": Setting(100, "steps of linear rise to the peak", COUNT_OR_NONE),
    "decay": Setting("cosine", "of the learning rate after the warm-up: cosine, linear, none"),
    "clip": Setting(1.0, "largest gradient norm; 0: no clipping", NOT_NEGATIVE),
    "nonfinite_limit": Setting(10, "non-finite steps in a row that are skipped before the run stops", COUNT_OR_NONE),
    "drop_rate": Setting(0.1, "probability that an example loses its whole condition in training", PROBABILITY),
    "drop_field_rate": Setting(
        (0.1, 0.1), "probability that it loses one field of several: each example draws it in this range", PROBABILITY
    ),
    "stratified": Setting(False, "spread t evenly over the batch"),
    "flip": Setting(False, "mirror images at random"),
    "jitter": Setting(0.0, "standard deviation of noise added to examples, which smooths a small set", NOT_NEGATIVE),
    "optimizer": Setting({"name": "adamw"}, "how parameters are updated"),
    "path": Setting({"name": "linear"}, "probability path from noise to data"),
    "output": Setting({"name": "velocity"}, "what the network predicts; all else sees the velocity that follows"),
    "times": Setting({"name": "logit_normal"}, "distribution of t in training"),
    "coupling": Setting({"name": "independent"}, "which noise goes with which data"),
    "weight": Setting({"name": "constant"}, "weight of the error at t"),
    "target": Setting({"name": "plain"}, "what the velocity is trained to be: plain, contrastive, or guided already"),
    "ema": Setting({"name": "constant"}, "moving average of the parameters"),
    "posthoc.every": Setting(
        0, "steps between snapshots of averages, from which sample --ema makes one of any width; 0: none", COUNT_OR_NONE
    ),
    "posthoc.widths": Setting(
        (0.05, 0.1), "relative widths of these averages; each needs memory like the parameters", WIDTH
    ),
    "posthoc.keep": Setting(64, "snapshots that are kept, evenly spread over the run", COUNT),
    "network": Setting({"name": "unet"}, "the velocity network, or package.module:Class of your own"),
    "layout": Setting({"name": "data_parallel"}, "how the state lies over devices"),
    "autoencoder.kl": Setting(
        1e-4, "of the task autoencoder: weight of the latents' divergence from N(0, 1)", NOT_NEGATIVE
    ),
    "autoencoder.l1": Setting(
        0.0, "of the task autoencoder: weight of the absolute error, beside the square", NOT_NEGATIVE
    ),
    "data.name": Setting("avatars", "name of the data set, one of TFDS"),
    "data.path": Setting("", "a file or folder of data, instead of a name"),
    "data.example": Setting((), "of a path: the columns that are the examples; (): found by their kind"),
    "data.split": Setting("train", "what to train on, as train or train[:90%]"),
    "data.test_split": Setting("test", "what to validate on"),
    "data.fields": Setting((), "fields of the condition; (): all class labels, or all other columns of a path; none"),
    "data.known": Setting(False, "add the condition known, a part of the example, to complete any part from any other"),
    "data.data_dir": Setting("", "where prepared data sets are, also gs:// or s3://; empty: TFDS's own default"),
    "data.image_size": Setting(0, "crop and resize images to this side; 0: as they are", COUNT_OR_NONE),
    "log_every": Setting(50, "steps between lines of metrics.jsonl", COUNT),
    "checkpoint_every": Setting(1000, "steps between checkpoints", COUNT),
    "keep": Setting(2, "newest checkpoints that are kept, beside the best", COUNT),
    "use": Setting("newest", "checkpoint that is sampled from unless one is named: newest, or best in validation"),
    "eval_every": Setting(1000, "steps between validations", COUNT),
    "eval_examples": Setting(256, "examples to validate on", COUNT),
    "evaluators": Setting(
        ("validation", "previews", "metrics"), "what is measured and drawn; also package.module:function of your own"
    ),
    "preview.every": Setting(1000, "steps between pictures of samples; 0: none", COUNT_OR_NONE),
    "preview.num": Setting(36, "samples in a picture, for each γ", COUNT),
    "preview.gammas": Setting((1.0, 3.0), "guidance scales γ of the pictures", FINITE),
    "preview.solver": Setting("heun", "solver of the pictures"),
    "preview.steps": Setting(25, "its steps", COUNT),
    "metrics.every": Setting(0, "steps between measurements of samples, as by evaluate; 0: none", COUNT_OR_NONE),
    "metrics.num": Setting(1000, "samples that are measured, for each γ", COUNT),
    "metrics.gammas": Setting((1.0, 2.0), "guidance scales γ that are measured", FINITE),
    "metrics.solver": Setting("ab2", "solver of these samples"),
    "metrics.steps": Setting(25, "its steps", COUNT),
}

# Of the settings of named choices. Networks, targets, layouts and the "power" average check their own.
CHOICE_RANGES: dict[str, Range] = {
    "optimizer.adamw.b1": BELOW_1,
    "optimizer.adamw.b2": BELOW_1,
    "optimizer.adamw.weight_decay": NOT_NEGATIVE,
    "optimizer.lion.b1": BELOW_1,
    "optimizer.lion.b2": BELOW_1,
    "optimizer.lion.weight_decay": NOT_NEGATIVE,
    "optimizer.muon.beta": BELOW_1,
    "optimizer.muon.weight_decay": NOT_NEGATIVE,
    "optimizer.muon.adam_b1": BELOW_1,
    "optimizer.muon.adam_b2": BELOW_1,
    "optimizer.sgd.momentum": BELOW_1,
    "path.vp.beta_min": POSITIVE,
    "path.vp.beta_max": POSITIVE,
    "output.x1.floor": SHARE,
    "output.epsilon.beta_start": BETWEEN,
    "output.epsilon.beta_end": BETWEEN,
    "output.epsilon.time_unit": POSITIVE,
    "coupling.assigned.condition_weight": NOT_NEGATIVE,
    "coupling.sinkhorn.condition_weight": NOT_NEGATIVE,
    "coupling.sinkhorn.epsilon": POSITIVE,
    "weight.min_snr.limit": POSITIVE,
    "times.logit_normal.mean": FINITE,
    "times.logit_normal.std": POSITIVE,
    "times.shift.s": POSITIVE,
    "times.sway.k": BENT,
    "times.mode.s": BENT,
    "times.karras.rho": POSITIVE,
    "times.karras.sigma_min": POSITIVE,
    "times.karras.sigma_max": POSITIVE,
    "ema.constant.decay": BELOW_1,
    "layout.fsdp.min_size": COUNT_OR_NONE,
}


def default() -> Config:
    """Returns a config with every setting at its default. An experiment in ``configs/`` changes what is its own."""
    config: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        group, _, last = name.rpartition(".")
        inside = config.setdefault(group, {}) if group else config
        inside[last] = dict(setting.default) if isinstance(setting.default, dict) else setting.default
    return ConfigDict(config)


def is_choice(name: str) -> bool:
    """Returns whether a setting is the name of a choice with settings of its own."""
    return name in SETTINGS and isinstance(SETTINGS[name].default, dict)


CHOICES = tuple(filter(is_choice, SETTINGS))
