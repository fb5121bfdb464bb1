from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowguide.networks import as_network, count_parameters
from tests.support.tiny_networks import build, full_condition, inputs, noisy


def test_parameters_are_nested_dicts_of_float32_with_string_keys(tiny):
    _, _, params, _, _ = tiny

    def check(node):
        if isinstance(node, dict):
            assert all(type(key) is str for key in node)
            for child in node.values():
                check(child)
        else:
            assert isinstance(node, jax.Array)
            assert node.dtype == jnp.float32

    check(params)
    assert count_parameters(params) == sum(leaf.size for leaf in jax.tree.leaves(params))


def test_initialisation_depends_on_the_key_alone(tiny):
    _, network, params, _, _ = tiny
    jax.tree.map(np.testing.assert_array_equal, params, network.init(jax.random.key(0)))
    other = network.init(jax.random.key(1))
    assert any(bool(jnp.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (params, other)), strict=True))


def test_nothing_is_computed_before_init():
    network = build("dit", width=4096, depth=1000)  # hundreds of gigabytes, if they were allocated
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    assert count_parameters(abstract) > 1e11


def test_integer_paths_survive_a_list_of_more_than_ten():
    class Chain(nnx.Module):
        def __init__(self, rngs):
            self.scales = nnx.data([nnx.Param(jnp.full((1,), float(i))) for i in range(12)])

        def __call__(self, t, x, c):
            return jnp.stack([scale[0] for scale in self.scales])

    network = as_network(Chain)
    params = network.init(jax.random.key(0))
    assert sorted(params["scales"]) == sorted(map(str, range(12)))
    unused: Any = None
    assert network.velocity(params, unused, unused, unused).tolist() == list(range(12))


def test_other_state_is_refused():
    with pytest.raises(TypeError, match=r"nnx\.Param only.*mean"):
        as_network(lambda rngs: nnx.BatchNorm(3, rngs=rngs))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_works_under_scan_checkpoint_vmap_and_grad(name):
    network = build(name)
    params, (t, x), c = noisy(network.init(jax.random.key(0))), inputs(), full_condition()
    want = jax.jit(network.velocity)(params, t, x, c)

    def single(t, x, c):
        one = jax.tree.map(lambda a: a[None], (t, x, c))
        return network.velocity(params, *one)[0]

    np.testing.assert_allclose(jax.jit(jax.vmap(single))(t, x, c), want, atol=1e-4)

    def energy(params, x):
        def step(x, _):
            return x + 0.1 * jax.checkpoint(network.velocity)(params, t, x, c), None

        return jnp.sum(jax.lax.scan(step, x, None, length=2)[0] ** 2)

    grads = jax.jit(jax.grad(energy))(params, x)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))


@pytest.mark.thorough
def test_works_under_pmap():
    network = build("mlp")
    params, (t, x), c = network.init(jax.random.key(0)), inputs(), full_condition()
    spread = jax.tree.map(lambda a: a.reshape(2, -1, *a.shape[1:]), (t, x, c))
    got = jax.pmap(network.velocity, in_axes=(None, 0, 0, 0))(params, *spread)
    np.testing.assert_allclose(got.reshape(x.shape), network.velocity(params, t, x, c), atol=1e-5)
