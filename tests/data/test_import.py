"""An imported set equals its source, is never half written, and is not reused after the source has changed."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowguide import build, config
from flowguide.cli import main
from flowguide.data import batches, describe_dataset, fingerprint, import_path, importing, open_dataset, open_path
from flowguide.errors import DataError
from flowguide.schema import Label, Tokens, Vector, Vectors, info_from_json

N = 40
RNG = np.random.default_rng(0)
KINDS = ["big ape", "bee"] * (N // 2)
ANGLES = RNG.normal(size=N) * 7 + 100
CAPTIONS = [f"the {word} of {i}" for i, word in enumerate(["Hat", "cat,"] * (N // 2))]
NUMBERS = RNG.normal(size=(N, 2)) * 30 + 5


def table(path, **changes):
    """A CSV file with vectors and fields of all three types."""
    columns = {"a": NUMBERS[:, 0], "b": NUMBERS[:, 1], "kind": KINDS, "angle": ANGLES, "caption": CAPTIONS, **changes}
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return path


def vectors(folder) -> tuple[Path, dict[str, Any]]:
    return table(folder / "mine.csv"), {"example": ("a", "b")}


def images(folder, channels=3, count=N):
    pixels = RNG.integers(0, 256, (count, 6, 4, channels), dtype=np.uint8)
    for i in range(count):
        (folder / "mine" / KINDS[i]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i].squeeze()).save(folder / "mine" / KINDS[i] / f"{i:03}.png")
    return folder / "mine", {}


def splits(folder):
    for split, count in (("train", N), ("test", 7)):
        images(folder / split, count=count)
        (folder / split / "mine").rename(folder / f"{split}.new")
        (folder / split).rmdir()
        (folder / "mine").mkdir(exist_ok=True)
        (folder / f"{split}.new").rename(folder / "mine" / split)
    return folder / "mine", {}


def arrays(folder):
    """Signals under a field that has the name of the examples, and a field of several axes' worth of numbers."""
    np.savez(folder / "mine.npz", theta=RNG.normal(size=(N, 5, 2)), x=RNG.normal(size=(N, 3)))
    return folder / "mine.npz", {"example": ("theta",)}


SOURCES = {
    "vectors": vectors,
    "classes": lambda folder: (table(folder / "mine.csv"), {"example": ("kind", "b"), "fields": ("angle",)}),
    "images": images,
    "grey": lambda folder: images(folder, 1),
    "rgba": lambda folder: images(folder, 4),
    "resized": lambda folder: (images(folder)[0], {"image_size": 3}),
    "splits": splits,
    "arrays": arrays,
    "unconditional": lambda folder: (images(folder)[0], {"fields": ("none",)}),
}


def equal(a, b):
    np.testing.assert_array_equal(a.x, b.x)
    assert a.x.dtype == b.x.dtype
    assert set(a.value) == set(b.value)
    for name in a.value:
        np.testing.assert_array_equal(a.value[name], b.value[name])
        assert a.value[name].dtype == b.value[name].dtype


@pytest.mark.parametrize("name", SOURCES)
def test_an_imported_set_is_what_the_path_is(name, tmp_path):
    """Description, version, and every batch of a run: examples, values, their types and their order."""
    path, options = SOURCES[name](tmp_path)
    done = import_path(path, "mine_too", tmp_path / "data", **options)
    assert done.written
    for split, own in zip(("train", "test"), open_path(path, **options), strict=True):
        for limit in (0, 2**20):
            data = open_dataset("mine_too", split, data_dir=tmp_path / "data", memory_limit=limit)
            assert data.info == own.info._replace(name="mine_too")
            assert (data.size, data.in_memory) == (own.size, limit > 0)
            for a, b in zip(batches(data, 3, 0, epochs=1), batches(own, 3, 0, epochs=1), strict=True):
                equal(a, b)
        assert fingerprint(data, 3, 0) == {**fingerprint(own, 3, 0), "name": "mine_too", "version": data.version}
        assert own.version in data.version
        assert data.info == describe_dataset("mine_too", data_dir=tmp_path / "data")


def test_fields_keep_what_a_table_knows(tmp_path):
    import_path(table(tmp_path / "t.csv"), "mine", tmp_path, example=("a", "b"))
    info = open_dataset("mine", data_dir=tmp_path).info
    train = open_path(tmp_path / "t.csv", ("a", "b"))[0]
    rows = np.isin(NUMBERS[:, 0].astype(np.float32), train.read(np.arange(train.size)).x[:, 0])
    assert isinstance(info.examples, Vectors)
    assert (info.examples.names, info.fields["kind"]) == (("a", "b"), Label(("bee", "big ape")))
    angle, caption = info.fields["angle"], info.fields["caption"]
    assert isinstance(angle, Vector)
    assert isinstance(caption, Tokens)
    np.testing.assert_allclose(angle.mean, ANGLES.mean(), rtol=1e-6)
    np.testing.assert_allclose(info.examples.scale, NUMBERS.std(0), rtol=1e-6)
    assert {"hat", "cat", "the", "39"} <= set(caption.words)
    assert rows.sum() == train.size


