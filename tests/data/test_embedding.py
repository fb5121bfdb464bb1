"""Texts are replaced by their embeddings, and all else stays; what was stopped resumes; what is wrong is one line."""

import csv

import numpy as np
import pytest
from PIL import Image

from flowguide.cli import main
from flowguide.data import describe_table, embed, import_path, of_arrays, open_dataset, open_path, open_table, parts
from flowguide.data.embedding import embed_captions
from flowguide.data.importing import alone_in
from flowguide.errors import DataError, UserError
from flowguide.schema import Label, Series, Tokens
from tests.support import text_encoders
from tests.support.text_encoders import SIZE, ngrams

NGRAMS = "tests.support.text_encoders:ngrams"
N = 30
RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(size=(N, 2)) * 30 + 5
KINDS = ["big ape", "bee"] * (N // 2)
CAPTIONS = [f"A {kind}, number {i}" + " again" * (i % 4) for i, kind in enumerate(KINDS)]


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART", 8)
    text_encoders.CALLS.clear()


def table(path, captions=CAPTIONS):
    with path.open("w", newline="") as file:
        rows = zip(NUMBERS[:, 0], NUMBERS[:, 1], KINDS, captions, strict=True)
        csv.writer(file).writerows([["a", "b", "kind", "caption"], *rows])
    return path


def padded(texts, length):
    """The embeddings in a second way."""
    found = np.full((len(texts), length, SIZE), np.nan, np.float16)
    for row, text in zip(found, texts, strict=True):
        vectors = ngrams([text])[0][:length]
        row[: len(vectors)] = vectors
    return found


def check(data, texts, length, others):
    """A split has these embeddings, and is otherwise the one without texts."""
    rows = np.arange(data.size)
    found, own = data.read(rows), others.read(rows)
    np.testing.assert_array_equal(found.value["caption"], padded(texts, length), strict=True)
    np.testing.assert_array_equal(found.x, own.x, strict=True)
    assert set(found.value) == {"caption", *own.value}
    for name, value in own.value.items():
        np.testing.assert_array_equal(found.value[name], value, strict=True)
    assert {**data.info.fields, "caption": None} == {**others.info.fields, "caption": None}
    assert data.info.examples == others.info.examples


def test_a_table_is_embedded(tmp_path):
    path = table(tmp_path / "t.csv")
    done = embed(path, "mine", tmp_path, field="caption", encoder=ngrams, example=("a", "b"), batch_size=3)
    assert (done.written, done.cut) == (True, 0)
    assert max(map(len, text_encoders.CALLS)) == 3
    train, test = (open_dataset("mine", split, data_dir=tmp_path) for split in ("train", "test"))
    assert (train.size, test.size) == (27, 3)
    own = open_path(path, ("a", "b"), ("kind",))
    held_out = np.random.default_rng(0).permutation(N)[:3]
    texts = [text for i, text in enumerate(CAPTIONS) if i not in held_out]
    check(train, texts, 8, own[0])
    check(test, [CAPTIONS[i] for i in sorted(held_out)], 8, own[1])
    vectors = np.concatenate(ngrams(texts)).astype(np.float16).astype(np.float64)
    spread = np.where(vectors.std(0) > 0, vectors.std(0), 1)
    field = train.info.fields["caption"]
    assert field == test.info.fields["caption"]
    assert isinstance(field, Series)
    assert (field.length, field.size, field.encoder) == (8, SIZE, NGRAMS)
    np.testing.assert_allclose(field.mean, vectors.mean(0), atol=1e-6)
    np.testing.assert_allclose(field.scale, spread, rtol=1e-5)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["1.0.0"]
    only = open_dataset("mine", fields=("caption",), data_dir=tmp_path)
    assert list(only.info.fields) == ["caption"]


def test_images_with_captions_and_long_texts(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(N):
        Image.fromarray(RNG.integers(0, 256, (6, 4, 3), np.uint8)).save(tmp_path / "photos" / f"{i:02}.png")
    with (tmp_path / "photos" / "metadata.csv").open("w", newline="") as file:
        rows = [[f"{i:02}.png", text, i % 3] for i, text in enumerate(CAPTIONS)]
        csv.writer(file).writerows([["file_name", "caption", "place"], *rows])
    path = tmp_path / "photos"
    done = embed(path, "mine", tmp_path, field="caption", encoder=NGRAMS, length=5, fields=("caption",))
    assert done.cut == sum(len(text.replace(",", " ,").split()) > 5 for text in CAPTIONS) > 0
    train = open_dataset("mine", data_dir=tmp_path)
    held_out = np.random.default_rng(0).permutation(N)[:3]
    texts = [text for i, text in enumerate(CAPTIONS) if i not in held_out]
    check(train, texts, 5, open_path(path, fields=("none",))[0])


def test_a_prepared_set_keeps_its_splits_and_fields(tmp_path):
    """Captions that an import made words of are read from there; so are classes."""
    for split, shift in (("train", 0), ("test", 1)):
        (tmp_path / "data").mkdir(exist_ok=True)
        table(tmp_path / "data" / f"{split}.csv", CAPTIONS[shift:] + CAPTIONS[:shift])
    import_path(tmp_path / "data", "before", tmp_path, example=("a", "b"))
    embed("before", "mine", tmp_path, field="caption", encoder=NGRAMS)
    for split, shift in (("train", 0), ("test", 1)):
        words = [" ".join(text.lower().replace(",", " ").split()) for text in CAPTIONS[shift:] + CAPTIONS[:shift]]
        own = open_dataset("before", split, ("kind",), tmp_path)
        check(open_dataset("mine", split, data_dir=tmp_path), words, 7, own)
    embed("before", "kinds", tmp_path, field="kind", encoder=NGRAMS, fields=("none",))
    kinds = open_dataset("kinds", data_dir=tmp_path)
    np.testing.assert_array_equal(kinds.read(np.arange(N)).value["kind"], padded(KINDS, 2))
    assert isinstance(own.info.fields["kind"], Label)


def test_what_was_stopped_resumes(tmp_path, monkeypatch):
    """The set is the one that is made at once, and no text is embedded twice."""
    path = table(tmp_path / "t.csv")
    options = {"field": "caption", "encoder": NGRAMS, "example": ("a", "b")}
    embed(path, "whole", tmp_path, **options)
    text_encoders.CALLS.clear()
    with monkeypatch.context() as broken:
        seen, real = [], parts.np.savez

        def stopped(*arguments, **arrays):
            seen.append(None)
            if len(seen) == 3:
                raise KeyboardInterrupt
            real(*arguments, **arrays)

        broken.setattr(parts.np, "savez", stopped)
        with pytest.raises(KeyboardInterrupt):
            embed(path, "mine", tmp_path, **options)
    with pytest.raises(DataError, match="unknown data set 'mine'"):
        open_dataset("mine", data_dir=tmp_path)
    with pytest.raises(DataError, match="from other data or with other settings: delete that folder"):
        embed(path, "mine", tmp_path, **options, length=3)
    before = len(text_encoders.CALLS)
    assert embed(path, "mine", tmp_path, **options).written
    assert sum(map(len, text_encoders.CALLS[before:])) == N - 16
    whole, mine = (open_dataset(name, data_dir=tmp_path) for name in ("whole", "mine"))
    np.testing.assert_array_equal(whole.read(np.arange(27)).value["caption"], mine.read(np.arange(27)).value["caption"])
    assert whole.info.fields == mine.info.fields
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["1.0.0"]


def test_a_set_is_reused_only_if_all_is_the_same(tmp_path):
    path = table(tmp_path / "t.csv")
    options = {"field": "caption", "encoder": NGRAMS, "example": ("a", "b")}
    assert embed(path, "mine", tmp_path, **options).written
    assert not embed(path, "mine", tmp_path, **options).written
    for other in ({"length": 3}, {"encoder": "tests.support.text_encoders:wider"}, {"fields": ("none",)}):
        with pytest.raises(
            DataError, match=r"got mine, of version .* made from .*t\.csv in this way: give another name, or delete"
        ):
            embed(path, "mine", tmp_path, **{**options, **other})
    table(path, [*CAPTIONS[1:], CAPTIONS[0]])
    with pytest.raises(DataError, match=r"made from .*t\.csv in this way"):
        embed(path, "mine", tmp_path, **options)
    with (
        alone_in(tmp_path / "other"),
        pytest.raises(DataError, match="another process is writing other"),
    ):
        embed(path, "other", tmp_path, **options)


WRONG = {
    "no column": (["--field=captoin"], "got column 'captoin', did you mean 'caption'"),
    "numbers": (["--field=a"], "got float64 (30,) in 'a' of t, expected texts"),
    "no encoder": (["--encoder="], "text encoder is '', not package.module:function or hf:NAME"),
    "an encoder misspelt": (["--encoder=tests.support.text_encoders:none"], "cannot be imported"),
    "a flat encoder": (["--encoder=tests.support.text_encoders:flat"], "gave an array (12,) for 'A"),
    "too large": (["--encoder=tests.support.text_encoders:too_large"], "got numbers beyond 65,504 from tests.support"),
    "a failure": (["--encoder=tests.support.text_encoders:fails"], "(RuntimeError: out of memory somewhere)"),
    "no Transformers": (["--encoder=hf:none"], "text encoder 'hf:none'"),
    "a field of examples": (["--fields=nothing"], "got column 'nothing'"),
    "length 0": (["--length=0"], "flag --length=0"),
    "a known name": ([], "which is that of a set that TFDS or flowguide knows"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_embedded_is_one_line_and_writes_nothing(name, tmp_path, capsys):
    flags, message = WRONG[name]
    called = "avatars" if name == "a known name" else "mine"
    path, place = table(tmp_path / "t.csv"), f"--data_dir={tmp_path / 'data'}"
    usual = ["--field=caption", f"--encoder={NGRAMS}", "--example=a,b", f"--out={called}", place]
    with pytest.raises(SystemExit) as ended:
        main(["data", "embed", str(path), *usual, *flags])
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line and "example/s" not in line]
    assert message in line
    assert not list((tmp_path / "data").rglob("*"))


@pytest.mark.parametrize("part", [1, 100])
def test_vectors_of_two_sizes_are_refused(part, tmp_path, monkeypatch):
    """In a part, and in parts that each have one size."""
    monkeypatch.setattr(parts, "PART", part)
    options = {"field": "caption", "encoder": "tests.support.text_encoders:two_sizes", "batch_size": 1}
    with pytest.raises(DataError, match=r"got vectors of \d(,| and of) \d numbers from .*two_sizes: mend it"):
        embed(table(tmp_path / "t.csv"), "mine", tmp_path, example=("a", "b"), **options)
    assert not (tmp_path / "mine" / "1.0.0").exists()


def test_a_missing_text_and_other_fields_are_named(tmp_path):
    with pytest.raises(DataError, match="got no value of 'caption' in line 6"):
        embed(
            table(tmp_path / "t.csv", [*CAPTIONS[:4], "", *CAPTIONS[5:]]),
            "mine",
            tmp_path,
            field="caption",
            encoder=ngrams,
        )
    import_path(table(tmp_path / "t.csv"), "before", tmp_path, example=("a",))
    for field, message in (("angel", "got field 'angel'"), ("b", "got field 'b' of before, a vector, expected texts")):
        with pytest.raises(UserError, match=message):
            embed("before", "mine", tmp_path, field=field, encoder=ngrams)
    with pytest.raises(UserError, match="example is about files and folders; got the set before"):
        embed("before", "mine", tmp_path, field="caption", encoder=ngrams, example=("a",))
    assert not (tmp_path / "mine").exists()


def test_captions_of_arrays_are_embedded_and_classes_stay():
    """Beside vectors too, where an array of two axes would be a condition that lies beside them."""
    table = of_arrays("pets", {"x": NUMBERS, "caption": CAPTIONS, "kind": KINDS})
    info = describe_table(table, ("x",))
    assert isinstance(info.fields["caption"], Tokens)
    found, about = embed_captions(table, info, ngrams, batch_size=7)
    assert found.version != table.version
    assert about.fields["kind"] == Label(("bee", "big ape"))
    field = about.fields["caption"]
    assert isinstance(field, Series)
    expected = padded(CAPTIONS, 8)
    shown = expected[~np.isnan(expected[..., 0])].astype(np.float64)
    np.testing.assert_allclose(field.mean, shown.mean(0), atol=1e-6)
    assert (field.length, field.size, field.encoder) == (8, SIZE, NGRAMS)
    train = open_table(found, "train", about, ("x",))
    held_out = np.random.default_rng(0).permutation(N)[:3]
    rows = np.setdiff1d(np.arange(N), held_out)
    np.testing.assert_array_equal(train.read(np.arange(27)).value["caption"], expected[rows], strict=True)
    with pytest.raises(UserError, match="whose conditions are no captions: leave it out"):
        embed_captions(table, info._replace(fields={"kind": info.fields["kind"]}), ngrams)


def test_the_command_line_embeds(tmp_path, capsys):
    path, place = table(tmp_path / "t.csv"), f"--data_dir={tmp_path / 'data'}"
    usual = ["--field=caption", f"--encoder={NGRAMS}", "--example=a,b", "--out=mine", place, "--length=6"]
    assert main(["data", "embed", str(path), *usual]) in (0, None)
    out = capsys.readouterr().out
    assert "mine is prepared in" in out
    assert f"{sum(len(text.replace(',', ' ,').split()) > 6 for text in CAPTIONS)} texts were cut to 6 vectors" in out
    assert "flowguide train --data=mine --fields=caption" in out
    assert main(["data", "describe", "mine", place]) in (0, None)
    assert "caption: series, takes a text, a file .npy or an array (6, 12)" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["data", "embed", str(path), *usual[1:]])
    assert "embed takes --field=COLUMN, --encoder=ENCODER and --out=NAME of the new set" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["data", "list", "--encoder=a:b"])
    assert "--encoder is for embed; got list: leave it out" in capsys.readouterr().err
