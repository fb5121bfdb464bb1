"""The command ``convert``: from a file to a run that samples as the released network does, and back to a file."""

import json
import os
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import checkpoint, sampling, weights
from flowguide.autoencoder import save_vae
from flowguide.cli import convert as command
from flowguide.cli.command import parse
from flowguide.convert import Sizes, runs
from flowguide.errors import UserError
from flowguide.schema import Images, Label, Vectors
from tests.support import released
from tests.support.released import CASES, doubled, random_state
from tests.support.tiny_vae import tiny_vae
from tests.support.torch_files import Call, save_torch


def run(*arguments):
    """Runs the command in this process."""
    values, words = parse(command.COMMAND, "flowguide convert", list(map(str, arguments)))
    command.main(values, *words)


def flags(name):
    unstated = CASES[name].unstated
    more = {"heads": unstated.heads, "class_tokens_from": unstated.start}
    return [f"--as={name}", *(f"--{flag}={value}" for flag, value in more.items() if value is not None)]


@pytest.fixture(scope="module")
def sit(tmp_path_factory):
    """The file of a small SiT, with training's own weights beside the averaged ones, and the run made of it."""
    folder = tmp_path_factory.mktemp("sit")
    trained = {f"module.{key}": a + 1 for key, a in random_state("sit").items()}
    averaged = {f"module.{key}": a for key, a in random_state("sit").items()}
    file = save_torch(folder / "last.pt", {"model": trained, "ema": averaged, "steps": 400})
    run(file, f"--workdir={folder / 'deep' / 'run'}", *flags("sit"))
    return file, folder / "deep" / "run"


def test_a_run_is_whole(sit):
    _, workdir = sit
    assert sorted(p.name for p in workdir.iterdir()) == ["checkpoints", "config.json", "info.json"]
    assert [p.name for p in workdir.parent.iterdir()] == ["run"]  # no temporary folder beside it
    model = sampling.load(workdir)
    assert model.info.examples == Vectors((6, 6, 4), scale=(1 / 0.18215,) * 4)
    assert model.info.fields == {"label": Label(tuple("0123456789"))}
    assert (model.step, model.guidance) == (0, sampling.Plain())
    stored = json.loads((workdir / "checkpoints" / "0" / "hashes" / "metadata").read_text())
    assert stored["ema"] == checkpoint.leaf_hashes(model.params)


@pytest.mark.thorough
@pytest.mark.parametrize("channels", [None, 3])
def test_samples_are_those_of_the_released_network(sit, channels):
    """Euler's method in NumPy, over the released network, guided on some channels; and the exported sampler."""
    _, workdir = sit
    model, steps, gamma = sampling.load(workdir), 5, 1.5
    expected = euler(doubled(random_state("sit")), CASES["sit"].velocity, model.info.shape, steps, gamma, channels)
    config = sampling.SamplerConfig("euler", steps, channels=channels)
    found = sampling.sample(model, "7", num=2, gamma=gamma, config=config).x
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())

    exported = jax.export.deserialize(bytearray(sampling.export(model, config=config, platforms=["cpu"])))
    given = {"label": np.full(2, 7, np.int32)}, {"label": np.ones(2, bool)}
    found = exported.call(np.uint32(0), np.arange(2, dtype=np.int32), np.full(2, gamma, np.float32), *given)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def euler(state, velocity, shape, steps, gamma, channels=None):
    """Samples 0 and 1 of class 7, seed 0: x0 from (seed, number of the sample), then plain steps of (1−γ)u_∅ + γu_7.

    Guidance acts on the first ``channels`` alone, and the others are those of the class; None for all.
    """
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(2)]
    x = np.stack([np.asarray(jax.random.normal(key, shape), np.float64) for key in keys])
    null = state["y_embedder.embedding_table.weight"].shape[0] - 1
    for i in range(steps):
        t = np.full(2, i / steps)
        u, u_null = (velocity(state, t, x, np.full(2, y)) for y in (7, null))
        guided = (1 - gamma) * u_null + gamma * u
        if channels is not None:
            guided = np.concatenate([guided[..., :channels], u[..., channels:]], axis=-1)
        x = x + guided / steps
    return x / 0.18215  # in the autoencoder's units