def test_fields_can_be_chosen_from_an_imported_set(tmp_path):
    import_path(*vectors(tmp_path)[:1], "mine", tmp_path, example=("a", "b"))
    some = open_dataset("mine", fields=("angle",), data_dir=tmp_path)
    assert (list(some.info.fields), set(some.unused)) == (["angle"], {"kind", "caption"})
    none = open_dataset("mine", fields=("none",), data_dir=tmp_path)
    assert not none.info.fields
    with pytest.raises(DataError, match="got field 'angel', expected features of mine"):
        open_dataset("mine", fields=("angel",), data_dir=tmp_path)
    known = {"angle": Vector(1, (0.0,), (2.0,))}
    with pytest.raises(DataError, match="use the data that the spec was made for"):
        open_dataset("mine", fields=known, data_dir=tmp_path)
    with pytest.raises(DataError, match="image_size=8 for mine, which has no images"):
        open_dataset("mine", data_dir=tmp_path, image_size=8)


def test_imported_images_are_resized_as_others(tmp_path):
    import_path(images(tmp_path)[0], "mine", tmp_path)
    data = open_dataset("mine", data_dir=tmp_path, image_size=2)
    assert data.read(np.arange(3)).x.shape == (3, *data.info.shape) == (3, 2, 2, 3)
    with pytest.raises(DataError, match="image_size=0, expected a side"):
        open_dataset("mine", data_dir=tmp_path, image_size=0)


def test_images_are_decoded_a_few_at_a_time_and_once(tmp_path, monkeypatch):
    path, _ = images(tmp_path)
    monkeypatch.setattr(importing, "CHUNK", 4)
    read, real = [], importing.open_path

    def counted(*arguments, **options):
        def wrap(data):
            return data._replace(read=lambda rows: read.append(len(rows)) or data.read(rows))

        return tuple(map(wrap, real(*arguments, **options)))

    monkeypatch.setattr(importing, "open_path", counted)
    monkeypatch.setattr(importing, "SHARD", 10 * 6 * 4 * 3)  # ten examples a file
    done = import_path(path, "mine", tmp_path)
    assert (max(read), sum(read)) == (4, N)
    assert len(list(Path(done.builder.data_dir).glob("mine-train*"))) == 4
    assert open_dataset("mine", "train[10:30]", data_dir=tmp_path).size == 20


def test_a_set_is_reused_only_if_its_source_is_the_same(tmp_path):
    path = table(tmp_path / "t.csv")
    before = import_path(path, "mine", tmp_path, example=("a", "b"))
    again = import_path(path, "mine", tmp_path, example=("a", "b"))
    assert (before.written, again.written) == (True, False)
    version = open_dataset("mine", data_dir=tmp_path).version
    with pytest.raises(DataError, match="got mine, which was imported with another --example, --fields"):
        import_path(path, "mine", tmp_path, example=("a", "b"), fields=("kind",))
    numbers = NUMBERS[:, 0].copy()
    numbers[[3, 4]] = numbers[[4, 3]]  # the same mean and deviation
    table(path, a=numbers)
    with pytest.raises(DataError, match=r"imported from other data, or before .*t.csv changed \(version .* delete"):
        import_path(path, "mine", tmp_path, example=("a", "b"))
    shutil.rmtree(tmp_path / "mine" / "1.0.0")
    assert import_path(path, "mine", tmp_path, example=("a", "b")).written
    assert open_dataset("mine", data_dir=tmp_path).version != version


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_import_that_fails_leaves_nothing_and_is_started_again(error, tmp_path, monkeypatch):
    path, options = vectors(tmp_path)
    writer = importing.tfds.core.SequentialWriter

    def fail(self, examples):
        if "test" in examples:
            raise error

    with monkeypatch.context() as broken:
        broken.setattr(writer, "add_examples", fail)
        with pytest.raises(DataError if isinstance(error, OSError) else KeyboardInterrupt):
            import_path(path, "mine", tmp_path / "data", **options)
    assert not list((tmp_path / "data").iterdir())
    killed = tmp_path / "data" / "mine" / "incomplete.import_1.0.0"
    killed.mkdir(parents=True)
    (killed / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="unknown data set 'mine'"):
        open_dataset("mine", data_dir=tmp_path / "data")
    import_path(path, "mine", tmp_path / "data", **options)
    assert [p.name for p in (tmp_path / "data" / "mine").iterdir()] == ["1.0.0"]


