"""Every kind of example does what ``Examples`` says."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide.schema.examples import (
    EXAMPLES,
    Images,
    Latents,
    Records,
    Vectors,
    example_spec,
    examples_from_json,
    examples_to_json,
)

RNG = np.random.default_rng(0)
# Kinds of example, each with stored examples of it.
TABLE = [
    (Images((16, 8, 3)), RNG.permutation(np.arange(768) % 256).reshape(2, 16, 8, 3).astype(np.uint8)),
    (Images((1, 1, 1)), np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1)),
    (Vectors((2,)), RNG.normal(size=(5, 2)).astype(np.float32)),
    (Vectors((3, 4)), 1e6 * RNG.normal(size=(5, 3, 4)).astype(np.float32)),
    (Vectors(()), RNG.normal(size=5).astype(np.float32)),
    (
        Records(("age", "city", "smoker"), ((), ("Oslo", "Paris", "Rome"), ("False", "True"))),
        np.array([[0.5, 2, 1], [-3, 0, 0], [1e6, 1, 1]], np.float32),
    ),
]
KINDS = pytest.mark.parametrize(("examples", "stored"), TABLE, ids=[str(examples) for examples, _ in TABLE])


def test_every_kind_is_in_the_table():
    """But latents, of which only a draw is seen: ``test_latents``."""
    assert {type(examples) for examples, _ in TABLE} == set(EXAMPLES.values()) - {Latents}


@KINDS
def test_json_keeps_a_kind(examples, stored):
    content = json.loads(json.dumps(examples_to_json(examples)))
    assert EXAMPLES[content["kind"]] is type(examples)
    assert examples_from_json(content) == examples
    assert type(examples_from_json(content)) is type(examples)


@KINDS
def test_what_is_stored_comes_back(examples, stored):
    spec = example_spec(examples, len(stored))
    assert (stored.shape, stored.dtype) == (spec.shape, spec.dtype)
    seen = examples.to_model(stored)
    assert (seen.shape, seen.dtype) == ((len(stored), *examples.model_shape), jnp.float32)
    np.testing.assert_array_equal(examples.to_output(np.asarray(seen)), stored, strict=True)
    np.testing.assert_array_equal(examples.to_output(seen), stored, strict=True)
    compiled = jax.jit(lambda x: (examples.to_model(x), examples.to_output(examples.to_model(x))))(stored)
    np.testing.assert_allclose(compiled[0], seen, rtol=1e-6)
    np.testing.assert_array_equal(compiled[1], stored, strict=True)


@KINDS
def test_training_sees_the_same_and_mirrors_by_the_coins(examples, stored):
    keys, seen = jax.random.split(jax.random.key(0), len(stored)), examples.to_model(stored)
    np.testing.assert_array_equal(examples.draw(keys, stored), seen)
    coins = jnp.arange(len(stored)) % 2 == 1
    if not examples.as_pictures:
        with pytest.raises(ValueError, match="set flip to False"):
            examples.draw(keys, stored, coins)
        return
    expected = [np.flip(x, axis=1) if i % 2 else x for i, x in enumerate(np.asarray(seen))]
    np.testing.assert_array_equal(examples.draw(keys, stored, coins), np.stack(expected))


@KINDS
def test_pictures_can_be_mirrored(examples, stored):
    if not examples.as_pictures:
        with pytest.raises(ValueError, match="set flip to False"):
            examples.mirrored(stored)
        return
    assert examples.dtype == np.uint8
    np.testing.assert_array_equal(examples.mirrored(stored), np.flip(stored, axis=2))


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "video", "shape": [2]},
        {"kind": "image", "shape": [2, 2]},
        {"kind": "image", "shape": [0, 2, 3]},
        {"kind": "points", "shape": [2.0]},
        {"kind": "points", "shape": [True]},
        {"kind": "points", "shape": [2**16, 2**16]},
        {"kind": "records", "names": ["a", "a"], "classes": [[], ["x", "y"]]},
        {"kind": "records", "names": ["a"], "classes": [[], []]},
        {"kind": "records", "names": ["a"], "classes": [["x"]]},
        {"kind": "records", "names": ["a"], "classes": [["x", "x"]]},
        {"kind": "records", "names": ["a"], "classes": ["xy"]},
        {"kind": "records", "names": ["a"], "classes": [["x", "y"]], "scale": [1.0]},
        {"kind": "records", "names": [], "classes": []},
    ],
    ids=str,
)
def test_what_is_no_kind_is_refused(content):
    with pytest.raises(ValueError, match=r"(kind|shape|names|classes|scale) (is|are) .*, not "):
        examples_from_json(content)
