"""Tables of arrays: what is found in them, how they are split, and what is refused."""

from typing import Any

import numpy as np
import pytest

from flowguide.data import column_checks, describe_table, of_arrays, open_table, tables
from flowguide.errors import DataError
from flowguide.schema import (
    Aligned,
    ClassMap,
    Images,
    Label,
    Labels,
    Records,
    Series,
    Tokens,
    Vector,
    Vectors,
    info_from_json,
    info_to_json,
)
from flowguide.schema.standard import standardised

N = 40


def vectors(table):
    examples = describe_table(table).examples
    assert isinstance(examples, Vectors)
    return examples


RNG = np.random.default_rng(0)
X = (RNG.normal(size=(N, 3)) * [1, 10, 100] + [5, 0, -3]).astype(np.float32)

EXAMPLES = {
    "grey images": (np.zeros((N, 8, 6), np.uint8), Images, (8, 6, 1)),
    "colour images": (np.zeros((N, 8, 6, 3), np.uint8), Images, (8, 6, 3)),
    "vectors": (X, Vectors, (3,)),
    "whole numbers": (RNG.integers(0, 99, (N, 2)), Vectors, (2,)),
    "numbers": (X[:, 0], Vectors, (1,)),
    "half precision": (X.astype(np.float16), Vectors, (3,)),
    "signals": (RNG.normal(size=(N, 16, 2)), Vectors, (16, 2)),
    "float images": (RNG.normal(size=(N, 4, 4, 1)), Vectors, (4, 4, 1)),
    "volumes": (RNG.normal(size=(N, 4, 4, 4, 1)), Vectors, (4, 4, 4, 1)),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_known_by_dtype_and_shape(name):
    x, kind, shape = EXAMPLES[name]
    table = of_arrays("data", {"x": x})
    info = describe_table(table)
    assert type(info.examples) is kind
    assert info.shape == shape
    assert info_from_json(info_to_json(info)) == info
    stored = open_table(table, "test", info).read(np.arange(4)).x
    assert stored.shape == (4, *shape)
    assert stored.dtype == info.examples.dtype


FIELDS = {
    "numbered classes": (np.arange(N) % 3 + 7, Label(("7", "8", "9"))),
    "named classes": (["b", "a"] * (N // 2), Label(("a", "b"))),
    "yes or no": (np.arange(N) % 2 == 0, Label(("False", "True"))),
    "fractions": (X[:, 0], Vector),
    "vectors": (X, Vector),
    "many whole numbers": (np.arange(N) * 3, Vector),
    "captions": ([f"a dog and {i} cats" for i in range(N)], Tokens),
}


IMAGES, WAVES = np.zeros((N, 8, 6, 3), np.uint8), RNG.normal(size=(N, 8, 2)).astype(np.float32)
PADDED = np.where(np.arange(5)[:, None] < 1 + np.arange(N)[:, None, None] % 5, RNG.normal(size=(N, 5, 4)), np.nan)
# Examples, a condition on the same axes or not, and the field that it is.
BESIDE = {
    "grey images beside images": (IMAGES, IMAGES[..., 0], Aligned(Images((8, 6, 1)))),
    "small images beside images": (IMAGES, IMAGES[:, ::2, ::2], Aligned(Images((4, 3, 3)))),
    "float channels beside images": (IMAGES, RNG.normal(size=(N, 8, 6)), Aligned),
    "masks beside images": (IMAGES, RNG.random((N, 8, 6)) < 0.5, ClassMap((8, 6), ("0", "1"))),
    "class maps beside images": (IMAGES, np.arange(N)[:, None, None] % 3 * np.ones((8, 6), int), ClassMap),
    "series beside images": (IMAGES, PADDED, Series),
    "series beside signals": (WAVES, PADDED, Series),
    "signals beside signals": (WAVES, WAVES[:, ::4], Aligned),
    "one channel beside signals": (WAVES, WAVES[..., 0], Aligned),
    "images beside vectors": (X, RNG.normal(size=(N, 8, 6, 1)), Aligned),
    "numbers beside images": (IMAGES, X, Vector),
    "tags in one text": (X, ["a|b", "b|c", "", "c"] * (N // 4), Labels(("a", "b", "c"))),
    "tags in lists": (X, [["a", "b"], [], ("c",), ["c", "a", "b"]] * (N // 4), Labels(("a", "b", "c"))),
    "tags as booleans": (X, RNG.random((N, 3)) < 0.5, Labels(("0", "1", "2"))),
}


@pytest.mark.parametrize("name", BESIDE)
def test_fields_beside_the_examples_are_known_by_their_axes(name):
    x, c, expected = BESIDE[name]
    values: Any = np.asarray(c, object if isinstance(c, list) else None)
    table = of_arrays("data", {"x": x, "c": c})
    info = describe_table(table, ("x",))
    field = info.fields["c"]
    assert field == expected if not isinstance(expected, type) else type(field) is expected
    assert info_from_json(info_to_json(info)) == info
    rows = open_table(table, "train", info, ("x",)).read(np.arange(9)).value["c"]
    assert (rows.shape, rows.dtype) == ((9, *field.shape), field.dtype)
    field.check("c", rows)
    at = tables.rows_of(table, "train")[:9]
    if isinstance(field, Labels):
        names: Any = [set(one.split("|")) if isinstance(one, str) else one for one in (values[at])]
        has = np.array(
            [[one[i] if field.values[0] == "0" else v in one for i, v in enumerate(field.values)] for one in names]
        )
        np.testing.assert_array_equal(rows, has)
    else:
        np.testing.assert_array_equal(rows, values[at].reshape(rows.shape).astype(field.dtype))
    if isinstance(field, Aligned | Series) and field.dtype == np.float32:
        seen = standardised(field.column("c", values), *_moments(field))
        np.testing.assert_allclose(np.nanmean(seen, axis=tuple(range(seen.ndim - 1))), 0, atol=1e-5)
        np.testing.assert_allclose(np.nanstd(seen, axis=tuple(range(seen.ndim - 1))), 1, atol=1e-5)


def _moments(field):
    settings: Any = field.array if isinstance(field, Aligned) else field
    return settings.mean, settings.scale


@pytest.mark.parametrize("name", FIELDS)
def test_fields_are_known_by_dtype_and_values(name):
    values, expected = FIELDS[name]
    field = describe_table(of_arrays("data", {"x": X, "c": values})).fields["c"]
    assert field == expected or type(field) is expected


def test_a_class_is_the_one_that_was_given():
    table = of_arrays("data", {"x": X, "kind": ["cat", "ape", "dog", "cat"] * (N // 4)})
    info = describe_table(table)
    data = open_table(table, "train", info)
    batch = data.read(np.arange(data.size))
    for x, kind in zip(batch.x, batch.value["kind"], strict=True):
        row = int(np.flatnonzero((x == X).all(1))[0])
        field = info.fields["kind"]
        assert isinstance(field, Label)
        assert field.values[kind] == table.columns["kind"][row]


def test_numbers_are_standardised_and_restored():
    x = X.copy()
    x[:, 1] = 4  # never changes
    examples = vectors(of_arrays("data", {"x": x, "c": X}))
    seen = np.asarray(examples.to_model(x))
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(seen.std(0), [1, 0, 1], atol=1e-5)
    np.testing.assert_allclose(examples.to_output(seen), x, rtol=1e-5, atol=1e-4)
    assert examples.log_volume == pytest.approx(np.log(x.std(0)[[0, 2]].astype(float)).sum(), rel=1e-5)
    signals = RNG.normal(size=(N, 5, 2)) * [1, 20]
    found = vectors(of_arrays("data", {"x": signals}))
    np.testing.assert_allclose(found.scale, signals.reshape(-1, 2).std(0), rtol=1e-5)  # of each channel
    assert found.log_volume == pytest.approx(5 * np.log(found.scale).sum(), rel=1e-6)


def test_several_columns_are_one_example_with_their_names():
    table = of_arrays("data", {"a": X[:, 0], "b": X[:, 1], "kind": np.arange(N) % 2})
    info = describe_table(table)
    assert vectors(table).names == ("a", "b")
    assert set(info.fields) == {"kind"}
    chosen = describe_table(table, ("b",), ("a",))
    assert (chosen.shape, set(chosen.fields)) == ((1,), {"a"})
    data = open_table(table, "train", chosen, ("b",))
    batch = data.read(np.arange(data.size))
    assert {(float(a), float(b)) for a, b in zip(batch.value["a"][:, 0], batch.x[:, 0], strict=True)} <= {
        (float(a), float(b)) for a, b in zip(X[:, 0], X[:, 1], strict=True)
    }


def test_texts_and_booleans_among_the_examples_are_classes_and_whole_numbers_are_numbers():
    columns = {"age": X[:, 0], "kids": np.arange(N) % 3, "city": ["b", "a", "c", "b"] * (N // 4), "old": X[:, 1] > 0}
    table = of_arrays("data", columns)
    info = describe_table(table, ("city", "age", "kids", "old"), ())
    examples = info.examples
    assert isinstance(examples, Records)
    assert examples.names == ("city", "age", "kids", "old")
    assert examples.classes == (("a", "b", "c"), (), (), ("False", "True"))
    assert examples.discrete == ("city", "old")
    assert "numbers, whole ones too: age, kids; classes: city (3: a, b, c), old (2: False, True)" in examples.about
    assert info_from_json(info_to_json(info)) == info
    found = []
    for split in ("train", "test"):
        held, streamed = (open_table(table, split, info, memory_limit=limit) for limit in (2**20, 0))
        rows = np.arange(held.size)
        np.testing.assert_array_equal(held.read(rows).x, streamed.read(rows).x, strict=True)
        assert held.read(rows).x.dtype == np.float32
        found += examples.named(held.read(rows).x).tolist()
    assert sorted(found) == sorted(zip(*(np.asarray(columns[name]).tolist() for name in examples.names), strict=True))
    seen = np.asarray(examples.to_model(open_table(table, "train", info).read(np.arange(36)).x))
    assert seen.shape == (36, *info.model_shape) == (36, 3 + 1 + 1 + 2)
    np.testing.assert_allclose(examples.mean[3], X[:, 0].mean(), rtol=1e-6)
    np.testing.assert_allclose(examples.scale[3], X[:, 0].std(), rtol=1e-6)


def test_what_a_test_split_may_not_have_among_the_examples_is_named_with_its_row():
    columns = {"age": X[:, 0], "kind": KINDS}
    info = describe_table(of_arrays("data", columns)._replace(split="train"), ("age", "kind"))
    for changed, message in (
        ({"kind": [*KINDS[:-1], "cats"]}, "kind='cats' in row 39 of data, .* did you mean 'cat'"),
        ({"age": with_one(np.nan)[:, 1]}, "got nan in 'age', row 3 of data"),
        ({"age": KINDS}, "texts in 'age' as examples, row 0 of data, where training has numbers"),
    ):
        test = of_arrays("data", {**columns, **changed})._replace(split="test")
        with pytest.raises(DataError, match=message):
            open_table(test, "test", info, ("age", "kind"))
    with pytest.raises(DataError, match="got column 'kind'"):
        open_table(of_arrays("data", {"age": X[:, 0]}), "test", info)
    numbers = describe_table(of_arrays("data", {"x": X})._replace(split="train"))
    with pytest.raises(DataError, match="got nan in 'x', row 3"):
        open_table(of_arrays("data", {"x": with_one(np.nan)})._replace(split="test"), "test", numbers)


def test_a_tenth_is_held_out_and_the_same_rows_every_time():
    table = of_arrays("data", {"x": np.arange(1000.0)})
    info = describe_table(table)
    train, test = (open_table(table, split, info) for split in ("train", "test"))
    rows = [d.read(np.arange(d.size)).x[:, 0].tolist() for d in (train, test)]
    assert (train.size, test.size) == (900, 100)
    assert sorted(rows[0] + rows[1]) == list(range(1000))
    again = open_table(of_arrays("other", {"x": np.arange(1000.0) + 5}), "test", info)
    assert again.read(np.arange(100)).x[:, 0].tolist() == [x + 5 for x in rows[1]]


def test_a_streamed_table_is_the_one_in_memory():
    table = of_arrays("data", {"x": X, "kind": np.arange(N) % 3})
    info = describe_table(table)
    held, streamed = (open_table(table, "train", info, memory_limit=limit) for limit in (2**20, 0))
    assert (held.in_memory, streamed.in_memory) == (True, False)
    for a, b in zip(held.read(np.arange(5)), streamed.read(np.arange(5)), strict=True):
        np.testing.assert_equal(a, b)


def test_the_version_changes_with_every_value():
    versions = {of_arrays("data", columns).version for columns in ({"x": X}, {"y": X}, {"x": X + 1}, {"x": X[:, :2]})}
    assert len(versions) == 4
    assert of_arrays("data", {"x": X.copy()}).version in versions


def with_one(value, row=3):
    x = X.copy()
    x[row, 1] = value
    return x


KINDS = ["cat", "dog"] * (N // 2)
BROKEN = {
    "nan": ({"x": with_one(np.nan)}, {}, "got nan in 'x', row 3 of data"),
    "infinity": ({"x": with_one(-np.inf)}, {}, "got -inf in 'x', row 3"),
    "nan in a field": ({"x": X, "c": with_one(np.nan, 7)}, {}, "got nan in 'c', row 7"),
    "lengths": ({"x": X, "c": KINDS[:-1]}, {}, "39 values of 'c' for 40 of 'x'"),
    "ragged": ({"x": [[1.0], [2.0, 3.0]]}, {}, "rows of different shapes"),
    "objects": ({"x": np.array([None] * N)}, {}, "row 0 is None"),
    "a number among texts": ({"x": X, "c": np.array([*KINDS[:-1], 3], object)}, {}, "row 39 is 3"),
    "complex": ({"x": X * 1j}, {}, "dtype complex"),
    "dates": ({"x": np.zeros(N, "datetime64[s]")}, {}, "dtype datetime64"),
    "bytes": ({"x": np.zeros(N, "S3")}, {}, "dtype |S3"),
    "no rows": ({"x": X[:0]}, {}, "shape (0, 3)"),
    "no axis": ({"x": np.float32(3)}, {}, "shape ()"),
    "an empty axis": ({"x": np.zeros((N, 0))}, {}, "shape (40, 0)"),
    "one row": ({"x": X[:1]}, {}, "expected at least 2"),
    "channels first": ({"x": np.zeros((N, 3, 32, 32), np.uint8)}, {}, "channels, last: transpose"),
    "one class": ({"x": X, "c": ["cat"] * N}, {}, "'c' with the same value in all rows"),
    "one number": ({"x": X, "c": np.ones(N)}, {}, "'c' with the same value in all rows"),
    "one number among examples": ({"a": X[:, 0], "b": np.ones(N)}, {}, "'b' with the same value"),
    "texts of two axes": ({"x": np.array([KINDS, KINDS]).T}, {}, "texts 'x' of shape (40, 2)"),
    "one class among examples": ({"a": X[:, 0], "b": ["cat"] * N}, {"example": ("a", "b")}, "'b' with the same value"),
    "nan beside classes": ({"a": with_one(np.nan)[:, 1], "b": KINDS}, {"example": ("a", "b")}, "nan in 'a', row 3"),
    "no class": ({"a": X[:, 0], "b": ["", *KINDS[1:]]}, {"example": ("a", "b")}, "no value of 'b' in row 0"),
    "an example twice": ({"a": X[:, 0], "b": KINDS}, {"example": ("a", "b", "a")}, "'a' twice"),
    "too many classes": (
        {"a": np.arange(1001.0), "b": [f"word {i}" for i in range(1001)]},
        {"example": ("a", "b")},
        "1,001 different texts in 'b'",
    ),
    "wide among examples": ({"a": X[:, 0], "b": X}, {"example": ("a", "b")}, "give it alone"),
    "two that may be": ({"a": X, "b": X}, {}, "name the examples"),
    "none that may be": ({"a": KINDS, "b": KINDS}, {}, "no column of numbers or images"),
    "unknown field": ({"x": X, "kind": KINDS}, {"fields": ("kinds",)}, "did you mean 'kind'"),
    "unknown example": ({"x": X, "kind": KINDS}, {"example": ("y",)}, "expected columns of data: x, kind"),
    "both": ({"x": X, "c": X}, {"example": ("x",), "fields": ("x",)}, "as an example and as a field"),
    "a volume beside images": (
        {"x": np.zeros((N, 8, 8), np.uint8), "c": RNG.random((N, 4, 4, 4, 1))},
        {"example": ("x",)},
        "expected an array on the same axes",
    ),
    "sides that do not divide": (
        {"x": np.zeros((N, 8, 8), np.uint8), "c": RNG.random((N, 3, 8, 1))},
        {"example": ("x",)},
        "expected an array on the same axes",
    ),
    "a class map of numbers": (
        {"x": np.zeros((N, 8, 8), np.uint8), "c": np.zeros((N, 8, 8), int) - np.arange(N)[:, None, None] % 2},
        {"example": ("x",)},
        "expected a class map of 0 to 999",
    ),
    "NaN within a series": (
        {
            "x": np.zeros((N, 8, 8), np.uint8),
            "c": np.where(np.arange(5)[:, None] == 2, np.nan, 1.0) * np.ones((N, 5, 3)),
        },
        {"example": ("x",)},
        "nan in 'c', row 0",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_used_is_refused_in_one_line(name):
    columns, options, message = BROKEN[name]

    def open_it():
        table = of_arrays("data", columns)
        open_table(table, "train", describe_table(table, **options), options.get("example", ()))

    with pytest.raises(DataError) as error:
        open_it()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_class_that_training_does_not_have_is_named_with_its_row():
    train = of_arrays("data", {"x": X, "kind": KINDS})._replace(split="train")
    test = of_arrays("data", {"x": X, "kind": [*KINDS[:-1], "cats"]})._replace(split="test")
    with pytest.raises(DataError, match=r"kind='cats' in row 39 of data, .* did you mean 'cat'"):
        open_table(test, "test", describe_table(train))
    with pytest.raises(DataError, match="got split 'test' of data, expected train"):
        open_table(train, "test", describe_table(train))
    with pytest.raises(DataError, match="expected train and test"):
        open_table(of_arrays("data", {"x": X}), "valid", describe_table(train, ("x",), ()))
    with pytest.raises(DataError, match="got column 'kind'"):
        open_table(of_arrays("data", {"x": X}), "test", describe_table(train))


def test_large_columns_are_checked_in_every_row(monkeypatch):
    monkeypatch.setattr(column_checks, "SAMPLE", 10)
    x = np.zeros((5000, 2), np.float32)
    x[:, 0] = np.arange(5000)
    x[4999, 1] = np.inf
    with pytest.raises(DataError, match="inf in 'x', row 4999"):
        describe_table(of_arrays("data", {"x": x}))
