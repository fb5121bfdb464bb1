"""Settings that cannot be are refused before anything is computed."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import sampling
from flowguide.errors import UserError
from flowguide.networks.perturbation import Perturbation
from tests.support.toy import FREE, MODEL, NETWORK, draw, velocity


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
        ({"config": sampling.SamplerConfig(grid="shift:k=2")}, "grid 'shift:k=2': warp 'shift' has no setting 'k'"),
        ({"config": sampling.SamplerConfig(grid="shift:s=-1")}, "those of 'shift:s=-1' do not: change its settings"),
        ({"config": sampling.SamplerConfig("renoise", diffusion="sigma")}, "of the solver euler_maruyama; got 'sigma'"),
        ({"config": sampling.SamplerConfig("euler_maruyama", diffusion="s")}, "got 's' with euler_maruyama"),
        ({"config": sampling.SamplerConfig(last_kind="mean")}, "got 'mean' with heun"),
        ({"config": sampling.SamplerConfig("euler_maruyama", last_kind="Mean")}, "one of data, mean, of the solver"),
        ({"config": sampling.SamplerConfig(last_step=1.0)}, "a size between 0 and 1; got 1.0"),
        ({"config": sampling.SamplerConfig(last_step=0.1, grid=(0.0, 0.5, 1.0))}, "that of a grid by name"),
        ({"config": sampling.SamplerConfig(last_step=0.1, steps=1)}, "of 2 steps or more"),
        ({"config": sampling.SamplerConfig("dopri5", absolute_tolerance=0.0)}, "absolute tolerance must be positive"),
        ({"config": sampling.SamplerConfig("ddpm")}, "solver 'ddpm' draws with predicted variances"),
        ({"config": sampling.SamplerConfig(channels=0)}, "at least 1; got 0"),
        ({"config": sampling.SamplerConfig(channels=2)}, "channels are the first of 1 that guidance acts on; got 2"),
        ({"gamma": 3e38}, "not finite"),
        (
            {"config": sampling.SamplerConfig(guidance="cffg")},
            r"unknown guidance 'cffg', did you mean 'cfg'\?: there are apg",
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
        (
            {"config": sampling.SamplerConfig("dopri5", guidance="icg")},
            "guidance 'icg' draws random numbers at every t and needs a fixed grid: use --solver=heun",
        ),
        ({"config": sampling.SamplerConfig(guidance="icg"), "negative": ["beard=yes"]}, "a reference of its own"),
        ({"config": sampling.SamplerConfig(guidance="tsg"), "negative": ["beard=yes"]}, "a reference of its own"),
        (
            {"config": sampling.SamplerConfig(guidance="tsg", settings=(("noise", -0.5),))},
            "a finite noise and exponent of 0 or more; got noise=-0.5, exponent=1.0",
        ),
        ({"config": sampling.SamplerConfig(guidance="icg", settings=(("noise", 0.5),))}, "it takes none"),
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


@pytest.mark.parametrize("name", ["icg", "tsg"])
def test_guidance_without_null_never_shows_it_to_the_network(name):
    """The network answers NaN to ∅."""

    def strict(params, t, x, c):
        known = c.present["hat"] & c.present["beard"]
        return jnp.where(known[:, None, None, None], velocity(params, t, x, c), jnp.nan)

    blind = MODEL._replace(guidance=sampling.NoNull(), network=NETWORK._replace(velocity=strict))
    config = sampling.SamplerConfig("euler", 6, guidance=name)
    options: dict[str, Any] = {"cond": "hat=red,beard=no", "num": 4, "config": config}
    guided, plain = (sampling.sample(blind, gamma=gamma, **options) for gamma in (3.0, 1.0))
    assert (guided.evaluations == 12).all()
    assert np.abs(guided.x - plain.x).max(axis=(1, 2, 3)).min() > 1e-2
    np.testing.assert_array_equal(guided.x, sampling.sample(blind, gamma=3.0, **options).x)
    with pytest.raises(UserError, match="without null dropout"):
        sampling.sample(blind, **{**options, "cond": "hat=red"}, gamma=3.0)


def test_time_steps_guide_models_without_conditions():
    timed = FREE._replace(network=FREE.network._replace(velocity=lambda params, t, x, c: t[:, None, None, None] - x))
    config = sampling.SamplerConfig("euler", 6, guidance="tsg")
    guided, plain = (sampling.sample(timed, num=4, gamma=gamma, config=config).x for gamma in (3.0, 1.0))
    assert np.abs(guided - plain).max(axis=(1, 2, 3)).min() > 1e-2


@pytest.mark.parametrize("name", ["icg", "tsg"])
def test_draws_have_no_density_no_grid_and_no_gap(name):
    config = sampling.SamplerConfig("ab2", 4, guidance=name)
    with pytest.raises(
        UserError, match=f"guidance '{name}' draws random numbers at every t, so its flow has no density"
    ):
        sampling.log_prob(MODEL, np.zeros((2, 3, 3, 1)), "hat=red", gamma=2.0, config=config)
    with pytest.raises(UserError, match=f"the same each time, and guidance '{name}' draws: use 'cfg'"):
        sampling.fit_grid(MODEL, ["hat=red"], config=config)
    with pytest.raises(UserError, match=f"the same each time, and guidance '{name}' draws: use 'cfg'"):
        sampling.gap(MODEL, "hat=red", config=config)