@pytest.mark.slow
def test_samples_of_a_whole_small_network(tmp_path):
    """SiT-S/2, as it was published, on latents of 32 x 32 x 4."""
    sizes = Sizes(384, 12, 6, 2, 16, 4, 8, 1000)
    state = random_state("sit", sizes)
    weights.write(tmp_path / "sit.safetensors", state)
    run(tmp_path / "sit.safetensors", "--as=sit", f"--workdir={tmp_path / 'run'}")
    model = sampling.load(tmp_path / "run")
    assert model.info.fields["label"].text(np.array(7)) == "n01514668"
    config = sampling.SamplerConfig("euler", 3, channels=3)
    found = sampling.sample(model, "7", num=2, gamma=1.5, config=config).x
    expected = euler(
        doubled(state),
        lambda w, t, x, y: released.sit(w, t, x, y, 6)[..., :4],
        (32, 32, 4),
        steps=3,
        gamma=1.5,
        channels=3,
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.thorough
@pytest.mark.parametrize("name", CASES)
def test_there_and_back(name, tmp_path):
    """A run of every family, the file of it, and the run of that file: the same parameters."""
    state, first, second, file = random_state(name), tmp_path / "first", tmp_path / "second", tmp_path / "back"
    weights.write(tmp_path / "file", state)
    run(tmp_path / "file", f"--workdir={first}", *flags(name))
    run(first, f"--to={file}", f"--as={name}")
    back = weights.read(file)
    assert back.keys() == state.keys()
    if name == "sit":
        back, state = ({k: a for k, a in each.items() if "final_layer.linear" not in k} for each in (back, state))
    for key, a in state.items():
        np.testing.assert_allclose(back[key], a, rtol=0, atol=1e-6, err_msg=key)
    run(file, f"--workdir={second}", *flags(name))
    one, other = sampling.load(first), sampling.load(second)
    assert one.info == other.info
    assert isinstance(one.info.examples, Images if name == "jit" else Vectors)
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, rtol=0, atol=1e-6), one.params, other.params))


@pytest.mark.thorough
def test_an_autoencoder_decodes_the_samples(tmp_path, capsys):
    """A run with one draws the images of what the same run without one draws."""
    vae, sizes = tiny_vae(), CASES["sit"].sizes._replace(channels=2, outputs=4)
    weights.write(tmp_path / "sit", random_state("sit", sizes))
    save_vae(vae, tmp_path / "vae.safetensors")
    latents, images = tmp_path / "latents", tmp_path / "images"
    run(tmp_path / "sit", f"--workdir={latents}", *flags("sit"))
    run(tmp_path / "sit", f"--workdir={images}", f"--vae={tmp_path / 'vae.safetensors'}", *flags("sit"))
    config = sampling.SamplerConfig("euler", 2)
    z = sampling.sample(sampling.load(latents), "7", num=2, config=config).x
    x = sampling.sample(sampling.load(images), "7", num=2, config=config).x
    np.testing.assert_allclose(sampling.load(images).sample("7", num=2, config=config), x)
    assert x.shape == (2, 12, 12, 3)
    np.testing.assert_allclose(x, vae.decode(z), rtol=0, atol=1)
    capsys.readouterr()
    run(images, f"--to={tmp_path / 'back'}")
    assert weights.read(tmp_path / "back").keys() == random_state("sit").keys()
    stated = weights.metadata(tmp_path / "back")
    np.testing.assert_allclose(json.loads(stated["latent_scale"]), [1 / 0.18215] * 2)
    assert f"mean [0.0, 0.0] and scale {stated['latent_scale']}" in capsys.readouterr().out
    out, other = f"--workdir={tmp_path / 'run'}", f"--vae={tmp_path / 'vae.safetensors'}"
    refused(tmp_path, "sees 4 channels of one like", _file(tmp_path, "repa"), out, other, *flags("repa"))
    refused(tmp_path, "JiT sees none: leave it out", _file(tmp_path, "jit"), out, other, *flags("jit"))
    refused(tmp_path, "holds no autoencoder", tmp_path / "sit", out, f"--vae={tmp_path / 'sit'}", *flags("sit"))


