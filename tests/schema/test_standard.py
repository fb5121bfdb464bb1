"""Moments of numbers in parts are those of all of them."""

import numpy as np

from flowguide.schema.standard import moments, moments_of_parts


def test_moments_of_parts_are_those_of_the_whole():
    x = np.random.default_rng(0).normal(size=(37, 4)) * [1e-3, 3, 1, 1] + [1e3, -5, 0, 0]
    x[:, 2] = 0.1  # never changes, and float64 does not add it exactly
    x[:20, 3] = 7.0  # changes, but not in the first parts
    parts = np.split(x, [0, 1, 11, 11, 20])
    np.testing.assert_allclose(moments_of_parts(parts), moments(x), rtol=1e-6)
    mean, scale = moments_of_parts(iter(parts))
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(scale, [*x.std(axis=0)[:2], 1, x.std(axis=0)[3]], rtol=1e-5)
    assert scale[2] == 1
    assert all(type(number) is float for number in (*mean, *scale))


def test_there_are_no_moments_of_nothing():
    assert moments_of_parts([]) == moments_of_parts([np.zeros((0, 3))]) == ((), ())
