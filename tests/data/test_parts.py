"""What is computed in parts is computed once, and resumes where it stopped."""

import numpy as np
import pytest

from flowguide.data import parts
from flowguide.errors import DataError

SIZES = {"train": 10, "test": 3}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART", 4)


def squares(split, rows):
    """Arrays whose other axis differs from part to part."""
    a = rows.astype(float) ** 2 + 100 * (split == "test")
    return {"square": np.repeat(a[:, None], rows[0] + 1, axis=1), "row": rows}


def test_rows_are_read_back_from_their_parts(tmp_path):
    parts.compute(tmp_path / "p", {"a": 1}, SIZES, squares)
    for split, chosen in (("train", np.arange(10)), ("train", np.array([1, 3, 4, 9])), ("test", np.array([2]))):
        found = list(parts.read(tmp_path / "p", split, chosen, "square", "row"))
        np.testing.assert_array_equal(np.concatenate([rows for rows, _ in found]), chosen)
        for rows, part in found:
            np.testing.assert_array_equal(part["row"], rows)
            whole = np.arange(rows[0] // 4 * 4, rows[0] // 4 * 4 + 1)
            np.testing.assert_array_equal(part["square"][:, 0], rows**2 + 100 * (split == "test"))
            assert part["square"].shape == (len(rows), whole[0] + 1)
    assert [set(part) for _, part in parts.read(tmp_path / "p", "test", np.arange(3), "row")] == [{"row"}]


def test_what_was_stopped_resumes_and_computes_only_what_is_missing(tmp_path, capsys):
    seen = []

    def make(split, rows):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append((split, rows.tolist()))
        return squares(split, rows)

    with pytest.raises(KeyboardInterrupt):
        parts.compute(tmp_path / "p", {"a": (1, 2)}, SIZES, make)
    assert seen == [("train", [0, 1, 2, 3]), ("train", [4, 5, 6, 7])]
    again = []
    parts.compute(
        tmp_path / "p",
        {"a": (1, 2)},
        SIZES,
        lambda split, rows: again.append((split, rows.tolist())) or squares(split, rows),
        progress=True,
    )
    assert again == [("train", [8, 9]), ("test", [0, 1, 2])]
    assert "8/13" in capsys.readouterr().err  # what is there already counts
    parts.compute(tmp_path / "p", {"a": (1, 2)}, SIZES, lambda *_: pytest.fail("nothing is missing"))


def test_nothing_is_left_if_the_first_part_fails(tmp_path):
    with pytest.raises(ZeroDivisionError):
        parts.compute(tmp_path / "p", {}, SIZES, lambda split, rows: {"a": rows // np.int64(1 // 0)})
    assert not list(tmp_path.iterdir())


def test_parts_of_something_else_are_refused(tmp_path, monkeypatch):
    parts.compute(tmp_path / "p", {"a": 1}, SIZES, squares)
    with pytest.raises(DataError, match="from other data or with other settings: delete that folder"):
        parts.compute(tmp_path / "p", {"a": 2}, SIZES, squares)
    monkeypatch.setattr(parts, "PART", 5)
    with pytest.raises(DataError, match="from other data or with other settings"):
        parts.compute(tmp_path / "p", {"a": 1}, SIZES, squares)


def test_a_damaged_part_is_one_line_and_computed_again_when_it_is_deleted(tmp_path):
    parts.compute(tmp_path / "p", {}, SIZES, squares)
    file = tmp_path / "p" / "train-000000004.npz"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"train-000000004\.npz, which cannot be read") as error:
        list(parts.read(tmp_path / "p", "train", np.arange(10), "row"))
    assert "\n" not in str(error.value)
    file.unlink()
    parts.compute(tmp_path / "p", {}, SIZES, squares)
    assert sum(len(rows) for rows, _ in parts.read(tmp_path / "p", "train", np.arange(10), "row")) == 10
