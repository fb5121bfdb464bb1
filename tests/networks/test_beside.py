"""Conditions that lie beside the example, several classes at once, and series, in each network."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowguide.condition import Condition, given
from flowguide.networks import NETWORKS
from flowguide.networks.embed import ConditionEmbedding, concatenated
from flowguide.schema import Aligned, ClassMap, Images, Known, Labels, Series, Vectors
from tests.support.tiny_networks import build, noisy

SHAPE = (8, 8, 2)
FIELDS = {
    "small": Aligned(Images((4, 4, 1))),
    "classes": ClassMap((8, 8), ("sky", "sea", "land")),
    "known": Known(Vectors(SHAPE, (5.0, -1.0), (2.0, 3.0))),
    "tags": Labels(("a", "b", "c")),
    "series": Series(3, 2, (1.0, 0.0), (2.0, 1.0)),
    "text": Series(4, 3, (1.0, 0.0, -2.0), (2.0, 1.0, 0.5), "package.module:function"),
}
GONE = {"small": 255, "classes": -9, "known": np.inf, "tags": True, "series": np.inf, "text": np.nan}


def condition(batch=4):
    keys = jax.random.split(jax.random.key(7), len(FIELDS))
    return given({name: f.random(key, batch) for key, (name, f) in zip(keys, FIELDS.items(), strict=True)})


@pytest.fixture(scope="module", params=list(NETWORKS))
def tiny(request):
    network = build(request.param, shape=SHAPE, fields=FIELDS)
    params = noisy(network.init(jax.random.key(0)))
    x = jax.random.normal(jax.random.key(1), (4, *SHAPE))
    t = jnp.full(4, 0.3)
    slope = jax.jit(jax.grad(lambda p, c: jnp.sum(jnp.square(network.velocity(p, t, x, c) - x))))
    return params, jax.jit(network.velocity), slope, t, x


def without(c, *names, values=GONE):
    """The condition without fields in the examples 0 and 2, where their values are rubbish."""
    first = np.array([True, False, True, False])
    present = {k: p & ~first if k in names else p for k, p in c.present.items()}
    value = {}
    for name, v in c.value.items():
        gone = jnp.asarray(~present[name]).reshape(-1, *(1,) * (v.ndim - 1))
        value[name] = jnp.where(gone, jnp.asarray(values[name], v.dtype), v) if name in values else v
    return Condition(value, present)


@pytest.mark.thorough
@pytest.mark.parametrize("name", FIELDS)
def test_every_field_matters_where_it_is_present_and_nowhere_else(tiny, name):
    params, velocity, _, t, x = tiny
    c = condition()
    change = np.abs(velocity(params, t, x, c) - velocity(params, t, x, without(c, name))).max((1, 2, 3))
    assert change[::2].min() > 1e-3
    np.testing.assert_allclose(change[1::2], 0, atol=1e-5)


@pytest.mark.thorough
def test_values_of_absent_fields_and_what_is_unknown_have_no_influence(tiny):
    """Neither on the velocity nor on any gradient, whatever they are."""
    params, velocity, slope, t, x = tiny
    one, other = without(condition(), *FIELDS, values={}), without(condition(), *FIELDS)
    np.testing.assert_array_equal(velocity(params, t, x, one), velocity(params, t, x, other))
    found = slope(params, other)
    jax.tree.map(np.testing.assert_array_equal, slope(params, one), found)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(found))


def test_channels_beside_x_are_the_values_as_the_network_sees_them():
    embed = ConditionEmbedding({k: FIELDS[k] for k in ("small", "classes", "known")}, 4, rngs=nnx.Rngs(0))
    c = condition()
    c = Condition(*({k: tree[k] for k in ("small", "classes", "known")} for tree in c))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, *SHAPE)), jnp.float32)
    found = np.asarray(concatenated(x, embed(c, 4)))
    small, classes, known = (np.asarray(c.value[k]) for k in ("small", "classes", "known"))
    at = ~np.isnan(known)
    expected = [
        x,
        np.repeat(np.repeat(small / 127.5 - 1, 2, axis=1), 2, axis=2),
        np.eye(3)[classes],
        np.where(at, (known - [5, -1]) / [2, 3], 0),
        at,
    ]
    np.testing.assert_allclose(found, np.concatenate(expected, axis=-1), atol=1e-6)
    absent = Condition(c.value, jax.tree.map(jnp.zeros_like, c.present))
    fields: Any = embed.fields
    nulls = [np.asarray(fields[k].null[...]) for k in ("small", "classes", "known")]
    assert [n.shape for n in nulls] == [(4, 4, 1), (8, 8, 3), (8, 8, 4)]
    nothing = np.asarray(concatenated(x, embed(absent, 4)))[..., 3:]
    np.testing.assert_array_equal(nothing[2], np.concatenate(nulls[1:], axis=-1))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["series", "text"])
def test_the_padding_of_a_series_has_no_influence(tiny, name):
    """Neither on the velocity nor on any gradient, whatever stands behind the NaN that marks a row."""
    params, velocity, slope, t, x = tiny
    c = condition()
    short = jnp.asarray(c.value[name]).at[:, 2:].set(jnp.nan)

    def having(values):
        return Condition({**c.value, name: values}, c.present)

    found = slope(params, having(short))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(found))
    for rubbish in (99.0, jnp.inf, -jnp.inf, 0.0):
        same = having(short.at[:, 2:, 1:].set(rubbish))
        np.testing.assert_array_equal(velocity(params, t, x, having(short)), velocity(params, t, x, same))
        jax.tree.map(np.testing.assert_array_equal, found, slope(params, same))
    assert np.abs(velocity(params, t, x, having(short)) - velocity(params, t, x, c)).max() > 1e-3


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_a_condition_on_other_axes_is_refused_when_the_network_is_built(name):
    with pytest.raises(ValueError, match=r"sides \(4,\) cannot lie beside examples with 2 spatial axes"):
        build(name, shape=SHAPE, fields={"wave": Aligned(Vectors((4, 1)))})


def test_a_perceptron_takes_an_image_as_the_condition_of_a_vector():
    network = build("mlp", shape=(3,), fields={"picture": Aligned(Images((4, 4, 1)))}, refine=0)
    params = noisy(network.init(jax.random.key(0)))
    value = np.zeros((2, 4, 4, 1), np.uint8)
    value[1, 3, 3] = 255
    u = network.velocity(params, jnp.full(2, 0.5), jnp.ones((2, 3)), given({"picture": value}))
    assert np.abs(u[0] - u[1]).max() > 1e-3
