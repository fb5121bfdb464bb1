"""Networks over one, two and three spatial axes: oracles that a wrong axis or a wrong order would break."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide.condition import given
from flowguide.flops import flops
from flowguide.networks import Perturbation, count_parameters
from flowguide.networks.dit import _from_patches, _to_patches
from flowguide.networks.positions import sincos_positions
from flowguide.networks.unet import _downsample, _upsample
from tests.support.tiny_networks import BATCH, FIELDS, build, draw, full_condition, inputs, noisy

SIDES = [(6,), (4, 6), (2, 4, 6)]
WITHOUT_TEXT = {name: FIELDS[name] for name in ("kind", "place")}


@pytest.mark.parametrize("sides", SIDES)
def test_patches_are_blocks_of_the_example_and_come_back(sides):
    x = jnp.arange(2 * math.prod(sides) * 3.0).reshape(2, *sides, 3)
    patches = _to_patches(x, 2)
    grid = tuple(side // 2 for side in sides)
    assert patches.shape == (2, math.prod(grid), 2 ** len(sides) * 3)
    for token, corner in enumerate(np.ndindex(grid)):
        block = x[(1, *(slice(2 * i, 2 * i + 2) for i in corner))]
        np.testing.assert_array_equal(patches[1, token], block.reshape(-1))
    np.testing.assert_array_equal(_from_patches(patches, 2, x.shape), x)


@pytest.mark.parametrize("grid", [(5,), (3, 5), (2, 3, 4)])
def test_positions_encode_each_axis_on_its_own(grid):
    """Token (i, j, ...) gets, for each axis, the sines and cosines of its place there."""
    n, tokens = len(grid), math.prod(grid)
    table = sincos_positions(grid, 8 * n)
    assert table.shape == (tokens, 8 * n)
    frequency = 10_000.0 ** (-np.arange(4) / 4)
    for row, place in zip(table, np.ndindex(grid), strict=True):
        angle = np.concatenate([i * frequency for i in place])
        np.testing.assert_allclose(row, np.concatenate([np.sin(angle), np.cos(angle)]), atol=1e-6)
    apart = jnp.linalg.norm(table[:, None] - table[None], axis=-1)
    assert float(apart[~np.eye(tokens, dtype=bool)].min()) > 0.5


@pytest.mark.parametrize("sides", SIDES)
def test_every_side_is_halved_and_doubled(sides):
    x = draw(0, 2, *sides, 3)
    large = np.asarray(x)
    for axis in range(1, x.ndim - 1):
        large = np.repeat(large, 2, axis=axis)
    np.testing.assert_array_equal(_upsample(x), large)
    corners = itertools.product((0, 1), repeat=len(sides))
    blocks = [x[(slice(None), *(slice(start, None, 2) for start in corner))] for corner in corners]
    np.testing.assert_allclose(_downsample(x), np.mean(blocks, axis=0), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("sides", "axis"), [((4,), 0), ((4,), 1), ((4, 6), 0), ((4, 6), 1), ((4, 6), 2)])
def test_a_unet_repeats_its_result_along_an_axis_that_no_kernel_mixes(sides, axis):
    """Kernels that are 0 beside the centre of a new axis treat each slice as the network of one axis less does."""
    few = build("unet", WITHOUT_TEXT, (*sides, 2))
    more = build("unet", WITHOUT_TEXT, (*sides[:axis], 4, *sides[axis:], 2))
    params = noisy(few.init(jax.random.key(0)))

    def lifted(kernel):
        if kernel.ndim != len(sides) + 2:
            return kernel
        return jnp.stack([jnp.zeros_like(kernel), kernel, jnp.zeros_like(kernel)], axis=axis)

    wide = jax.tree.map(lifted, params)
    assert jax.tree.map(jnp.shape, wide) == jax.tree.map(jnp.shape, jax.eval_shape(more.init, jax.random.key(0)))
    (t, x), c = inputs((*sides, 2)), full_condition()
    c = given({name: c.value[name] for name in WITHOUT_TEXT})
    repeated = jnp.repeat(jnp.expand_dims(x, axis + 1), 4, axis=axis + 1)
    want = jnp.expand_dims(jax.jit(few.velocity)(params, t, x, c), axis + 1)
    got = jax.jit(more.velocity)(wide, t, repeated, c)
    np.testing.assert_allclose(got, jnp.broadcast_to(want, got.shape), atol=2e-4)


def test_a_network_reads_its_input_along_every_axis(each):
    """One value changes the velocity at other places along each axis."""
    _, shape, _, _, params, velocity = each
    (t, x), c = inputs(shape), full_condition()
    moved = x.at[(slice(None), *(0,) * len(shape))].add(1.0)
    change = jnp.abs(velocity(params, t, moved, c) - velocity(params, t, x, c))
    for axis in range(1, len(shape)):
        elsewhere = jnp.take(change, jnp.arange(1, x.shape[axis]), axis=axis)
        assert float(jnp.min(jnp.max(elsewhere, axis=tuple(range(1, x.ndim))))) > 1e-4


@pytest.mark.thorough
@pytest.mark.parametrize("attention", ["blurred", "identity"])
def test_perturbations_change_the_velocity_and_keep_its_shape(each, attention):
    name, shape, network, _, params, velocity = each
    if name == "mlp":
        pytest.skip("no attention")
    (t, x), c = inputs(shape), full_condition()
    weakened = network.perturbed(Perturbation(skip=(1,), attention=attention, blur=0.8))
    got = jax.jit(weakened)(params, t, x, c)
    assert got.shape == x.shape
    assert float(jnp.abs(got - velocity(params, t, x, c)).max()) > 1e-3


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_unet_has_kernels_of_side_three_and_multiplies_them_at_every_place(n):
    """One level, one block: parameters and operations by hand, from the convolutions' shapes."""
    shape = (4, 6, 8)[:n]
    network = build("unet", {}, (*shape, 2), multipliers=(1,), attention=(), width=8)
    params = jax.eval_shape(network.init, jax.random.key(0))
    # Down 1 block, middle 2, up 2 of twice the channels; each has a second convolution.
    weights = 3**n * (2 * 8 + 3 * (64 + 64) + 2 * (128 + 64) + 8 * 2)
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == n + 2]
    assert count_parameters({str(i): leaf for i, leaf in enumerate(kernels)}) == weights
    t, x = inputs((*shape, 2))
    counted = flops(network.velocity, params, t, x, given({}))
    places = BATCH * math.prod(shape)
    shortcuts = 2 * 2 * places * 16 * 8
    # time: 128 -> 32 -> 32, modulation 32 -> 16 in each of 5 blocks, skip 32 -> 1.
    embeddings = 2 * BATCH * (128 * 32 + 32 * 32 + 5 * 32 * 16 + 32)
    assert counted == 2 * places * weights + shortcuts + embeddings