def _file(folder, name):
    weights.write(folder / name, random_state(name))
    return folder / name


def refused(tmp_path, message, *arguments):
    """The command ends in one line, and nothing is written."""
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as error:
        run(*arguments)
    assert len(str(error.value).splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_wrong_files_write_nothing_and_nothing_in_them_is_called(sit, tmp_path):
    file, state, out = tmp_path / "file", random_state("sit"), f"--workdir={tmp_path / 'run'}"
    file.write_bytes(sit[0].read_bytes()[:-2000])
    refused(tmp_path, "not a whole file of torch.save or safetensors", file, out, *flags("sit"))
    weights.write(file, random_state("jit"))
    refused(tmp_path, "x_embedder.proj.weight of 4 axes; the file has", file, out, *flags("sit"))
    weights.write(file, state | {"pos_embed": state["pos_embed"] * np.nan})
    refused(tmp_path, "pos_embed has a number that is not finite", file, out, *flags("sit"))
    weights.write(file, state)
    refused(tmp_path, "width=48, heads=5: try width=60", file, out, "--as=sit", "--heads=5")
    refused(tmp_path, "cannot read the weights", tmp_path / "missing", out, *flags("sit"))
    refused(tmp_path, "no weights are called 'ema' in the file", file, out, *flags("sit"), "--ema=ema")
    refused(tmp_path, "cannot read the names", file, out, *flags("sit"), f"--classes={tmp_path / 'missing'}")
    trap = tmp_path / "called"
    save_torch(file, state | {"args": Call(os.mkdir, str(trap))})
    pickle.loads(pickle.dumps(Call(os.mkdir, str(trap))))  # the trap works
    trap.rmdir()
    run(file, out, *flags("sit"))  # what is not a tensor is left out
    assert not trap.exists()
    file.write_bytes(pickle.dumps(Call(os.mkdir, str(trap))))
    shutil.rmtree(tmp_path / "run")
    refused(tmp_path, "not a whole file", file, out, *flags("sit"))


def test_what_is_there_stays(sit, tmp_path):
    file, workdir = sit
    before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}
    refused(tmp_path, "run is there already: choose another --workdir", file, f"--workdir={workdir}", *flags("sit"))
    refused(tmp_path, "is there already: choose another name for --to", workdir, f"--to={file}")
    assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob("*")}


def test_a_full_disk_leaves_nothing_behind(sit, tmp_path, monkeypatch):
    def full(*_, **__):
        raise checkpoint.SaveError("no space left")

    monkeypatch.setattr(runs.checkpoint, "save", full)
    out = f"--workdir={tmp_path / 'run'}"
    refused(tmp_path, r"cannot write the run .*no space left\): make room", sit[0], out, *flags("sit"))


def test_flags_that_miss_or_do_nothing(sit, tmp_path):
    file, workdir = sit
    out, to = f"--workdir={tmp_path / 'run'}", f"--to={tmp_path / 'file'}"
    refused(tmp_path, "expected --as to make a run", file, out)
    refused(tmp_path, "expected --workdir to make a run", file, "--as=sit")
    refused(tmp_path, "expected one file of weights, or with --to one run; got ''", out, "--as=sit")
    refused(tmp_path, "expected one file .* got 'a b'", "a", "b", out, "--as=sit")
    refused(tmp_path, "--heads does nothing with --to: leave it out", workdir, to, "--heads=4")
    refused(tmp_path, "no run in", tmp_path / "missing", to)
    message = "not laid out as jit: network.mlp is 'gelu', not 'swiglu'; .*output.name is 'velocity', not 'x1'"
    refused(tmp_path, message, workdir, to, "--as=jit")
