"""Settings that cannot be are refused before anything is computed."""

from typing import Any

import numpy as np
import pytest

from flowguide import sampling
from flowguide.errors import UserError
from flowguide.networks.perturbation import Perturbation
from tests.support.toy import MODEL, draw


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cond": "hat=blue"}, "unknown value 'blue' of 'hat'"),
        ({"cond": ["hat=red"], "num": 3}, "1 conditions for 3 samples"),
        ({"gamma": float("nan")}, r"must be finite; got gamma nan$"),
        ({"gamma": np.ones(3)}, r"gamma must be a number, or an array of shape \(10,\)"),
        ({"gamma_negative": np.inf, "negative": "beard=yes"}, r"must be finite; got gamma_negative inf$"),
        ({"compose": [("beard=yes", np.nan)]}, r"must be finite; got weights of compose nan$"),
        ({"compose": ("beard=yes", 0.5)}, "compose takes pairs of condition and weight"),
        ({"num": 0}, "at least 1"),
        (
            {"config": sampling.SamplerConfig("huen")},
            r"sampler 'flow' has no solver 'huen', did you mean 'heun'\?: there are",
        ),
        ({"config": sampling.SamplerConfig(grid="log")}, "unknown grid 'log'"),
        ({"config": sampling.SamplerConfig(grid=(0.0, 0.5, 0.4, 1.0))}, "increase from 0 to 1; got 0, 0.5, 0.4, 1"),
        ({"config": sampling.SamplerConfig(grid=(0.1, 1.0))}, "increase from 0 to 1; got 0.1, 1"),
        ({"config": sampling.SamplerConfig(interval=(0.6, 0.2))}, "0 <= start < stop <= 1"),
        ({"config": sampling.SamplerConfig(replace_null=True)}, "one negative condition"),
        ({"config": sampling.SamplerConfig(rescale=2.0)}, "between 0 and 1"),
        ({"gamma": 3e38}, "not finite"),
        (
            {"config": sampling.SamplerConfig(guidance="cgf")},
            r"unknown guidance 'cgf', did you mean 'cfg'\?: there are apg",
        ),
        ({"config": sampling.SamplerConfig(guidance="apg", settings=(("momentum", np.nan),))}, "got momentum = nan"),
        (
            {"config": sampling.SamplerConfig(guidance="apg", settings=(("r", 1.0),))},
            "it takes parallel, largest, momentum",
        ),
        ({"config": sampling.SamplerConfig(schedule="steep")}, "unknown schedule 'steep': there are beta"),
        ({"config": sampling.SamplerConfig(guidance="perp_neg")}, "needs a negative condition and its weight"),
        (
            {"config": sampling.SamplerConfig(guidance="tcfg"), "negative": ["beard=yes"]},
            "with its own weight makes two",
        ),
        ({"config": sampling.SamplerConfig(guidance="autoguidance")}, "give --weak=DIR or --weak_step=N"),
        ({"config": sampling.SamplerConfig(guidance="perturbed")}, "give --perturb=skip=1"),
        ({"weak": MODEL}, "a weaker model is for guidance 'autoguidance'; got 'cfg'"),
        (
            {"config": sampling.SamplerConfig(guidance="cfg_pp")},
            "first-order step with a noise of its own: use ddim, not heun",
        ),
        ({"config": sampling.SamplerConfig("dopri5", guidance="feedback")}, "use a solver that takes --steps"),
        ({"config": sampling.SamplerConfig("dopri5", reuse=2)}, "use a solver that takes --steps"),
        ({"config": sampling.SamplerConfig(reuse=0)}, "steps, reuse and corrections must be at least 1"),
        (
            {"config": sampling.SamplerConfig(guidance="tcfg"), "compose": [("beard=yes", 1.0)]},
            "composed by guidance 'cfg'",
        ),
        ({"config": sampling.SamplerConfig(perturbation=Perturbation(skip=(1,)))}, "has no blocks"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        draw(**options)


def test_without_null_dropout_only_full_conditions_at_gamma_one():
    blind = MODEL._replace(guidance=sampling.NoNull())
    sampling.sample(blind, "hat=red,beard=no", num=2)
    asked: tuple[dict[str, Any], ...] = ({"gamma": 2.0}, {"negative": ["beard=yes"]})
    for options in asked:
        with pytest.raises(UserError, match="without null dropout"):
            sampling.sample(blind, "hat=red,beard=no", num=2, **options)
    with pytest.raises(UserError, match="without null dropout"):
        sampling.sample(blind, "hat=red", num=2)
