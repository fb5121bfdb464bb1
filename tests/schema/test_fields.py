"""Every field type does what ``Field`` says, and has an embedding."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from flowguide.networks.embed import EMBEDDINGS
from flowguide.schema.fields import (
    FIELDS,
    Label,
    Tokens,
    Vector,
    blank,
    field_from_json,
    field_to_json,
    spec,
    value,
)

# By kind: a field, a value as a prompt would write it, and what is no value of it.
TABLE = {
    "label": (Label(("none", "red", "dark blue")), "dark blue", 3),
    "vector": (Vector(3), "0.5 -1 2", np.array([0.0, np.inf, 1.0], np.float32)),
    "tokens": (Tokens(4, ("", "a", "red", "hat")), "a red hat", np.array([1, 2, -1, 0], np.int32)),
}
KINDS = pytest.mark.parametrize("kind", sorted(TABLE))


def test_every_field_type_is_in_the_table_and_has_an_embedding():
    assert {kind: type(field) for kind, (field, *_) in TABLE.items()} == FIELDS
    assert set(EMBEDDINGS) == set(FIELDS.values())


@KINDS
def test_json_keeps_a_field(kind):
    field, *_ = TABLE[kind]
    content = json.loads(json.dumps(field_to_json(field)))
    assert content["type"] == kind
    assert field_from_json(content) == field
    assert type(field_from_json(content)) is type(field)
    assert hash(field) == hash(field_from_json(content))


@KINDS
def test_random_and_blank_values_are_values(kind):
    field, *_ = TABLE[kind]
    drawn, expected = field.random(jax.random.key(0), 64), spec(field, 64)
    assert (drawn.shape, drawn.dtype) == (expected.shape, expected.dtype)
    assert len(np.unique(np.asarray(drawn), axis=0)) > 1
    field.check("name", np.asarray(drawn))
    field.check("name", blank(field))
    assert (blank(field).shape, blank(field).dtype) == (field.shape, field.dtype)
    np.testing.assert_array_equal(value("name", np.asarray(drawn)[5], field), drawn[5], strict=True)


@KINDS
def test_what_is_no_value_is_refused(kind):
    field, _, wrong = TABLE[kind]
    for refused in (wrong, np.zeros((7, 7), field.dtype), None, 1j):
        with pytest.raises(ValueError, match="field 'name' takes") as error:
            value("name", refused, field)
        assert field.takes in str(error.value)


@KINDS
def test_text_is_the_inverse_of_parse(kind):
    field, text, _ = TABLE[kind]
    one = field.parse("name", text)
    assert (one.shape, one.dtype) == (field.shape, field.dtype)
    field.check("name", one)
    np.testing.assert_array_equal(value("name", text, field), one)
    if field.text(one) is None:
        return
    np.testing.assert_array_equal(field.parse("name", field.text(one)), one)
    for each in np.asarray(field.random(jax.random.key(1), 20)):  # words may stand apart there
        assert field.text(field.parse("name", field.text(each))) == field.text(each)


@KINDS
def test_the_null_token_takes_over_exactly_where_a_field_is_absent(kind):
    field, *_ = TABLE[kind]
    present = jnp.array([True, False, True, False])
    module = EMBEDDINGS[type(field)].make(field, 8, rngs=nnx.Rngs(0))

    def embedded(values):
        found = module(values, present)
        assert (found.sequence is not None) == (found.mask is not None) == EMBEDDINGS[type(field)].has_sequence
        assert found.vector.shape == (4, 8)
        return np.asarray(found.vector)

    one, *others = (field.random(jax.random.key(seed), 4) for seed in range(30))
    other = next(x for x in others if np.asarray(x != one).reshape(4, -1).any(1).all())
    before = embedded(one)
    np.testing.assert_array_equal(embedded(other)[1::2], before[1::2])
    assert np.abs(embedded(other) - before)[::2].max(1).min() > 1e-4
    token: Any = module.null  # pyright: ignore[reportAttributeAccessIssue]
    token[...] = token[...] + 1.0
    np.testing.assert_array_equal(embedded(one)[::2], before[::2])
    assert np.abs(embedded(one) - before)[1::2].max(1).min() > 1e-4
