import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowguide.networks.attention import attend
from flowguide.networks.blocks import BlockInputs, BlockSettings, DiTBlock
from flowguide.networks.dit import UNROLLED, DiT, _from_patches, _to_patches
from flowguide.networks.layers import layer_norm, modulate
from flowguide.networks.positions import sincos_positions
from tests.support.tiny_networks import FIELDS, SHAPE, SMALL, build, draw, full_condition, inputs, noisy


@pytest.fixture(scope="module")
def params():
    return noisy(build("dit").init(jax.random.key(0)))


def test_scanned_blocks_are_the_same_blocks_one_after_the_other(params):
    (t, x), c = inputs(), full_condition()

    @jax.jit
    def unrolled(params):
        model = nnx.eval_shape(lambda: DiT(SHAPE, FIELDS, **SMALL["dit"], rngs=nnx.Rngs(0)))
        nnx.update(model, params)
        embedded = model.condition(c, len(x))
        signal = nnx.silu(model.time(t) + embedded.vector)
        h = model.inlet(_to_patches(x, 2)) + sincos_positions((2, 2), 24)
        for i in range(2):
            block = nnx.eval_shape(lambda: DiTBlock(BlockSettings(24, 2, context="keys"), rngs=nnx.Rngs(0)))
            nnx.update(block, jax.tree.map(lambda p, i=i: p[i], params["blocks"]))
            h = block(h, BlockInputs(signal, embedded.sequence, embedded.mask, (2, 2)))
        scale, shift = jnp.split(model.film(signal), 2, axis=-1)
        return _from_patches(model.outlet(modulate(layer_norm(h), scale, shift)), 2, x.shape)

    np.testing.assert_allclose(jax.jit(build("dit").velocity)(params, t, x, c), unrolled(params), atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{"remat": True}, {"unroll": 2}, {"unroll": 0}])
def test_how_blocks_are_applied_changes_no_gradient(params, options):
    (t, x), c = inputs(), full_condition()

    def gradient(network):
        return jax.jit(jax.grad(lambda p: jnp.sum(network.velocity(p, t, x, c) ** 2)))(params)

    want, got = gradient(build("dit")), gradient(build("dit", **options))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), got, want)


@pytest.mark.parametrize(
    ("options", "loops"), [({}, False), ({"remat": True}, True), ({"depth": UNROLLED}, False), ({"depth": 9}, True)]
)
def test_a_cpu_unrolls_few_blocks(options, loops):
    network = build("dit", **{"unroll": 0, **options})
    arguments = jax.eval_shape(network.init, jax.random.key(0)), *inputs(), full_condition()
    assert ("stablehlo.while" in jax.jit(network.velocity).lower(*arguments).as_text()) == loops


def test_fresh_blocks_are_identities():
    block = DiTBlock(BlockSettings(8, 2), rngs=nnx.Rngs(0))
    x, signal = draw(0, 2, 5, 8), jnp.ones((2, 8))
    np.testing.assert_array_equal(block(x, BlockInputs(signal, None, None, (1, 5))), x)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_agrees_with_jax(masked):
    q, k, v = (draw(i, 2, n, 3, 4) for i, n in enumerate((5, 7, 7)))
    mask = jnp.arange(7) < jnp.array([[4], [7]]) if masked else None
    full = None if mask is None else mask[:, None, None, :]
    np.testing.assert_allclose(attend(q, k, v, mask), jax.nn.dot_product_attention(q, k, v, mask=full), atol=1e-5)

    def gradient(f):
        return jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1, 2)))(q, k, v)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        gradient(lambda q, k, v: attend(q, k, v, mask)),
        gradient(lambda q, k, v: jax.nn.dot_product_attention(q, k, v, mask=full)),
    )


def test_attention_survives_large_logits():
    q = jnp.full((1, 2, 1, 4), 1e3)
    np.testing.assert_allclose(attend(q, q, q), q, rtol=1e-6)
