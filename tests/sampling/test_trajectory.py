"""Trajectories: they end in the samples of ``sample``, and go where the solver goes."""

import numpy as np
import pytest

from flowguide import sampling
from flowguide.errors import UserError
from tests.support.toy import FREE, MODEL, SHAPE

OPTIONS = {"num": 5, "gamma": np.linspace(1, 3, 5), "seed": 3, "batch_size": 2}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("config", "negative"),
    [
        (sampling.SamplerConfig("heun", 4), ["beard=yes"]),
        (sampling.SamplerConfig("renoise", 4), ()),
        (sampling.SamplerConfig("ab2", grid=(0.0, 0.3, 1.0), guidance="apg"), ()),
        (sampling.SamplerConfig(steps=3, sampler="pc"), ()),
    ],
)
def test_it_ends_in_the_samples(config, negative):
    t, x = sampling.trajectory(MODEL, "hat=red", config=config, negative=negative, **OPTIONS)
    drawn = sampling.sample(MODEL, "hat=red", config=config, negative=negative, **OPTIONS).x
    np.testing.assert_allclose(x[:, -1], drawn, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(t, np.asarray(sampling.nodes(config)))
    assert x.shape == (5, len(t), *SHAPE)
    assert (np.abs(np.diff(x, axis=1)).max((0, 2, 3, 4)) > 0.01).all()


def test_its_states_are_those_of_the_solver():
    """A step of Euler over 1/4 of dx/dt = −x multiplies by 3/4."""
    t, x = sampling.trajectory(FREE, num=6, config=sampling.SamplerConfig("euler", 4), first=2)
    np.testing.assert_allclose(x, x[:, :1] * 0.75 ** np.arange(5)[:, None, None, None], rtol=1e-5)
    np.testing.assert_allclose(t, np.arange(5) / 4)
    whole = sampling.trajectory(FREE, num=8, config=sampling.SamplerConfig("euler", 4)).x
    np.testing.assert_allclose(x, whole[2:], rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (sampling.SamplerConfig("dopri5"), "dopri5 has no grid"),
        (sampling.SamplerConfig(sampler="fkc"), "resamples its particles"),
    ],
)
def test_without_a_grid_there_is_none(config, message):
    with pytest.raises(UserError, match=message):
        sampling.trajectory(MODEL, "hat=red", num=2, config=config)
