"""A model of latents returns images, knows its autoencoder, and refuses another."""

import json
import shutil

import numpy as np
import pytest

from flowguide import build, config, evaluation, metrics, sampling
from flowguide.autoencoder import FILE, Decoder, load_decoder, save_vae
from flowguide.cli import main
from flowguide.config import complete
from flowguide.data import encode
from flowguide.errors import UserError
from flowguide.evaluation.shown import shown
from flowguide.model import from_config
from flowguide.schema import DataInfo, Images, Label, Latents, Vectors
from flowguide.training import loop
from tests.support.tiny_vae import images_file, tiny_vae
from tests.support.toy_data import data_of

VAE = tiny_vae()
EXAMPLES = Latents((4, 6, 3), (2, 3, 2), VAE.identity, (0.5, -1.0), (2.0, 0.5))
FEW = sampling.SamplerConfig("euler", 3)


def of_latents(data_dir, name="faces_latents"):
    """The config of a run of two steps on latents."""
    c = config.default()
    c.data.name, c.data.data_dir = name, str(data_dir)
    c.network = {"name": "mlp", "width": 8, "depth": 1}
    c.update({"batch_size": 8, "steps": 2, "warmup": 1, "eval_examples": 8, "flip": True})
    c.preview.update({"num": 2, "steps": 2, "gammas": (1.0,)})
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folders of encoded data and of a run on them."""
    place = tmp_path_factory.mktemp("latents")
    path, *_ = images_file(place, count=120)
    encode(str(path), "faces_latents", VAE, place / "data")
    loop.train(of_latents(place / "data"), place / "run")
    return place


@pytest.mark.thorough
def test_a_run_has_its_autoencoder_and_draws_images(run):
    assert (run / "run" / FILE).read_bytes() == (run / "data" / "faces_latents" / "1.0.0" / FILE).read_bytes()
    assert (run / "run" / "previews" / "00000002.png").exists()
    model = sampling.load(run / "run")
    images = sampling.sample(model, num=3, config=FEW, seed=1).x
    assert (images.shape, images.dtype) == ((3, 4, 6, 3), np.uint8)
    np.testing.assert_array_equal(model.sample(num=3, config=FEW, seed=1), images)
    latents = sampling.load(run / "run", decode=False)
    z = sampling.sample(latents, num=3, config=FEW, seed=1).x
    assert (z.shape, z.dtype) == ((3, 2, 3, 2), np.float32)
    np.testing.assert_array_equal(VAE.decode(z), images)
    # In the autoencoder's units: what the network draws is standardised.
    drawn = sampling.sample(latents._replace(info=plain(latents.info)), num=3, config=FEW, seed=1).x
    examples = latents.info.examples
    assert isinstance(examples, Latents)
    np.testing.assert_allclose(z, drawn * examples.scale + np.asarray(examples.mean), rtol=1e-4, atol=1e-5)
    way = sampling.trajectory(model, num=2, config=FEW, seed=1)
    assert way.x.shape == (2, 4, 4, 6, 3)
    np.testing.assert_array_equal(way.x[:, -1], images[:2])


def plain(info):
    return info._replace(examples=info.examples._replace(mean=(), scale=()))


@pytest.mark.slow
def test_evaluation_sees_decoded_images(run, tmp_path):
    model, data = sampling.load(run / "run"), build.splits(complete(of_latents(run / "data")))
    images = shown(data, model).train
    assert images.info.examples == Images((4, 6, 3))
    batch = data.train.read(np.arange(3))
    np.testing.assert_array_equal(images.read(np.arange(3)).x, VAE.decode(batch.x[:, 0, ..., :2]))
    np.testing.assert_array_equal(images.read(np.arange(3)).value["hat"], batch.value["hat"])
    features = lambda x: x.reshape(len(x), -1)[:, :4] / 255  # noqa: E731
    found = evaluation.evaluate(
        evaluation.settings(model, [1.0], [FEW]),
        data,
        tmp_path,
        num=12,
        features=evaluation.FeatureNetwork("f", features),
    )
    assert found is not None
    real, held = (features(images_of.read(np.arange(images_of.size)).x) for images_of in shown(data, model))
    moments = [metrics.moments([each.astype(np.float64)]) for each in (real, held)]
    expected = metrics.frechet_distance(*moments)
    assert found.held_out["metrics"]["frechet_distance"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.thorough
def test_the_command_saves_images_or_latents(run, tmp_path):
    words = ["sample", f"--workdir={run / 'run'}", "--num=2", "--steps=2", "--gamma=1"]
    assert main([*words, f"--out={tmp_path / 'images'}", "--save=png"]) in (0, None)
    assert len(list((tmp_path / "images" / "png").glob("*.png"))) == 2
    assert main([*words, f"--out={tmp_path / 'latents'}", "--nodecode"]) in (0, None)
    with np.load(tmp_path / "latents" / "samples.npz") as file:
        assert file["x"].shape == (2, 2, 3, 2)


@pytest.mark.thorough
@pytest.mark.parametrize("change", ["gone", "another"])
def test_a_run_without_its_autoencoder_is_refused(run, tmp_path, change):
    shutil.copytree(run / "run", tmp_path / "run")
    if change == "gone":
        (tmp_path / "run" / FILE).unlink()
    else:
        save_vae(tiny_vae(1), tmp_path / "run" / FILE)
    with pytest.raises(UserError, match="need their autoencoder" if change == "gone" else "is the autoencoder"):
        sampling.load(tmp_path / "run")
    assert sampling.load(tmp_path / "run", decode=False).decoder is None


def test_only_latents_have_a_decoder(tmp_path):
    assert load_decoder(tmp_path, Images((4, 6, 3))) is None
    save_vae(VAE, tmp_path / FILE)
    found = load_decoder(tmp_path, EXAMPLES, tile=5)
    assert found is not None
    assert (found.autoencoder.identity, found.tile) == (VAE.identity, 5)


@pytest.mark.thorough
def test_a_tile_that_is_too_small_is_refused_when_the_model_is_loaded(run, tmp_path):
    for tile in (-4, 1, 3):
        with pytest.raises(UserError, match=f"4 latents or more, or 0 for none; got {tile}"):
            sampling.load(run / "run", tile=tile)
        with pytest.raises(UserError, match="4 latents or more"):
            load_decoder(tmp_path, Images((4, 6, 3)), tile)


def refused(capsys, *words):
    """The one line that refuses ``flowguide sample``."""
    with pytest.raises(SystemExit) as ended:
        main(["sample", *words])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.thorough
def test_flags_of_latents_that_do_nothing_are_refused(run, tmp_path, monkeypatch, capsys):
    latents = f"--workdir={run / 'run'}"
    assert "--tile does nothing without --decode" in refused(capsys, latents, "--tile=4", "--nodecode")
    assert "--tile does nothing with --export" in refused(capsys, latents, "--tile=4", f"--export={tmp_path / 'e'}")
    assert "4 latents or more" in refused(capsys, latents, "--tile=3", f"--out={tmp_path / 'out'}")
    pixels = from_config(complete(of_latents(tmp_path)), DataInfo("images", Images((4, 6, 3)), {}))
    monkeypatch.setattr(sampling, "load", lambda *_, **__: pixels)
    for flag in ("--tile=4", "--nodecode"):
        line = refused(capsys, "--workdir=pixels", flag, "--gamma=1", f"--out={tmp_path / 'out'}")
        assert f"{flag.removesuffix('=4')} is for a model of latents, and pixels draws none: leave it out" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.thorough
def test_an_exported_sampler_says_that_it_returns_latents(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sampling, "export", lambda *_, **__: b"program")
    assert main(["sample", f"--workdir={run / 'run'}", f"--export={tmp_path / 'sampler'}"]) in (0, None)
    assert f"it returns latents: flowguide.autoencoder.load_vae('{run / 'run' / FILE}')" in capsys.readouterr().out


@pytest.mark.parametrize("examples", [Vectors((4, 6, 3)), EXAMPLES])
def test_an_autoencoder_is_of_images(examples):
    c = config.default()
    c.task = "autoencoder"
    c.network = {"name": "kl", "widths": (4, 8), "blocks": 1, "latent": 2, "groups": 2}
    assert from_config(complete(c), DataInfo("mine", Images((4, 6, 3)), {}))
    with pytest.raises(UserError, match=rf"got mine, which has {examples.kind} of shape .*expected images"):
        from_config(complete(c), DataInfo("mine", examples, {}))


def test_a_decoder_keeps_leading_axes():
    z = np.random.default_rng(0).normal(size=(2, 3, 2, 3, 2)).astype(np.float32)
    found = Decoder(VAE)(z)
    assert found.shape == (2, 3, 4, 6, 3)
    np.testing.assert_array_equal(found[1, 2], VAE.decode(z[1])[2])


@pytest.mark.thorough
def test_what_latents_cannot_do_is_refused(run, tmp_path):
    model = sampling.load(run / "run")
    with pytest.raises(UserError, match="latents of faces_latents"):
        sampling.sample(model, measured=sampling.Inpaint(np.full((4, 6, 3), np.nan)), config=FEW)
    c = of_latents(run / "data")
    c.data.known = True
    with pytest.raises(UserError, match="no part is known"):
        loop.train(c, tmp_path / "run")
    info = DataInfo("made up", EXAMPLES._replace(flips=True), {"hat": Label(("a", "b"))})
    with pytest.raises(UserError, match="without an autoencoder"):
        loop.train(of_latents(tmp_path), tmp_path / "run", data=data_of(info))
    encode(str(images_file(tmp_path)[0]), "unflipped", VAE, tmp_path / "data", flips=False)
    with pytest.raises(UserError, match="encode again with --flips"):
        loop.train(of_latents(tmp_path / "data", "unflipped"), tmp_path / "run")
    with pytest.raises(UserError, match="task flow"):
        sampling.load_autoencoder(run / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_road_from_images_to_images(tmp_path, capsys):
    """Trains an autoencoder, encodes with it, trains on the latents and draws images, by the commands."""
    path, *_ = images_file(tmp_path, count=60)
    c = config.default()
    c.task = "autoencoder"
    c.data.path = str(path)
    c.network = {"name": "kl", "widths": (4, 8), "blocks": 1, "latent": 2, "groups": 2}
    c.update({"batch_size": 8, "steps": 2, "warmup": 1, "eval_examples": 8})
    c.preview.num = 3
    loop.train(c, tmp_path / "vae")
    assert (tmp_path / "vae" / "previews" / "00000002.png").exists()
    assert f"flowguide data encode {path} --vae={tmp_path / 'vae'}" in capsys.readouterr().out
    with pytest.raises(UserError, match="task autoencoder, which draws nothing"):
        sampling.load(tmp_path / "vae")
    vae = sampling.load_autoencoder(tmp_path / "vae")
    place = f"--data_dir={tmp_path / 'data'}"
    assert main(["data", "encode", str(path), f"--vae={tmp_path / 'vae'}", "--out=mine", place]) in (0, None)
    loop.train(of_latents(tmp_path / "data", "mine"), tmp_path / "run")
    stated = json.loads((tmp_path / "run" / "info.json").read_text())
    assert stated["autoencoder"] == vae.identity
    model = sampling.load(tmp_path / "run")
    assert model.decoder is not None
    assert model.decoder.autoencoder.identity == vae.identity
    assert model.sample("0", num=2, config=FEW).shape == (2, 4, 6, 3)
    # The same command resumes.
    c = of_latents(tmp_path / "data", "mine")
    c.steps = 3
    assert int(loop.train(c, tmp_path / "run").step) == 3
