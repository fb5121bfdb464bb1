"""Every field type does what ``Field`` says, and has an embedding."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from flowguide.errors import UserError
from flowguide.networks.embed import EMBEDDINGS
from flowguide.schema import Images, Vectors
from flowguide.schema.fields import (
    FIELDS,
    Aligned,
    ClassMap,
    Known,
    Label,
    Labels,
    Series,
    Tokens,
    Vector,
    blank,
    field_from_json,
    field_to_json,
    spec,
    value,
)

PLACE = Path(tempfile.mkdtemp())
GREY = Images((3, 4, 1))
Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 3).save(PLACE / "grey.png")
RGBA = np.full((3, 4, 4), 60, np.uint8)
RGBA[1:, :, 3] = 0
Image.fromarray(RGBA).save(PLACE / "holes.png")
np.save(PLACE / "series.npy", np.array([[1.0, 2.0], [3.0, 4.0], [np.nan, np.nan]]))

# By kind: a field, a value as a prompt would write it, and what is no value of it.
TABLE = {
    "label": (Label(("none", "red", "dark blue")), "dark blue", 3),
    "vector": (Vector(3), "0.5 -1 2", np.array([0.0, np.inf, 1.0], np.float32)),
    "tokens": (Tokens(4, ("", "a", "red", "hat")), "a red hat", np.array([1, 2, -1, 0], np.int32)),
    "labels": (Labels(("red", "tall", "old")), "old|red", np.array([0, 2, 1])),
    "series": (Series(3, 2), str(PLACE / "series.npy"), np.array([[np.nan] * 2, [1, 1], [1, 1]], np.float32)),
    "aligned": (Aligned(GREY), str(PLACE / "grey.png"), np.full((3, 4, 1), 256)),
    "class_map": (ClassMap((3, 4), ("sky", "sea", "land")), str(PLACE / "grey.png"), np.full((3, 4), 3)),
    "known": (Known(GREY), str(PLACE / "holes.png"), np.full((3, 4, 1), np.inf)),
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


@pytest.mark.thorough
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


@pytest.mark.thorough
@KINDS
def test_the_null_token_takes_over_exactly_where_a_field_is_absent(kind):
    field, *_ = TABLE[kind]
    present = jnp.array([True, False, True, False])
    module = EMBEDDINGS[type(field)].make(field, 8, rngs=nnx.Rngs(0))

    def embedded(values):
        found = module(values, present)
        assert (found.sequence is not None) == (found.mask is not None) == EMBEDDINGS[type(field)].has_sequence
        assert found.vector.shape == (4, 8)
        shape = EMBEDDINGS[type(field)].beside
        assert [b.shape for b in found.beside] == ([] if shape is None else [(4, *shape(field))])
        return np.concatenate([np.asarray(a).reshape(4, -1) for a in (found.vector, *found.beside)], axis=1)

    one, *others = (field.random(jax.random.key(seed), 4) for seed in range(30))
    other = next(x for x in others if np.asarray(x != one).reshape(4, -1).any(1).all())
    before = embedded(one)
    np.testing.assert_array_equal(embedded(other)[1::2], before[1::2])
    assert np.abs(embedded(other) - before)[::2].max(1).min() > 1e-4
    token: Any = module.null  # pyright: ignore[reportAttributeAccessIssue]
    token[...] = token[...] + 1.0
    np.testing.assert_array_equal(embedded(one)[::2], before[::2])
    assert np.abs(embedded(one) - before)[1::2].max(1).min() > 1e-4


def test_a_picture_with_holes_is_known_where_it_is_opaque():
    found = Known(GREY).parse("known", str(PLACE / "holes.png"))
    assert (found[0] == 60).all()
    assert np.isnan(found[1:]).all()


TABLE_OF_TWO = Known(Vectors((3,), names=("alcohol", "total acid", "ash")))


@pytest.mark.parametrize(
    "given", ["total acid:-2.5; ash:1e3", "? -2.5 1000", {"ash": 1000.0, "total acid": -2.5}, [np.nan, -2.5, 1000]]
)
def test_known_columns_are_given_by_name_or_by_place(given):
    np.testing.assert_array_equal(value("known", given, TABLE_OF_TWO), np.array([np.nan, -2.5, 1000], np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("acid:1", "no column 'acid': there are alcohol, total acid"),
        ("1 2", "takes 3 numbers"),
        ("ash:high", "takes 3 numbers"),
        ("? inf 2", "got inf"),
    ],
)
def test_unknown_columns_are_refused(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        value("known", text, TABLE_OF_TWO)


@pytest.mark.parametrize("text", ["nosuch.png", "series.npy", "grey.png"])
def test_a_file_that_does_not_fit_is_refused_by_name(text):
    with pytest.raises(UserError, match=re.escape(text)):
        value("a", str(PLACE / text), Aligned(Images((5, 5, 3))))


def test_random_parts_hide_anything_from_nothing_to_all_and_whole_pixels():
    x1 = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (4000, 4, 6, 2)), jnp.float32)
    field = Known(Vectors((4, 6, 2), (1.0, -2.0), (3.0, 0.5)))
    part = np.asarray(field.part(jax.random.split(jax.random.key(0), 4000), x1))
    known = ~np.isnan(part)
    assert (known[..., 0] == known[..., 1]).all()
    stored = np.asarray(field.array.to_output(x1))
    np.testing.assert_array_equal(part[known], stored[known])
    grid = known[..., 0]
    half = np.zeros((4, 6), bool)
    half[:2] = True
    for pattern in (half, ~half, half & False, half | True):
        assert (grid == pattern).all((1, 2)).mean() > 0.002  # of 2^24 patterns
    # By symmetry every pixel is known in half of the parts: each of the two kinds is its own mirror image.
    np.testing.assert_allclose(grid.mean(0), 0.5, atol=4 * 0.5 / np.sqrt(4000))


def test_each_entry_of_a_vector_is_known_by_itself_at_a_rate_that_is_uniform():
    field = Known(Vectors((5,)))
    part = np.asarray(field.part(jax.random.split(jax.random.key(1), 6000), jnp.zeros((6000, 5))))
    count = np.bincount((~np.isnan(part)).sum(1), minlength=6) / 6000
    np.testing.assert_allclose(count, 1 / 6, atol=4 * np.sqrt(5 / 36 / 6000))  # Bernoulli's with a uniform rate
