"""Every network is exported with a batch of any size, and its exported sampler draws what the sampler draws."""

import jax
import numpy as np
from jax import export
from tiny_networks import FIELDS, SHAPE, full_condition

from flowguide import sampling
from flowguide.data import DataInfo


def test_an_exported_network_draws_the_same_for_any_number(tiny):
    _, network, _, params, _ = tiny
    run = sampling.Run(DataInfo("toy", SHAPE, "points", FIELDS), network, params, 1, True, "linear")
    method, c = sampling.SamplerConfig("ab2", 3), full_condition()
    sampler = export.deserialize(bytearray(sampling.export(run, method=method, platforms=["cpu"])))
    expected = sampling.sample(run, c, gamma=1.5, method=method, devices=jax.devices()[:1]).x
    index, gamma = np.arange(3, dtype=np.int32), np.full(3, 1.5, np.float32)
    value, present = ({k: np.asarray(v)[:3] for k, v in part.items()} for part in c)
    x = sampler.call(np.uint32(0), index, gamma, value, present)
    np.testing.assert_allclose(x, expected[:3], rtol=1e-4, atol=1e-5)
