"""Samples as a CSV file: every number to the bit, conditions as columns, and readable as data again."""

import csv

import numpy as np
import pytest

from flowguide.cli.sample_table import check_table, save_table
from flowguide.data import open_path
from flowguide.errors import UserError
from flowguide.schema import DataInfo, Images, Label, Records, Tokens, Vector, Vectors

FIELDS = {
    "kind": Label(("3", "a, b", 'say "x"')),
    "angle": Vector(1),
    "place": Vector(2),
    "caption": Tokens(3, ("", "red", "hat")),
}
INFO = DataInfo("made_up", Vectors((2,), names=("weight", "x, y")), FIELDS)


def any_floats(count):
    """Finite float32 of all magnitudes, from random bits."""
    bits = np.random.default_rng(0).integers(0, 2**32, 4 * count, dtype=np.uint32).view(np.float32)
    return bits[np.isfinite(bits)][: 2 * count].reshape(count, 2)


def test_numbers_are_read_back_to_the_bit(tmp_path):
    x = any_floats(500)
    save_table(tmp_path / "t.csv", [x[:200], x[200:]], ["kind=3", "kind=1"], INFO)
    with (tmp_path / "t.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["weight", "x, y", "kind"]
    np.testing.assert_array_equal(np.array([row[:2] for row in rows], np.float64).astype(np.float32), x)
    assert [row[2] for row in rows] == ["3"] * 200 + ["a, b"] * 300


def test_conditions_are_columns(tmp_path):
    conds = ["angle=0.1,place=1 -2.5,caption=red hat", "angle=3,place=0 1e-30,caption=hat"]
    x = [np.zeros((1, 2), np.float32), np.ones((2, 2), np.float32)]
    save_table(tmp_path / "t.csv", x, conds, INFO._replace(examples=Vectors((2,))))
    with (tmp_path / "t.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["x0", "x1", "angle", "place0", "place1", "caption"]
    numbers = np.array([row[2:5] for row in rows], np.float64).astype(np.float32)
    expected = np.array([[0.1, 1, -2.5], [3, 0, 1e-30], [3, 0, 1e-30]], np.float32)
    np.testing.assert_array_equal(numbers, expected)
    assert [row[5] for row in rows] == ["red hat", "hat", "hat"]


def test_a_table_is_data_to_train_on(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    names = Vectors((2,), names=("weight", "height"))
    info = DataInfo("made_up", names, {"kind": Label(("cat", "dog"))})
    save_table(tmp_path / "t.csv", [x[:20], x[20:]], ["cat", "dog"], info)
    train, test = open_path(tmp_path / "t.csv")
    assert isinstance(train.info.examples, Vectors)
    assert (train.info.examples.names, train.info.fields) == (("weight", "height"), info.fields)
    found = np.concatenate([data.read(np.arange(data.size)).x for data in (train, test)])
    assert {row.tobytes() for row in found} == {row.tobytes() for row in x}


def test_classes_are_written_by_name_and_read_back_as_they_are(tmp_path):
    rng = np.random.default_rng(0)
    kinds = ("a, b", "cat; x:y", 'say "x"')
    examples = Records(("kind", "weight", "old"), (kinds, (), ("False", "True")))
    x = np.stack([np.arange(60) % 3, rng.normal(size=60), np.arange(60) % 2], axis=1).astype(np.float32)
    info = DataInfo("made_up", examples, {"angle": Vector(1)})
    check_table(["angle=1", "angle=2"], info)
    save_table(tmp_path / "t.csv", [x[:30], x[30:]], ["angle=1", "angle=2"], info)
    with (tmp_path / "t.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["kind", "weight", "old", "angle"]
    assert [row[0] for row in rows] == [kinds[i % 3] for i in range(60)]
    train, test = open_path(tmp_path / "t.csv", examples.names)
    assert isinstance(train.info.examples, Records)
    assert train.info.examples[:2] == examples[:2]
    found = np.concatenate([data.read(np.arange(data.size)).x for data in (train, test)])
    assert {row.tobytes() for row in found} == {row.tobytes() for row in x}


REFUSED = {
    "images": (
        INFO._replace(examples=Images((4, 4, 3))),
        [""],
        r"made_up has .* \(4, 4, 3\): use --save=npz",
    ),
    "signals": (INFO._replace(examples=Vectors((4, 2))), [""], "is for vectors"),
    "some": (INFO, ["angle=1", "angle=1,kind=3"], "got 'kind' in some --cond only"),
    "twice": (DataInfo("d", Vectors((2,)), {"x1": Vector(1)}), ["x1=2"], "two columns 'x1'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_table_is_refused(name):
    info, conds, message = REFUSED[name]
    with pytest.raises(UserError, match=message):
        check_table(conds, info)
    check_table(["", ""], INFO)
    check_table(["angle=1", "angle=2"], INFO)
