from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from flowguide.condition import Condition, null
from flowguide.networks.embed import ConditionEmbedding, sinusoidal
from tests.support.tiny_networks import FIELDS, full_condition


def test_sinusoids_have_the_stated_frequencies():
    t = jnp.array([0.0, 0.25, 1.0])
    frequency = 10_000.0 ** (-np.arange(4) / 4)
    angle = 1000.0 * np.array([[0.0], [0.25], [1.0]]) * frequency
    np.testing.assert_allclose(sinusoidal(t, 8), np.concatenate([np.cos(angle), np.sin(angle)], -1), atol=2e-4)


def test_absent_fields_become_their_null_tokens():
    embedding = ConditionEmbedding(FIELDS, 8, rngs=nnx.Rngs(0))
    got = embedding(null(full_condition()), 4)
    fields: Any = embedding.fields
    tokens = fields["text"]
    assert got.sequence is not None
    assert got.mask is not None
    np.testing.assert_allclose(got.sequence, jnp.broadcast_to(tokens.null[...], (4, 4, 8)))
    np.testing.assert_array_equal(got.mask, [[True, False, False, False]] * 4)
    want = fields["kind"].null[...] + fields["place"].null[...]
    want = want + tokens.pool(tokens.null[...][None])[0]
    np.testing.assert_allclose(got.vector, jnp.broadcast_to(want, (4, 8)), atol=1e-5)


def test_an_empty_sentence_is_finite_and_is_not_the_null_token():
    embedding = ConditionEmbedding({"text": FIELDS["text"]}, 8, rngs=nnx.Rngs(0))
    empty = jnp.zeros((2, 4), int)
    got = embedding(Condition(empty, jnp.array([True, False])), 2)
    assert bool(jnp.all(jnp.isfinite(got.vector)))
    assert float(jnp.abs(got.vector[0] - got.vector[1]).max()) > 0
    assert got.mask is not None
    assert not bool(jnp.any(got.mask[0]))


def test_null_tokens_are_initialised_like_other_rows():
    embedding = ConditionEmbedding({"kind": FIELDS["kind"]}, 1024, rngs=nnx.Rngs(jax.random.key(3)))
    kind: Any = embedding.fields["kind"]
    table, token = kind.table[...], kind.null[...]
    np.testing.assert_allclose(jnp.std(token), jnp.std(table), rtol=0.1)
