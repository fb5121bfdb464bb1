"""Opening: any TFDS set that is there, and one clear line, at once, for what is not."""

import io
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from flowguide.data import batches, open_dataset, prepare
from flowguide.errors import DataError
from flowguide.schema import Images, Label, Tokens, Vector, Vectors


@pytest.mark.thorough
def test_importing_and_reading_needs_no_tensorflow(data_dir):
    open_dataset("digits", data_dir=data_dir)
    code = f"""
import sys, flowguide.data as data
next(data.batches(data.open_dataset("digits", data_dir={str(data_dir)!r}), 8, 0))
assert "tensorflow" not in sys.modules and "sklearn" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.thorough
def test_both_roads_give_the_same_batches(data_dir):
    memory, disk = (open_dataset("avatars", "test", data_dir=data_dir, memory_limit=n) for n in (2**29, 0))
    assert (memory.in_memory, disk.in_memory) == (True, False)
    for _, a, b in zip(range(8), batches(memory, 300, 2), batches(disk, 300, 2), strict=False):
        np.testing.assert_array_equal(a.x, b.x)
        for name in memory.info.fields:
            np.testing.assert_array_equal(a.value[name], b.value[name])


def test_slices_and_fields(data_dir):
    part = open_dataset("avatars", "test[100:110]", ("skin", "hat"), data_dir)
    whole = open_dataset("avatars", "test", data_dir=data_dir)
    assert part.size == 10
    assert list(part.info.fields) == ["skin", "hat"]
    np.testing.assert_array_equal(part.read(np.arange(10)).value["hat"], whole.read(np.arange(100, 110)).value["hat"])
    assert open_dataset("avatars", "test", (), data_dir).read(np.arange(3)).value == {}
    same = open_dataset("avatars", "train[:20]", whole.info.fields, data_dir)  # as a trained model asks
    assert same.info == whole.info
    assert open_dataset("avatars", "test[:2]", data_dir=data_dir, image_size=8).read(np.arange(2)).x.shape == (
        2,
        8,
        8,
        3,
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "validation"}, "got split 'validation' of avatars, expected train, test, or a slice"),
        ({"split": "train[:"}, "expected train, test, or a slice"),
        ({"split": "train[:0]"}, "is empty"),
        ({"fields": ("hut",)}, "got field 'hut', expected features of avatars: image, caption, hair"),
        ({"fields": ("image",)}, "expected a class label, a text, or floats"),
        ({"fields": {"hat": Label(("none", "red"))}}, "but avatars has"),
    ],
)
def test_what_a_set_does_not_have(data_dir, settings, message):
    with pytest.raises(DataError, match=message.replace("(", r"\(")):
        open_dataset("avatars", data_dir=data_dir, **settings)


def test_points_take_no_image_size(data_dir):
    with pytest.raises(DataError, match="has no images"):
        open_dataset("mixture2d", data_dir=data_dir, image_size=8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashon_mnist", "did you mean fashion_mnist"),
        ("qqqq", "flowguide data list"),
        ("mnist:9.9.9", "expected name, name/config or name:version"),
        ("emnist/nope", "expected name, name/config or name:version"),
        ("mnist", "not prepared in .*: run `python -m flowguide data prepare mnist --data_dir="),
    ],
)
def test_what_is_not_there_is_said_at_once(tmp_path, name, message):
    start = time.monotonic()
    with pytest.raises(DataError, match=message) as caught:
        open_dataset(name, data_dir=tmp_path)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 20  # a download that is tried waits for longer


def test_a_stock_image_set(tmp_path, prepare_stock, image_file):
    """cifar10's own builder and features, with random pixels in place of its photographs."""
    files = [image_file((32, 32, 3), seed) for seed in range(20)]
    prepare_stock("cifar10", tmp_path, [{"image": f, "label": i % 10, "id": f"{i}"} for i, (f, _) in enumerate(files)])
    dataset = open_dataset("cifar10", data_dir=tmp_path)
    assert dataset.info.examples == Images((32, 32, 3))
    assert len(dataset.info.fields["label"].to_json()["values"]) == 10
    batch = dataset.read(np.arange(20))
    expected = {(pixels.tobytes(), i % 10) for i, (_, pixels) in enumerate(files)}  # TFDS has mixed the order
    assert {(x.tobytes(), int(k)) for x, k in zip(batch.x, batch.value["label"], strict=True)} == expected
    with pytest.raises(DataError, match="states no vocabulary"):
        open_dataset("cifar10", fields=("id",), data_dir=tmp_path)
    words = Tokens(1, ("", *map(str, range(20))))
    ids = open_dataset("cifar10", fields={"id": words}, data_dir=tmp_path).read(np.arange(20)).value["id"]
    assert sorted(ids[:, 0]) == list(range(1, 21))


