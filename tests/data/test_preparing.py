"""Preparing: once, whole or not at all, without TensorFlow. If it cannot be done, one line says why."""

import functools
import gzip
import http.server
import importlib.util
import shutil
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from absl import flags

from flowguide.cli import command
from flowguide.cli import data as cli_data
from flowguide.data import idx, open_dataset, prepare, preparing
from flowguide.errors import DataError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of its package dataset-fashion-mnist


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """A command sets what belongs to its process."""
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


def data(*arguments):
    """Runs the command ``flowguide data`` in this process; ends as it does."""
    assert command.run(cli_data.COMMAND, "flowguide data", arguments) == 0


def idx_bytes(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def small(tmp_path):
    """Four IDX files of random pixels, plain; and their arrays."""
    random, arrays = np.random.default_rng(0), {}
    for (images, labels), size in zip(idx.FILES.values(), (30, 20), strict=True):
        arrays[images] = random.integers(0, 256, (size, 28, 28), np.uint8)
        arrays[labels] = random.integers(0, 10, size, np.uint8)
    folder = tmp_path / "files"
    folder.mkdir()
    for stem, array in arrays.items():
        (folder / stem).write_bytes(idx_bytes(array))
    return folder, arrays


def check(data_dir, name, arrays):
    for split, (images, labels) in idx.FILES.items():
        dataset = open_dataset(name, split, data_dir=data_dir)
        assert dataset.info.shape == (28, 28, 1)
        x, value, _ = dataset.read(np.arange(dataset.size))
        found = {(image.tobytes(), int(label)) for image, label in zip(x, value["label"], strict=True)}
        assert found == {(i.tobytes(), int(k)) for i, k in zip(arrays[images], arrays[labels], strict=True)}


@pytest.mark.parametrize("form", ["plain", "gzip", "dotted"])
def test_the_mnist_family_from_files_of_the_user(small, tmp_path, form):
    folder, arrays = small
    if form != "plain":
        for path in list(folder.iterdir()):
            (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=7))
            path.unlink()
    if form == "dotted":
        for path in list(folder.iterdir()):
            path.rename(folder / path.name.replace("-idx", ".idx"))
    data("prepare", "kmnist", "--files", str(folder), "--data_dir", str(tmp_path))
    check(tmp_path, "kmnist", arrays)
    assert open_dataset("kmnist", data_dir=tmp_path).info.fields["label"].to_json()["values"][:2] == ("o", "ki")


def test_the_mnist_family_by_download(small, tmp_path, monkeypatch):
    folder, arrays = small
    for path in list(folder.iterdir()):
        (folder / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("localhost", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://localhost:{server.server_port}/"
        monkeypatch.setattr(type(tfds.builder("mnist", data_dir=tmp_path)), "URL", url)
        monkeypatch.setattr(preparing, "_check_downloads", lambda builder, manual_dir: None)
        assert preparing._why_unreachable(url) is None
        assert "404" in str(preparing._why_unreachable(url + "nothing"))
        prepare("mnist", tmp_path)
        server.shutdown()
    check(tmp_path, "mnist", arrays)


def test_files_that_will_not_do(small, tmp_path):
    folder, _ = small
    with pytest.raises(DataError, match="expected fashion_mnist's file"):
        prepare("fashion_mnist", tmp_path, folder)
    (folder / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(29, np.uint8)))
    with pytest.raises(DataError, match=r"labels \(29,\).* belong together"):
        prepare("mnist", tmp_path, folder)
    images = folder / "train-images-idx3-ubyte"
    for content in (images.read_bytes()[:-1], b"", b"<html>not found</html>", gzip.compress(images.read_bytes())[:-9]):
        images.write_bytes(content)
        with pytest.raises(DataError, match="got the damaged file"):
            prepare("mnist", tmp_path, folder)
    images.unlink()
    with pytest.raises(DataError, match=r"got no train-images-idx3-ubyte.gz or train-images-idx3-ubyte in"):
        prepare("mnist", tmp_path, folder)
    with pytest.raises(DataError, match="expected a folder"):
        prepare("mnist", tmp_path, folder / "nowhere")


def bomb(start, size):
    """A .gz of ``start`` and then ``size`` zeros, a thousandth as long."""
    pack = zlib.compressobj(wbits=31)
    return pack.compress(start) + b"".join(pack.compress(bytes(2**20)) for _ in range(size >> 20)) + pack.flush()


@pytest.mark.thorough
def test_no_more_of_a_packed_file_is_unpacked_than_it_states(tmp_path):
    ten = struct.pack(">BBBBI", 0, 0, 8, 1, 10)
    huge = struct.pack(">BBBBIII", 0, 0, 8, 3, 3_000_000, 28, 28)
    for start, reason in ((ten, "more than the 10 bytes"), (huge, "2,352,000,000 bytes, more than any file")):
        path = tmp_path / "train-labels-idx1-ubyte.gz"
        path.write_bytes(bomb(start, 2**28))
        tracemalloc.start()
        with pytest.raises(DataError, match=f"got the damaged file .*{reason}"):
            idx.read(path, "mnist")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**24
    path.write_bytes(bomb(ten + bytes(10), 0)[:-8] + bytes(8))  # another checksum
    with pytest.raises(DataError, match="got the damaged file"):
        idx.read(path, "mnist")
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="got the damaged file"):
        idx.read(path, "mnist")


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist_is_recognised():
    images, labels = (idx.read(idx.find(DEBIAN, stem), "fashion_mnist") for stem in idx.FILES["test"])
    assert images.shape == (10_000, 28, 28)
    assert np.bincount(labels).tolist() == [1000] * 10
    with pytest.raises(DataError, match="of fashion_mnist, expected mnist's file"):
        idx.read(idx.find(DEBIAN, idx.FILES["test"][1]), "mnist")


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_the_real_fashion_mnist_is_prepared(tmp_path):
    prepare("fashion_mnist", tmp_path, DEBIAN)
    arrays = {stem: idx.read(idx.find(DEBIAN, stem), "fashion_mnist") for pair in idx.FILES.values() for stem in pair}
    check(tmp_path, "fashion_mnist", arrays)


