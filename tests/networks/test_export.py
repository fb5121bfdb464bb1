"""Every network is exported with a batch of any size, and its exported sampler draws what the sampler draws."""

import jax
import numpy as np
import pytest
from jax import export

from flowguide import paths, sampling
from flowguide.schema import DataInfo, Vectors
from tests.support.tiny_networks import FIELDS, SHAPE, full_condition


@pytest.mark.thorough
def test_an_exported_network_draws_the_same_for_any_number(tiny):
    _, network, _, params, _ = tiny
    model = sampling.Model(DataInfo("toy", Vectors(SHAPE), FIELDS), network, params, paths.linear())
    config, c = sampling.SamplerConfig("ab2", 3), full_condition()
    sampler = export.deserialize(bytearray(sampling.export(model, config=config, platforms=["cpu"])))
    expected = sampling.sample(model, c, gamma=1.5, config=config, devices=jax.devices()[:1]).x
    index, gamma = np.arange(3, dtype=np.int32), np.full(3, 1.5, np.float32)
    value, present = ({k: np.asarray(v)[:3] for k, v in part.items()} for part in c)
    x = sampler.call(np.uint32(0), index, gamma, value, present)
    np.testing.assert_allclose(x, expected[:3], rtol=1e-4, atol=1e-5)