def test_ragged_images_of_every_mode(tmp_path, prepare_stock, image_file):
    """imagenet2012's own builder: JPEGs of differing sizes, some grey, some CMYK, and a split without labels."""
    kinds = [((40, 30, 3), "RGB"), ((20, 50), "L"), ((33, 33, 3), "CMYK")]
    files = [image_file(shape, form="JPEG", mode=mode)[0] for shape, mode in kinds]
    prepare_stock(
        "imagenet2012", tmp_path, [{"image": f, "label": 5, "file_name": f"{i}"} for i, f in enumerate(files)]
    )
    with pytest.raises(DataError, match=r"differing sizes .* set image_size"):
        open_dataset("imagenet2012", data_dir=tmp_path)
    for limit in (0, 2**20):
        dataset = open_dataset("imagenet2012", data_dir=tmp_path, image_size=16, memory_limit=limit)
        assert dataset.info.shape == (16, 16, 3)
        assert len(dataset.info.fields["label"].to_json()["values"]) == 1000
        assert dataset.read(np.arange(3)).x.shape == (3, 16, 16, 3)
    shutil.rmtree(tmp_path / "imagenet2012")
    prepare_stock("imagenet2012", tmp_path, [{"image": image_file((9, 9, 3))[0], "label": -1, "file_name": "0"}])
    with pytest.raises(DataError, match="expected a label for each"):
        open_dataset("imagenet2012", data_dir=tmp_path, image_size=16)


def test_images_of_another_size_or_cut_short_are_named(tmp_path, prepare_stock, image_file):
    whole, _ = image_file((32, 32, 3))
    cut = io.BytesIO(whole.getvalue()[:1000])
    for bad, reason in ((image_file((31, 32, 3))[0], "32 x 31 pixels; expected 32 x 32"), (cut, "cannot be read")):
        prepare_stock("cifar10", tmp_path, [{"image": bad, "label": 1, "id": "0"}])
        for limit in (0, 2**20):
            with pytest.raises(DataError, match=rf"example 0 in .*cifar10.*{reason}"):
                open_dataset("cifar10", data_dir=tmp_path, memory_limit=limit).read(np.arange(1))
        shutil.rmtree(tmp_path / "cifar10")


class Poses(tfds.core.GeneratorBasedBuilder):
    """A set of the user's own, with continuous conditions."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "x": tfds.features.Tensor(shape=(3,), dtype=np.float32),
            "angle": tfds.features.Scalar(dtype=np.float32),
            "pose": tfds.features.Tensor(shape=(4,), dtype=np.float64),
            "count": tfds.features.Scalar(dtype=np.int32),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(6):
            yield i, {"x": np.full(3, i, np.float32), "angle": i / 2, "pose": np.arange(4.0) + i, "count": i}


def test_a_users_own_set_with_continuous_fields(tmp_path):
    prepare("poses", tmp_path)
    dataset = open_dataset("poses", fields=("angle", "pose"), data_dir=tmp_path)
    assert dataset.info.examples == Vectors((3,))
    assert dataset.info.fields == {"angle": Vector(1), "pose": Vector(4)}
    x, value, _ = dataset.read(np.array([5, 0]))
    assert x.tolist() == [[5, 5, 5], [0, 0, 0]]
    assert (value["angle"].dtype, value["angle"].tolist()) == (np.float32, [[2.5], [0.0]])
    assert (value["pose"].dtype, value["pose"].tolist()) == (np.float32, [[5, 6, 7, 8], [0, 1, 2, 3]])
    assert open_dataset("poses", data_dir=tmp_path).info.fields == {}  # no class labels
    with pytest.raises(DataError, match="expected a class label"):
        open_dataset("poses", fields=("count",), data_dir=tmp_path)
