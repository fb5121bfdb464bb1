"""Files and folders as data: each format read back, and what is broken named in one line."""

import importlib
import io

import numpy as np
import pytest
from PIL import Image

from flowguide.data import is_path, open_path, tables_of
from flowguide.errors import DataError
from flowguide.schema import Aligned, Images, Label, Records, Vector, Vectors

N = 20
RNG = np.random.default_rng(0)
NUMBERS = RNG.normal(size=(N, 2)).round(3)
KINDS = ["ape", "bee"] * (N // 2)
PIXELS = RNG.integers(0, 256, (N, 6, 4, 3), dtype=np.uint8)


def write_csv(path, separator=",", rows=N, kinds=KINDS):
    lines = [f"{a}{separator}{b}{separator}{kind}" for (a, b), kind in zip(NUMBERS, kinds, strict=True)][:rows]
    path.write_text("\n".join([separator.join(["a", "b", "kind"]), *lines]) + "\n")


def write_parquet(path):
    pa, pq = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    pq.write_table(pa.table({"a": NUMBERS[:, 0], "b": NUMBERS[:, 1], "kind": KINDS}), path)


def write_image(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze()).save(path, **options)


def write_classes(folder, count=N):
    for i in range(count):
        write_image(folder / KINDS[i] / f"{i:03}.png", PIXELS[i])


TABLES = {
    "t.csv": write_csv,
    "semicolons.csv": lambda path: write_csv(path, ";"),
    "t.tsv": lambda path: write_csv(path, "\t"),
    "t.parquet": write_parquet,
    "t.npz": lambda path: np.savez(path, a=NUMBERS[:, 0], b=NUMBERS[:, 1], kind=KINDS, names=["of", "classes"]),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_back(name, tmp_path):
    TABLES[name](tmp_path / name)
    assert is_path(str(tmp_path / name))
    (table,) = tables_of(tmp_path / name).values()
    assert set(table.columns) == {"a", "b", "kind"}
    np.testing.assert_array_equal(np.stack([table.columns["a"], table.columns["b"]], 1), NUMBERS)
    assert table.columns["kind"].tolist() == KINDS
    train, test = open_path(tmp_path / name)
    assert (train.size, test.size) == (18, 2)
    assert train.info.fields == {"kind": Label(("ape", "bee"))}
    assert isinstance(train.info.examples, Vectors)
    assert train.info.examples.names == ("a", "b")


def test_classes_are_a_part_of_the_examples_in_every_format(tmp_path):
    structured = np.empty(N, [("a", "f8"), ("b", "f8"), ("kind", "U3")])
    structured["a"], structured["b"], structured["kind"] = NUMBERS[:, 0], NUMBERS[:, 1], KINDS
    rows = []
    for name, write in {**TABLES, "t.npy": lambda path: np.save(path, structured)}.items():
        write(tmp_path / name)
        train, test = open_path(tmp_path / name, ("kind", "b"), ("a",))
        assert isinstance(train.info.examples, Records)
        assert (train.info.examples.names, train.info.examples.classes) == (("kind", "b"), (("ape", "bee"), ()))
        rows.append(np.concatenate([data.read(np.arange(data.size)).x for data in (train, test)]))
        np.testing.assert_array_equal(rows[-1], rows[0])
    expected = np.stack([np.arange(N) % 2, NUMBERS[:, 1]], axis=1).astype(np.float32)
    np.testing.assert_array_equal(rows[0][rows[0][:, 1].argsort()], expected[expected[:, 1].argsort()])


def test_an_array_is_mapped_from_disk(tmp_path):
    np.save(tmp_path / "x.npy", NUMBERS.astype(np.float32))
    (table,) = tables_of(tmp_path / "x.npy").values()
    assert isinstance(table.columns["x"], np.memmap)
    train, _ = open_path(tmp_path / "x.npy")
    assert train.info.shape == (2,)
    assert not train.info.fields


def test_splits_are_files_or_folders(tmp_path):
    (tmp_path / "csv").mkdir()
    write_csv(tmp_path / "csv" / "train.csv")
    write_csv(tmp_path / "csv" / "test.csv", rows=5)
    assert [d.size for d in open_path(tmp_path / "csv")] == [20, 5]
    write_classes(tmp_path / "images" / "train")
    write_classes(tmp_path / "images" / "val", 6)
    assert [d.size for d in open_path(tmp_path / "images")] == [20, 6]
    write_classes(tmp_path / "only" / "train")
    assert [d.size for d in open_path(tmp_path / "only")] == [18, 2]


def test_a_folder_of_classes(tmp_path):
    write_classes(tmp_path / "animals")
    (table,) = tables_of(tmp_path / "animals").values()
    order = [i for kind in ("ape", "bee") for i in range(N) if KINDS[i] == kind]
    np.testing.assert_array_equal(table.columns["image"][np.arange(N)], PIXELS[order])
    train, _ = open_path(tmp_path / "animals")
    assert (train.info.name, train.info.shape) == ("animals", (6, 4, 3))
    before = table.version
    write_image(tmp_path / "animals" / "ape" / "000.png", PIXELS[1])
    assert tables_of(tmp_path / "animals")[""].version != before


def test_fields_can_be_left_out(tmp_path):
    write_classes(tmp_path / "animals")
    assert not open_path(tmp_path / "animals", fields=("none",))[0].info.fields
    write_csv(tmp_path / "t.csv")
    assert open_path(tmp_path / "t.csv", fields=("none",))[0].info.examples.shape == (2,)


def test_metadata_names_files_and_fields(tmp_path):
    for i in range(N):
        write_image(tmp_path / "images" / f"{i}.png", PIXELS[i])
    lines = [f"images/{i}.png,{i / 7},{KINDS[i]}" for i in reversed(range(N))]
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,angle,kind", *lines]))
    train, _ = open_path(tmp_path)
    assert {name: type(field) for name, field in train.info.fields.items()} == {"angle": Vector, "kind": Label}
    batch = train.read(np.arange(3))
    for x, angle in zip(batch.x, batch.value["angle"], strict=True):
        np.testing.assert_array_equal(x, PIXELS[round(float(angle[0]) * 7)])


def test_modes_and_sizes_are_made_equal(tmp_path):
    write_image(tmp_path / "a" / "grey.png", PIXELS[0, :, :, 0])
    write_image(tmp_path / "b" / "colour.jpg", RNG.integers(0, 256, (12, 8, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"colour.jpg of 8 x 12 pixels .* image_size"):
        tables_of(tmp_path)
    (table,) = tables_of(tmp_path, image_size=4).values()
    x = table.columns["image"][np.arange(2)]
    assert x.shape == table.columns["image"].shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(x[0, ..., 0], x[0, ..., 2])


def test_a_hugging_face_set_without_its_library(tmp_path, monkeypatch):
    def missing(name):
        raise ImportError(name)

    (tmp_path / "state.json").write_text("{}")
    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(DataError, match=r"flowguide\[hf\]"):
        tables_of(tmp_path)


def text(name, content, encoding="utf-8"):
    return lambda folder: (folder / name).write_bytes(content.encode(encoding)) and folder / name


def content(name, data):
    return lambda folder: (folder / name).write_bytes(data) and folder / name


def saved(save, *arguments, cut=None, **arrays):
    file = io.BytesIO()
    save(file, *arguments, **arrays)
    return file.getvalue()[:cut]


def images(*broken):
    def make(folder):
        write_classes(folder / "d")
        for name, data in broken:
            (folder / "d" / name).parent.mkdir(exist_ok=True)
            (folder / "d" / name).write_bytes(data)
        return folder / "d"

    return make


def made(folder, act, path=""):
    act(folder)
    return folder / path


PNG = saved(lambda file: Image.fromarray(PIXELS[0]).save(file, "PNG"))
HEAD = "a,b,kind\n"
ROWS = "".join(f"{a},{b},{kind}\n" for (a, b), kind in zip(NUMBERS, KINDS, strict=True))
BROKEN = {
    "nothing there": (lambda folder: folder / "none.csv", "does not exist"),
    "an empty folder": (lambda folder: folder, "without images"),
    "another format": (text("t.xlsx", "x"), "expected a file of"),
    "an empty csv": (text("t.csv", "\n"), "without rows"),
    "names alone": (text("t.csv", HEAD), "without rows"),
    "names twice": (text("t.csv", "a,a\n1,2\n"), "expected different ones in line 1"),
    "a name missing": (text("t.csv", "a,\n1,2\n"), "got no name for column 2 in line 1"),
    "a short row": (text("t.csv", HEAD + ROWS + "1,2\n"), "got 2 values in line 22"),
    "a long row": (text("t.csv", HEAD + "1,2,x,4\n" + ROWS), "got 4 values in line 2"),
    "a text among numbers": (text("t.csv", HEAD + ROWS + "1,many,ape\n"), "got 'many' in 'b', line 22"),
    "no value": (text("t.csv", HEAD + ROWS + ",2,ape\n"), "got '' in 'a', line 22"),
    "no text": (text("t.csv", HEAD + ROWS + "1,2,\n"), "no value of 'kind' in line 22"),
    "nan": (text("t.csv", HEAD + ROWS + "nan,2,ape\n"), "got nan in 'a', line 22"),
    "one value": (text("t.csv", "a,b\n1.5,1.5\n2.5,1.5\n"), "'b' with the same value"),
    "no utf-8": (text("t.csv", HEAD + "1,2,caf\u00e9\n" + ROWS, "latin-1"), "cannot be read"),
    "a binary csv": (content("t.csv", bytes(range(256))), "cannot be read"),
    "no parquet": (content("t.parquet", b"PAR1" + bytes(50)), "cannot be read"),
    "a cut npz": (content("t.npz", saved(np.savez, x=NUMBERS, cut=300)), "cannot be read"),
    "no npz": (content("t.npz", b"abc"), "cannot be read"),
    "an npz of nothing": (content("t.npz", saved(np.savez)), "no columns"),
    "a pickle": (content("t.npz", saved(np.savez, x=np.array([{}] * N))), "cannot be read"),
    "a pickled npy": (content("t.npy", saved(np.save, np.array([{}] * N))), "cannot be read"),
    "a cut npy": (content("t.npy", saved(np.save, NUMBERS, cut=200)), "cannot be read"),
    "an npy of texts": (content("t.npy", saved(np.save, np.array(KINDS))), "expected numbers"),
    "an npy of one number": (content("t.npy", saved(np.save, np.float64(3))), "expected numbers"),
    "a cut image": (images(("ape/x.png", PNG[:60])), "x.png"),
    "a text called png": (images(("ape/x.png", b"hello")), "x.png, an image that cannot be read"),
    "an empty image": (images(("ape/x.png", b"")), "x.png, an image that cannot be read"),
    "another size": (
        images(("bee/x.png", saved(lambda f: Image.fromarray(PIXELS[0, :3]).save(f, "PNG")))),
        "x.png of 4 x 3 pixels",
    ),
    "an image beside classes": (images(("x.png", PNG)), "beside folders of classes"),
    "no file_name": (images(("metadata.csv", b"name,kind\nx.png,ape\n")), "expected a column file_name"),
    "a file that is gone": (images(("metadata.csv", b"file_name,kind\ngone.png,ape\n")), "'gone.png' in line 2"),
    "a folder called csv": (lambda folder: made(folder, lambda f: (f / "t.csv").mkdir(), "t.csv"), "without images"),
    "one row": (text("t.csv", "a,b\n1.5,2.5\n"), "got a single row in t"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named_in_one_line(name, tmp_path):
    make, message = BROKEN[name]
    path = make(tmp_path)

    def read_it():
        for data in open_path(path):
            data.read(np.arange(data.size))

    with pytest.raises(DataError) as error:
        read_it()
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600


def test_metadata_may_list_images_beside_the_images(tmp_path):
    rng = np.random.default_rng(0)
    pixels, masks = rng.integers(0, 256, (12, 6, 4, 3), np.uint8), rng.integers(0, 256, (12, 3, 2), np.uint8)
    for i in range(12):
        Image.fromarray(pixels[i]).save(tmp_path / f"{i}.png")
        Image.fromarray(masks[i]).save(tmp_path / f"mask{i}.png")
    rows = [f"{i}.png,mask{i}.png,{'ab'[i % 2]}" for i in range(12)]
    listing = tmp_path / "metadata.csv"
    listing.write_text("\n".join(["file_name,mask_file_name,kind", *rows]))
    train, test = open_path(tmp_path)
    assert train.info.fields == {"mask": Aligned(Images((3, 2, 1))), "kind": Label(("a", "b"))}
    for data in (train, test):
        batch = data.read(np.arange(data.size))
        for x, mask in zip(batch.x, batch.value["mask"], strict=True):
            (i,) = np.flatnonzero((pixels == x).all((1, 2, 3)))
            np.testing.assert_array_equal(mask[..., 0], masks[i])
    Image.fromarray(masks[0] ^ 1).save(tmp_path / "mask3.png")
    assert open_path(tmp_path)[0].version != train.version
    (tmp_path / "mask3.png").unlink()
    with pytest.raises(DataError, match=r"'mask3\.png' in line 5"):
        open_path(tmp_path)
