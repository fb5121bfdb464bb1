"""What our own builders write is what their sources hold."""

import json

import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from flowguide.data import open_dataset
from flowguide.data.builders import avatars, digits, mixture2d
from flowguide.schema import Label, Tokens, Vectors, encode


@pytest.mark.parametrize(("split", "first", "size"), [("train", 0, 9000), ("test", 9000, 1000)])
def test_avatars_are_the_shipped_file(data_dir, split, first, size):
    images, attributes, names = avatars.load()
    dataset = open_dataset("avatars", split, data_dir=data_dir, memory_limit=0)
    assert (dataset.size, dataset.info.shape) == (size, (16, 16, 3))
    numbers = np.linspace(0, size - 1, 500).astype(int)
    batch = dataset.read(numbers)
    assert batch.x.dtype == np.uint8
    np.testing.assert_array_equal(batch.x, images[first + numbers])
    assert list(dataset.info.fields) == list(names)
    for name, field in dataset.info.fields.items():
        assert isinstance(field, Label)
        assert list(field.values) == names[name]
        assert batch.value[name].dtype == np.int32
        np.testing.assert_array_equal(batch.value[name], attributes[name][first + numbers])


def test_the_caption_says_what_is_worn_and_leaves_out_what_is_not():
    bare = {"hair": "short", "hair_color": "light brown", "hat": "none", "glasses": "none", "beard": "no"}
    bare |= {"mouth": "sad", "clothing": "sky blue", "skin": "7"}
    assert avatars.caption(bare) == "short light brown hair, sad, sky blue clothing, skin 7"
    worn = bare | {"hair": "long", "hair_color": "red", "hat": "blue", "glasses": "dark", "beard": "yes"}
    worn |= {"mouth": "happy", "clothing": "green", "skin": "3"}
    assert avatars.caption(worn) == "long red hair, blue hat, dark glasses, beard, happy, green clothing, skin 3"


def test_caption_tokens_tell_the_attributes(data_dir):
    _, attributes, names = avatars.load()
    dataset = open_dataset("avatars", "test", ("caption",), data_dir=data_dir)
    field = dataset.info.fields["caption"]
    assert isinstance(field, Tokens)
    ids = dataset.read(np.arange(200)).value["caption"]
    assert ids.dtype == np.int32
    assert ids.shape == (200, field.length)
    assert field.words[0] == ""
    assert field.length == 15  # "long light brown hair, black hat, dark glasses, beard, sad, sky blue clothing, skin 0"
    for i, row in enumerate(ids):
        face = {name: names[name][column[9000 + i]] for name, column in attributes.items()}
        said = avatars.partial(avatars.caption(face), 9000 + i)
        assert " ".join(field.words[j] for j in row if j) == said.replace(",", "")
        np.testing.assert_array_equal(row, encode(said, field))


def test_a_caption_says_any_part_in_any_order():
    whole = "long red hair, blue hat, dark glasses, happy"
    parts = [avatars.partial(whole, seed).split(", ") for seed in range(400)]
    assert avatars.partial(whole, 7) == avatars.partial(whole, 7)
    assert all(set(part) <= set(whole.split(", ")) and len(set(part)) == len(part) for part in parts)
    lengths = np.bincount([len(part) for part in parts], minlength=5)[1:]
    assert lengths.min() > 60  # of 400, a quarter each
    firsts = [part[0] for part in parts if len(part) == 4]
    assert set(firsts) == set(whole.split(", "))


def test_every_caption_that_can_be_made_has_tokens(data_dir):
    _, _, names = avatars.load()
    field = open_dataset("avatars", "test[:1]", "caption", data_dir=data_dir).info.fields["caption"]
    assert isinstance(field, Tokens)
    worn = {name: values[-1] for name, values in names.items()}
    for name, values in names.items():
        for value in values:
            encode(avatars.caption(worn | {name: value}), field)


def test_digits_are_those_of_scikit_learn(data_dir):
    train, test = (open_dataset("digits", split, data_dir=data_dir) for split in ("train", "test"))
    assert (train.size, test.size) == (1500, 297)
    assert train.info.fields["label"] == Label(tuple("0123456789"))
    parts = [dataset.read(np.arange(dataset.size)) for dataset in (train, test)]
    x = np.concatenate([part.x for part in parts])
    label = np.concatenate([part.value["label"] for part in parts])
    np.testing.assert_array_equal((x, label)[0], digits.load()[0])
    images, labels = load_digits(return_X_y=True)
    ink = np.round(x.astype(float) * 16 / 255).reshape(-1, 64)
    assert x.max() == 255
    ours, theirs = (np.concatenate([a, b[:, None]], 1) for a, b in ((ink, label), (images, labels)))
    np.testing.assert_array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])
    assert np.bincount(parts[1].value["label"]).min() >= 20  # every class is tested


def test_mixture_follows_its_law(data_dir):
    dataset = open_dataset("mixture2d", "test", data_dir=data_dir)
    x, value, _ = dataset.read(np.arange(dataset.size))
    label = value["label"]
    assert dataset.info.examples == Vectors((2,))
    assert (dataset.size, x.dtype, x.shape) == (10_000, np.float32, (10_000, 2))
    assert stats.chisquare(np.bincount(label), mixture2d.WEIGHTS * dataset.size).pvalue > 1e-3
    noise = (x - mixture2d.MEANS[label]) / mixture2d.STD
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    np.testing.assert_allclose(np.linalg.norm(mixture2d.MEANS, axis=1), 2.0)


def test_mixture_train_split(data_dir):
    dataset = open_dataset("mixture2d", data_dir=data_dir, memory_limit=0)
    points, labels = mixture2d.draw(0, 50_000)
    x, value, _ = dataset.read(np.arange(0, 50_000, 50))
    assert dataset.size == 50_000
    np.testing.assert_array_equal(x, points[::50])
    np.testing.assert_array_equal(value["label"], labels[::50])
    test, _ = mixture2d.draw(1, 10_000)
    assert not set(map(tuple, points.tolist())) & set(map(tuple, test.tolist()))


def test_provenance_is_shipped():
    from importlib import resources

    text = (resources.files("flowguide.data") / "files" / "PROVENANCE.md").read_text()
    assert "CC0" in text
    _, _, names = avatars.load()
    assert all(f"`{name}`" in text for name in names)
    assert json.loads(json.dumps(names)) == names