def test_two_do_not_import_at_once(tmp_path):
    path, options = vectors(tmp_path)
    (tmp_path / "mine").mkdir()
    with (
        importing.alone_in(tmp_path / "mine"),
        pytest.raises(DataError, match="another process is writing mine"),
    ):
        import_path(path, "mine", tmp_path, **options)


def test_a_damaged_description_is_one_line(tmp_path):
    done = import_path(vectors(tmp_path)[0], "mine", tmp_path, example=("a", "b"))
    file = Path(done.builder.data_dir) / "metadata.json"
    content = json.loads(file.read_text())
    for key, value in (("example", "y"), ("version", 3), ("info", {"name": "mine"})):
        file.write_text(json.dumps({"flowguide": {**content["flowguide"], key: value}}))
        with pytest.raises(DataError, match="got damaged files in") as error:
            open_dataset("mine", data_dir=tmp_path)
        assert "\n" not in str(error.value)


def cut_image(folder):
    path, _ = images(folder)
    file = path / "bee" / "039.png"
    file.write_bytes(file.read_bytes()[:-30])
    return path


BROKEN = {
    "no path": (lambda folder: folder / "none.csv", "mine", (), "does not exist"),
    "a cut image": (cut_image, "mine", (), "039.png"),
    "nan": (lambda folder: table(folder / "t.csv", a=[*NUMBERS[:-1, 0], np.nan]), "mine", (), "nan in 'a', line 41"),
    "a column": (lambda folder: table(folder / "t.csv"), "mine", ("--fields=kinds",), "did you mean 'kind'"),
    "a capital": (lambda folder: table(folder / "t.csv"), "Mine", (), "expected lower-case letters"),
    "a place": (lambda folder: table(folder / "t.csv"), "../mine", (), "expected lower-case letters"),
    "a known name": (lambda folder: table(folder / "t.csv"), "mnist", (), "TFDS or flowguide knows"),
    "a name of ours": (lambda folder: table(folder / "t.csv"), "avatars", (), "TFDS or flowguide knows"),
    "no size": (lambda folder: table(folder / "t.csv"), "mine", ("--image_size=0",), "image_size"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_imported_is_one_line_and_writes_nothing(name, tmp_path, capsys):
    make, called, flags, message = BROKEN[name]
    path = make(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["data", "import", str(path), called, f"--data_dir={tmp_path / 'data'}", *flags])
    assert ended.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line and "example/s" not in line]
    assert message in line
    assert not list((tmp_path / "data").rglob("*"))


@pytest.mark.slow
def test_the_command_line_imports_and_trains(tmp_path, capsys):
    path = table(tmp_path / "t.csv")
    place = f"--data_dir={tmp_path / 'data'}"
    assert main(["data", "import", str(path), "mine", "--example=a,b", "--fields=kind,angle", place]) in (0, None)
    out = capsys.readouterr().out
    assert "mine is prepared in" in out
    assert f"flowguide train --data=mine --config.data.data_dir={tmp_path / 'data'} --workdir=runs/mine" in out
    assert main(["data", "describe", "mine", place]) in (0, None)
    assert "angle: vector, takes 1 finite numbers" in capsys.readouterr().out
    main(["data", "import", str(path), "rows", "--example=a,kind", "--fields=none", place])
    told = []
    for described in (["rows", place], [str(path), "--example=a,kind", "--fields=none"]):
        assert main(["data", "describe", *described]) in (0, None)
        told.append(" ".join(capsys.readouterr().out.split()))
        assert "of numbers, whole ones too: a; classes: kind (2: bee, big ape)" in told[-1]
    small = ["--config.steps=4", "--config.batch_size=16", "--config.network.width=8", f"--workdir={tmp_path / 'run'}"]
    assert main(["train", "--data=mine", f"--config.data.data_dir={tmp_path / 'data'}", *small]) in (0, None)
    assert "conditioned on kind: label" in capsys.readouterr().out
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert (stored["name"], stored["path"]) == ("mine", "")
    c = config.default()
    c.data.update({"path": str(path), "example": ("a", "b"), "fields": ("kind", "angle")})
    info = info_from_json(json.loads((tmp_path / "run" / "info.json").read_text()))
    assert info == build.splits(c).train.info._replace(name="mine")
