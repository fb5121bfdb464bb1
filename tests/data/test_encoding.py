"""Encoded sets hold what the encoder says, go on after a kill, and are never half written."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import storage, weights
from flowguide.autoencoder import FILE, load_vae, to_arrays
from flowguide.cli import main
from flowguide.data import encode, encoding, open_dataset, open_path, parts
from flowguide.errors import DataError, UserError
from flowguide.schema import Latents
from tests.support.tiny_vae import SIZES, images_file, tiny_vae

VAE = tiny_vae()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "PART", 5)


def opened(name, data_dir):
    return [open_dataset(name, split, data_dir=data_dir) for split in ("train", "test")]


@pytest.mark.thorough
@pytest.mark.parametrize("flips", [True, False])
def test_an_encoded_set_holds_what_the_encoder_says(tmp_path, flips):
    path, *_ = images_file(tmp_path)
    done = encode(str(path), "faces_latents", VAE, tmp_path / "data", flips=flips, batch=4)
    assert done.written
    every = []
    for data, source in zip(opened("faces_latents", tmp_path / "data"), open_path(path), strict=True):
        at = np.arange(source.size)
        found, images = data.read(at), source.read(at)
        both = [VAE.encode(x, batch=32) for x in (images.x, images.x[:, :, ::-1])]
        expected = np.stack([np.concatenate([p.mean, p.log_variance], -1) for p in both], axis=1)
        np.testing.assert_allclose(found.x, expected if flips else expected[:, 0], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(found.value["hat"], images.value["hat"])
        assert data.info.fields == source.info.fields
        every.append((data, expected if flips else expected[:, :1]))
    (data, expected), _ = every
    examples = data.info.examples
    assert isinstance(examples, Latents)
    assert (examples.image, examples.latent, examples.flips) == ((4, 6, 3), (2, 3, 2), flips)
    # Standardised by the training images: draws from all posteriors have mean 0 and variance 1.
    rng = np.random.default_rng(0)
    mean, log_variance = np.split(expected, 2, axis=-1)
    z = mean + np.exp(log_variance / 2) * rng.normal(size=(4000, *mean.shape))
    z = ((z - examples.mean) / examples.scale).reshape(-1, 2)
    assert np.abs(z.mean(0)).max() < 0.01
    assert np.abs(z.std(0) - 1).max() < 0.01
    # Its autoencoder lies beside it.
    assert load_vae(data.folder / FILE).identity == examples.autoencoder == VAE.identity
    left = sorted(p.name for p in (tmp_path / "data" / "faces_latents").iterdir())
    assert left == ["1.0.0"]


def test_a_fixed_scale(tmp_path):
    path, *_ = images_file(tmp_path)
    encode(str(path), "faces_latents", VAE, tmp_path / "data", scale=0.18215, dtype="float16")
    data, _ = opened("faces_latents", tmp_path / "data")
    examples, stored = data.info.examples, data.read(np.arange(3))
    assert stored.x.dtype == np.float16
    assert isinstance(examples, Latents)
    seen = np.asarray(examples.to_model(stored.x))
    np.testing.assert_allclose(seen, 0.18215 * stored.x[:, 0, ..., :2].astype(np.float32), rtol=1e-4)
    np.testing.assert_allclose(examples.to_output(seen), stored.x[:, 0, ..., :2], rtol=1e-4)


class Killed(BaseException):
    """As an interrupt, it is no Exception."""


def test_an_encoding_that_was_killed_goes_on(tmp_path, monkeypatch):
    path, *_ = images_file(tmp_path)
    of_vae, seen = type(VAE).encode, []

    def killed_in_the_third_part(self, images, batch):
        if len(seen) == 5:
            raise Killed
        seen.append(len(images))
        return of_vae(self, images, batch)

    def counting(self, images, batch):
        seen.append(len(images))
        return of_vae(self, images, batch)

    monkeypatch.setattr(type(VAE), "encode", killed_in_the_third_part)
    with pytest.raises(Killed):
        encode(str(path), "faces_latents", VAE, tmp_path / "data")
    with pytest.raises(DataError, match="unknown data set"):  # not there under its name
        opened("faces_latents", tmp_path / "data")
    seen.clear()
    monkeypatch.setattr(type(VAE), "encode", counting)
    assert encode(str(path), "faces_latents", VAE, tmp_path / "data").written
    assert sum(seen) == 2 * (23 - 10)  # the images of two parts, and their mirrors, were there
    assert not encode(str(path), "faces_latents", VAE, tmp_path / "data").written
    assert sum(seen) == 2 * (23 - 10)
    encode(str(path), "faces_latents", VAE, tmp_path / "other")
    for a, b in zip(*(opened("faces_latents", tmp_path / place) for place in ("data", "other")), strict=True):
        np.testing.assert_array_equal(a.read(np.arange(a.size)).x, b.read(np.arange(b.size)).x)
        assert (a.info, a.version) == (b.info, b.version)


def failing_in_the_third_part(monkeypatch, fail):
    """Encodes, and calls ``fail`` once instead; returns the list of sizes of what was encoded."""
    of_vae, calls = type(VAE).encode, []

    def encode_or_fail(self, images, batch):
        calls.append(len(images))
        if len(calls) == 3:
            fail()
        return of_vae(self, images, batch)

    monkeypatch.setattr(type(VAE), "encode", encode_or_fail)
    return calls


def test_done_parts_are_not_computed_again(tmp_path, monkeypatch):
    path, *_ = images_file(tmp_path)

    def fail():
        raise ZeroDivisionError

    calls = failing_in_the_third_part(monkeypatch, fail)
    with pytest.raises(ZeroDivisionError):  # nothing of the disk
        encode(str(path), "faces_latents", VAE, tmp_path / "data", flips=False)
    # The moments do not depend on the scale.
    assert encode(str(path), "faces_latents", VAE, tmp_path / "data", flips=False, scale=2.0).written
    assert sum(calls) == 23 + 5  # only the part that failed twice
    data, _ = opened("faces_latents", tmp_path / "data")
    assert isinstance(data.info.examples, Latents)
    assert data.info.examples.scale == (0.5, 0.5)


def test_too_little_memory_of_the_device_is_one_line(tmp_path, monkeypatch):
    path, *_ = images_file(tmp_path)
    failing_in_the_third_part(monkeypatch, lambda: jnp.zeros(2**50, jnp.uint8).block_until_ready())
    with pytest.raises(UserError, match=r"too little memory to encode 7 images of \(4, 6, 3\) .*lower --batch_size"):
        encode(str(path), "faces_latents", VAE, tmp_path / "data", batch=7)

    def fail():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    failing_in_the_third_part(monkeypatch, fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        encode(str(path), "faces_latents", VAE, tmp_path / "data")


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    path, *_ = images_file(tmp_path)

    def full(file, content):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "replace_bytes", full)
        with pytest.raises(DataError, match=r"faces_latents cannot be written .*No space left .*make room"):
            encode(str(path), "faces_latents", VAE, tmp_path / "data")
    assert not opened_names(tmp_path / "data")


def opened_names(data_dir):
    return [file.parent.name for file in data_dir.glob("*/*/dataset_info.json")]


def test_damaged_parts_and_those_of_another_encoding_are_named(tmp_path, monkeypatch):
    path, *_ = images_file(tmp_path)

    def stop(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(encoding, "write_set", stop)
        with pytest.raises(Killed):
            encode(str(path), "faces_latents", VAE, tmp_path / "data")
    for other in ({"flips": False}, {"dtype": "float16"}, {"autoencoder": tiny_vae(1)}):
        with pytest.raises(DataError, match="from other data or with other settings: delete that folder"):
            encode(str(path), **{"name": "faces_latents", "autoencoder": VAE, "data_dir": tmp_path / "data", **other})
    (file,) = (tmp_path / "data").glob("faces_latents/*/train-000000005.npz")
    file.write_bytes(file.read_bytes()[:-40])
    for scale in (None, 2.0):  # read for the moments, or only when the set is written
        with pytest.raises(DataError, match=r"got .*train-000000005\.npz, which cannot be read .*delete it"):
            encode(str(path), "faces_latents", VAE, tmp_path / "data", scale=scale)
    file.unlink()
    assert encode(str(path), "faces_latents", VAE, tmp_path / "data").written


def test_an_encoding_that_was_killed_right_before_its_end_leaves_no_parts(tmp_path, monkeypatch):
    path, *_ = images_file(tmp_path)

    def stop(folder):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(storage, "remove", stop)
        with pytest.raises(Killed):
            encode(str(path), "faces_latents", VAE, tmp_path / "data")
    place = tmp_path / "data" / "faces_latents"
    assert sorted(p.name for p in place.iterdir()) == ["1.0.0", "incomplete.encode_1.0.0"]
    assert not encode(str(path), "faces_latents", VAE, tmp_path / "data").written
    assert [p.name for p in place.iterdir()] == ["1.0.0"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"flips": False}, "give another name"),
        ({"scale": 2.0}, "give another name"),
        ({"dtype": "float16"}, "give another name"),
    ],
)
def test_another_encoding_does_not_take_the_name(tmp_path, options, words):
    path, *_ = images_file(tmp_path)
    encode(str(path), "faces_latents", VAE, tmp_path / "data")
    with pytest.raises(DataError, match=words):
        encode(str(path), "faces_latents", VAE, tmp_path / "data", **options)


def test_what_cannot_be_encoded_is_refused_first(tmp_path, monkeypatch):
    monkeypatch.setattr(type(VAE), "encode", None)  # nothing is computed
    data_dir = tmp_path / "data"
    odd, *_ = images_file(tmp_path, side=(5, 6))
    with pytest.raises(UserError, match=r"sides divisible by 2; got \(5, 6, 3\)"):
        encode(str(odd), "faces_latents", VAE, data_dir)
    good, x, _ = images_file(tmp_path)
    for options, words in (
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"scale": 0.0}, "scale 0.0"),
        ({"name": "mnist"}, "that of a set that TFDS"),
        ({"name": "Faces"}, "lower-case"),
    ):
        with pytest.raises(DataError, match=words):
            encode(str(good), **{"name": "faces_latents", **options}, autoencoder=VAE, data_dir=data_dir)
    np.savez(tmp_path / "points.npz", x=np.random.default_rng(0).normal(size=(9, 2)))
    with pytest.raises(DataError, match="expected images"):
        encode(str(tmp_path / "points.npz"), "faces_latents", VAE, data_dir)
    np.savez(tmp_path / "beside.npz", image=x[:9], depth=x[:9, ..., :1] / 255.0)
    with pytest.raises(DataError, match="lies beside the image"):
        encode(str(tmp_path / "beside.npz"), "faces_latents", VAE, data_dir)
    assert not list(data_dir.glob("*/*"))


def test_latents_that_are_not_finite_are_refused(tmp_path):
    """In float16, which ends at 65,504."""
    path, *_ = images_file(tmp_path)
    params = {**VAE.params, "quant_conv": {**VAE.params["quant_conv"], "bias": VAE.params["quant_conv"]["bias"] + 1e5}}
    with pytest.raises(DataError, match="image 0 of train are not finite as float16"):
        encode(str(path), "faces_latents", VAE._replace(params=params), tmp_path / "data", dtype="float16")


def test_the_command(tmp_path, capsys):
    path, *_ = images_file(tmp_path)
    weights.write(tmp_path / "vae.safetensors", to_arrays(VAE.params), {"groups": str(SIZES.groups)})
    words = ["data", "encode", str(path), f"--vae={tmp_path / 'vae.safetensors'}", f"--data_dir={tmp_path / 'data'}"]
    main([*words, "--out=faces_latents", "--noflips"])
    said = capsys.readouterr().out
    assert "faces_latents is prepared" in said
    assert f"--data=faces_latents --config.data.data_dir={tmp_path / 'data'}" in said
    data, _ = opened("faces_latents", tmp_path / "data")
    examples = data.info.examples
    assert isinstance(examples, Latents)
    assert examples._replace(mean=(), scale=()) == Latents((4, 6, 3), (2, 3, 2), VAE.identity)
    main([*words, "--out=faces_latents", "--noflips"])
    assert "nothing was written" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(words)
    assert "--out=NAME" in capsys.readouterr().err