def test_offline_is_said_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preparing, "_PATIENCE", 0.5)
    monkeypatch.setattr(preparing.urllib.request, "urlopen", lambda url, timeout: time.sleep(30))
    start = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        data("prepare", "mnist", "--data_dir", str(tmp_path))
    assert ended.value.code == 2
    assert time.monotonic() - start < 20
    line = capsys.readouterr().err.strip()
    assert line.startswith(
        "flowguide data: error: mnist cannot be downloaded, storage.googleapis.com does not answer (timed out)"
    )
    assert "--manual_dir=DIR with t10k-images-idx3-ubyte.gz" in line
    assert "\n" not in line


def test_what_the_user_must_fetch(tmp_path):
    with pytest.raises(DataError, match=r"downloaded by hand: pass --manual_dir=DIR .*ILSVRC2012_img_train.tar"):
        prepare("imagenet2012", tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is there")
def test_what_needs_tensorflow(tmp_path, monkeypatch):
    monkeypatch.setattr(preparing, "_why_unreachable", lambda url: None)
    with pytest.raises(DataError, match=r'needs TensorFlow \(reading does not\): pip install "flowguide\[data\]"'):
        prepare("cifar10", tmp_path)


@pytest.mark.slow
def test_two_processes_at_once(tmp_path):
    code = f"from flowguide.data import open_dataset; print(open_dataset('digits', data_dir={str(tmp_path)!r}).size)"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0].strip() for process in both] == ["1500", "1500"]
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_the_slower_of_two_processes_takes_what_is_there(tmp_path, monkeypatch):
    """The other one finishes between our look at the folder and our renaming."""
    real = tfds.builder("digits", data_dir=tmp_path)
    generate = getattr(type(real), "_generate_examples")  # noqa: B009

    def late(self, start, stop):
        monkeypatch.undo()
        prepare("digits", tmp_path)
        yield from generate(self, start, stop)

    monkeypatch.setattr(type(real), "_generate_examples", late)
    assert prepare("digits", tmp_path).info.splits["train"].num_examples == 1500
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_a_preparation_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def broken(self, start, stop):
        raise OSError("disk full")
        yield

    monkeypatch.setattr(type(tfds.builder("digits", data_dir=tmp_path)), "_generate_examples", broken)
    with pytest.raises(DataError, match=r"preparing digits in .* failed .*disk full"):
        prepare("digits", tmp_path)
    assert not list((tmp_path / "digits").iterdir())
    monkeypatch.undo()
    assert open_dataset("digits", data_dir=tmp_path).size == 1500


