"""Frequency scales against matrices."""

import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import guidance
from flowguide.guidance import projection
from tests.support.by_hand import T, arrays, scheduled

pytestmark = pytest.mark.usefixtures("float64")


def triangles(there, here):
    """Linear interpolation as a matrix; where it makes smaller, over as wide a triangle as pixels become one."""
    scale = here / there
    middles = (np.arange(there)[:, None] + 0.5) * scale - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(here) - middles) / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("sides", [(8, 6), (7, 5)])
def test_frequencies_by_matrices(sides):
    """Level by level, the remainder minus its copy that was made 2, then 4 times smaller and enlarged again."""
    scales = 5.0, -2.0, 1.6
    v, ref = np.random.default_rng(2).normal(size=(2, 3, *sides, 2))
    rule = guidance.frequencies([scheduled(lambda t, s=s: s * (t + 0.7)) for s in scales])
    rest, expected = v - ref, v.copy()
    for level, s in enumerate(scales):
        smaller = [-(-side // 2 ** (level + 1)) for side in sides]
        row, across = (triangles(a, b) @ triangles(b, a) for a, b in zip(sides, smaller, strict=True))
        coarse = np.einsum("ij,bjkc,lk->bilc", row, rest, across) if level < 2 else 0 * rest
        expected += (s - 1) * (rest - coarse)
        rest = coarse
    got = rule(jnp.float64(T), *arrays(v, v), arrays(ref))
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_levels_hold_what_they_are_named_for():
    """A checkerboard is in the finest level except for its edges, a ramp across the image in the coarsest."""
    i, j = np.indices((16, 16))
    board, ramp = (np.asarray(a, float)[None, :, :, None] for a in ((-1.0) ** (i + j), (i - 7.5) / 8))
    shares = [
        [float(np.square(level).sum() / np.square(x).sum()) for level in projection.laplacian(jnp.asarray(x), 3)]
        for x in (board, ramp)
    ]
    assert shares[0][0] > 0.9
    assert shares[1][2] > 0.6
    assert shares[1][0] < 0.01
