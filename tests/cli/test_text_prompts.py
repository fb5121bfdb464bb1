"""Prompts in words, for a trainable vocabulary and for embeddings of any encoder: from captions to samples."""

import functools

import jax
import numpy as np
import pytest
from jax import export

from flowguide import config, sampling
from flowguide.data import embed, open_dataset
from flowguide.data.builders import avatars
from flowguide.training import loop
from tests.support.runs import refused, run
from tests.support.text_encoders import SIZE, ngrams

pytestmark = pytest.mark.slow

PROMPT, NEGATIVE = "red hat, dark glasses", "beard"
FEW = sampling.SamplerConfig(solver="euler", steps=2)
NGRAMS = "tests.support.text_encoders:ngrams"


def trained(name, data_dir, workdir):
    """A tiny network on captions of the faces."""
    c = config.default()
    c.data.update({"name": name, "data_dir": str(data_dir), "fields": ("caption",), "split": "train[:64]"})
    c.network = {"name": "dit", "patch": 4, "width": 24, "depth": 2, "heads": 2}
    c.update({"steps": 6, "warmup": 1, "batch_size": 32, "lr": 1e-2, "drop_rate": 0.5, "eval_examples": 16})
    c.preview.update({"num": 4, "steps": 2, "every": 6})
    loop.train(c, workdir)
    return workdir


@pytest.fixture(scope="module")
def words(data_dir, tmp_path_factory):
    return trained("avatars", data_dir, tmp_path_factory.mktemp("words") / "run")


@pytest.fixture(scope="module")
def embedded(data_dir, tmp_path_factory):
    embed("avatars", "faces_of_ngrams", data_dir, field="caption", encoder=ngrams, fields=("hat",))
    return trained("faces_of_ngrams", data_dir, tmp_path_factory.mktemp("embedded") / "run")


@pytest.fixture(scope="module")
def model(embedded):
    return sampling.load(embedded, trust_code=True)


def padded(text, field):
    found = np.full(field.shape, np.nan)
    vectors = ngrams([text])[0]
    found[: len(vectors)] = vectors
    return found


def test_captions_keep_capitals_and_commas(model, data_dir):
    """An example has the embedding of the text that the builder wrote, not of words of its vocabulary."""
    found = open_dataset("faces_of_ngrams", "test", data_dir=data_dir)
    assert (found.size, list(found.info.fields)) == (1000, ["hat", "caption"])
    assert found.info.fields["caption"] == model.info.fields["caption"]
    _, attributes, names = avatars.load()
    texts = []
    for i, value in zip((0, 1, 999), found.read(np.array([0, 1, 999])).value["caption"], strict=True):
        whole = avatars.caption({name: names[name][column[9000 + i]] for name, column in attributes.items()})
        texts.append(avatars.partial(whole, 9000 + i))
        expected = padded(texts[-1], model.info.fields["caption"]).astype(np.float16)
        np.testing.assert_array_equal(value, expected, strict=True)
    assert any("," in text for text in texts)


@pytest.mark.parametrize("kind", ["words", "embedded"])
def test_one_command_for_both(kind, request, tmp_path):
    workdir, draws = request.getfixturevalue(kind), {}
    for name, more in {"plain": [], "negative": [f"--negative={NEGATIVE}"]}.items():
        flags = [f"--cond={PROMPT}", "--num=3", "--steps=2", "--gamma=2", "--save=npz", f"--out={tmp_path / name}"]
        done = run("sample.py", f"--workdir={workdir}", *flags, *more, "--trust_code")
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        draws[name] = np.load(tmp_path / name / "samples.npz")["x"]
    assert draws["plain"].shape == (3, 16, 16, 3)
    assert (draws["plain"] != draws["negative"]).any()


def test_code_is_not_imported_unasked_and_arrays_need_none(embedded, model, tmp_path):
    flags = [f"--workdir={embedded}", "--num=2", "--steps=2", "--save=npz", f"--out={tmp_path}"]
    refused("sample.py", [*flags, f"--cond={PROMPT}"], f"embedded by '{NGRAMS}', code outside of flowguide")
    length = model.info.fields["caption"].shape[0]
    long = ", ".join(["red hat"] * length)
    refused("sample.py", [*flags, f"--cond={long}", "--trust_code"], f"takes texts of at most {length} vectors")
    np.save(tmp_path / "prompt.npy", padded(PROMPT, model.info.fields["caption"]))
    done = run("sample.py", *flags, f"--cond={tmp_path / 'prompt.npy'}", "--gamma=2")
    assert done.returncode == 0, done.stderr
    own = sampling.sample(model, PROMPT, num=2, gamma=2.0, config=sampling.SamplerConfig(steps=2)).x
    assert np.abs(np.load(tmp_path / "samples.npz")["x"].astype(int) - own).max() <= 1


def test_texts_arrays_and_the_exported_sampler_draw_the_same(model):
    field = model.info.fields["caption"]
    draw = functools.partial(sampling.sample, model, gamma=3.0, config=FEW, devices=jax.devices()[:1])
    texts = [PROMPT, "Long blonde hair", NEGATIVE]
    arrays = np.stack([padded(text, field) for text in texts])
    x = draw(texts, negative=NEGATIVE).x
    np.testing.assert_array_equal(draw({"caption": arrays}, negative=[{"caption": padded(NEGATIVE, field)}]).x, x)
    assert (draw(texts).x != x).any()
    assert (draw([PROMPT] * 3, negative=NEGATIVE).x[1] != x[1]).any()

    content = sampling.export(model, negative=NEGATIVE, config=FEW, platforms=["cpu"])
    sampler = export.deserialize(bytearray(content))
    value, present = {"caption": arrays.astype(np.float16)}, {"caption": np.ones(3, bool)}
    index, gamma = np.arange(3, dtype=np.int32), np.full(3, 3.0, np.float32)
    found = np.asarray(sampler.call(np.uint32(0), index, gamma, value, present)).astype(int)
    assert np.abs(found - x).max() <= 1
    assert field.shape == (20, SIZE)  # the words and commas of the longest caption


def test_null_particles_and_composition(model, embedded):
    null = sampling.kept_null(embedded, model)
    assert null.untouched == ()
    assert null.gap > 1e-3
    fkc = sampling.SamplerConfig(sampler="fkc", particles=4, steps=3)
    laws = sampling.sample_particles(model, [PROMPT, "beard"], num=2, gamma=1.5, negative=NEGATIVE, config=fkc)
    assert np.isfinite(laws.log_weights).all()
    assert np.abs(laws.log_weights + np.log(4)).max() > 1e-6
    mixed = sampling.sample(model, PROMPT, num=2, gamma=2.0, compose=[("happy", 0.5)], config=FEW).x
    assert (mixed != sampling.sample(model, PROMPT, num=2, gamma=2.0, config=FEW).x).any()