def test_half_written_and_damaged_folders(tmp_path):
    (tmp_path / "digits" / "incomplete.ABCDEF_1.0.0").mkdir(parents=True)  # of a killed process: in nobody's way
    folder = Path(prepare("digits", tmp_path).data_dir)
    (shard,) = folder.glob("digits-train*")
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"got damaged files in .* delete that folder"):
        open_dataset("digits", data_dir=tmp_path)
    shard.unlink()
    with pytest.raises(DataError, match=r"got damaged files in .* delete that folder"):
        open_dataset("digits", data_dir=tmp_path)
    (folder / "dataset_info.json").unlink()
    with pytest.raises(DataError, match=r"got the incomplete folder .* delete it"):
        open_dataset("digits", data_dir=tmp_path)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "file", "old", "new"),
    [
        ("digits", "dataset_info.json", "{SPLIT}", "{SPLIU}"),
        ("digits", "dataset_info.json", "{SPLIT}", "{SPLIT"),
        ("digits", "dataset_info.json", '"splits"', '"splitt"'),
        ("digits", "dataset_info.json", '"array_record"', '"array_rec'),
        ("avatars", "metadata.json", '"length"', '"lengti"'),
        ("avatars", "metadata.json", '"length": ', '"length": -'),
        ("avatars", "metadata.json", '"words": [', '"words": [3, '),
        ("avatars", "metadata.json", "}", "]"),
    ],
)
def test_damaged_descriptions_are_refused_in_one_line(name, file, old, new, tmp_path, data_dir):
    fields = ("caption",) if name == "avatars" else None
    shutil.copytree(open_dataset(name, data_dir=data_dir) and data_dir / name, tmp_path / name)
    (path,) = (tmp_path / name).glob(f"*/{file}")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DataError, match="damaged") as error:
        open_dataset(name, "train[:9]", fields, tmp_path).read(np.arange(9))
    assert "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"preparing digits in .* failed .*choose another data_dir"):
        open_dataset("digits", data_dir=tmp_path / "file")


def test_another_format_is_named(tmp_path):
    folder = Path(prepare("digits", tmp_path).data_dir)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="as tfrecord, expected array_record"):
        open_dataset("digits", data_dir=tmp_path)


def test_the_list(tmp_path, capsys):
    prepare("digits", tmp_path)
    data("list", "--data_dir", str(tmp_path))
    own, prepared, known = capsys.readouterr().out.split(":\n")[1:]
    assert "avatars, digits, mixture2d" in own
    assert prepared.split("\n")[0].strip() == "digits"
    assert "imagenet2012" in known


def test_a_set_is_described_without_being_prepared(tmp_path, capsys):
    data("describe", "avatars", f"--data_dir={tmp_path}")
    first, *fields = capsys.readouterr().out.splitlines()
    assert first == "avatars: image (16, 16, 3)"
    assert "hair: label, takes a name or a number from 0 to 1" in fields
    assert not list(tmp_path.iterdir())


def test_each_action_has_its_flags_and_each_flag_an_action():
    values = flags.FlagValues()
    cli_data.define(values)
    assert list(cli_data.FLAGS) == list(cli_data.ACTIONS)
    used = set().union(*cli_data.FLAGS.values())
    assert used | {"data_dir", "manual_dir"} == set(values)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), f"expected an action, {', '.join(cli_data.ACTIONS)}; got ''"),
        (
            ("prepair", "mnist"),
            f"expected an action, {', '.join(cli_data.ACTIONS)}; got 'prepair', did you mean 'prepare'?",
        ),
        (("prepare",), "expected prepare and one name; got 'prepare'"),
        (("describe", "digits", "avatars"), "expected describe and one name; got 'describe digits avatars'"),
        (("list", "digits"), "expected list; got 'list digits'"),
        (("import", "wine.csv"), "expected import and one path and one name; got 'import wine.csv'"),
        (("prepare", "my_wine"), "got the unknown data set 'my_wine', expected a name that TFDS knows"),
        (("describe", "avatars", "--example=x"), "--example is about files and folders; got the set avatars"),
        (("describe", "avatrs"), "got the unknown data set 'avatrs'"),
        (("import", "a", "b", "--vae=x"), "--vae is for encode; got import: leave it out"),
        (("import", "a", "b", "--field=x"), "--field is for embed; got import: leave it out"),
        (("import", "a", "b", "--manual_dir=x"), "--files is for prepare; got import: leave it out"),
        (("prepare", "digits", "--out=x"), "--out is for embed, encode; got prepare: leave it out"),
        (("prepare", "digits", "--image_size=8"), "--image_size is for import, embed, encode, describe; got prepare"),
        (("embed", "a", "--vae=x"), "--vae is for encode; got embed: leave it out"),
        (("embed", "a", "--scale=2"), "--scale is for encode; got embed: leave it out"),
        (("embed", "a", "--latent_dtype=float32"), "--latent_dtype is for encode; got embed: leave it out"),
        (("encode", "a", "--length=2"), "--length is for embed; got encode: leave it out"),
        (("describe", "digits", "--noflips"), "--flips is for encode; got describe: leave it out"),
        (("describe", "digits", "--test_split=train"), "--test_split is for encode; got describe: leave it out"),
        (("list", "--batch_size=4"), "--batch_size is for embed, encode; got list: leave it out"),
        (("list", "--datadir=x"), "unknown flag --datadir, did you mean 'data_dir'?"),
    ],
)
def test_mistakes_in_the_command_are_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        data(*words)
    assert ended.value.code == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"flowguide data: error: {message}")
    assert "\n" not in line
