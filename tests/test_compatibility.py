"""Runs of earlier versions: their files are read, sampled and resumed.

``run_0_1_0.zip`` holds a run of 12 steps that version 0.1.0 wrote, of ``configs/points.py`` with width 16: config.json,
info.json, null.json and the newest checkpoint.
"""

import json
import zipfile

import jax
import numpy as np
import pytest

from flowguide import config, sampling
from flowguide.cli.config_flag import load_config
from flowguide.errors import UserError
from flowguide.schema import DataInfo, Label, Vectors
from flowguide.training import loop
from tests.support.runs import ROOT

FILE = ROOT / "tests" / "data" / "files" / "run_0_1_0.zip"


@pytest.fixture
def old_run(tmp_path):
    """The folder of a run, as version 0.1.0 left it."""
    zipfile.ZipFile(FILE).extractall(tmp_path / "run")
    return tmp_path / "run"


def todays(data_dir):
    """The settings of that run, as one gives them today."""
    c = load_config("points")
    c.network.width = 16
    c.optimizer.weight_decay = 0.01
    c.update({"batch_size": 16, "steps": 12, "warmup": 2, "log_every": 4, "checkpoint_every": 8, "eval_every": 8})
    c.update({"eval_examples": 32})
    c.preview.every = 0
    c.data.data_dir = str(data_dir)
    return c


def test_it_is_read_and_sampled(old_run, monkeypatch):
    model = sampling.load(old_run)
    assert model.step == 12
    assert model.info == DataInfo("mixture2d", Vectors((2,)), {"label": Label(tuple("01234567"))})
    assert isinstance(model.guidance, sampling.Plain)
    monkeypatch.setattr("flowguide.sampling.null.check_null", lambda *_: pytest.fail("null.json was not read"))
    assert sampling.kept_null(old_run, model) == sampling.Null((), 0.22023048996925354)
    s = sampling.sample(model, "3", num=8, gamma=2.0, negative="4", config=sampling.SamplerConfig("heun", 4))
    assert s.x.shape == (8, 2)
    assert np.isfinite(s.x).all()
    assert s.x.std() > 0.1


def test_hashes_of_then_agree_with_those_of_now(old_run):
    """They are compared: with another word in info.json they do not agree."""
    info = json.loads((old_run / "info.json").read_text())
    info["fields"]["label"]["values"][0] = "zero"
    (old_run / "info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"checkpoints/12 cannot be read .*saved with another info.json"):
        sampling.load(old_run)


@pytest.mark.slow
def test_it_is_resumed(old_run, data_dir):
    c, before = todays(data_dir), sampling.load(old_run)
    config.check_same_run(config.read_config(old_run), c)
    c.steps = 14
    state = loop.train(c, old_run)
    assert int(state.step) == 14
    assert not list(old_run.glob("broken"))
    after = sampling.load(old_run)
    assert after.step == 14
    moved = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (after.params, before.params)), strict=True)]
    assert 0 < max(moved) < 0.05  # two small steps from there, and not a new start
    written = json.loads((old_run / "config.json").read_text())
    assert written["path"] == {"name": "linear"}
    assert written["optimizer"] == {"name": "adamw", "b1": 0.9, "b2": 0.99, "weight_decay": 0.01}


def test_a_run_of_other_settings_is_still_refused(old_run, data_dir):
    stored, c = config.read_config(old_run), todays(data_dir)
    c.optimizer.weight_decay = 0.0
    with pytest.raises(UserError, match=r"optimizer.weight_decay was 0.01, is 0.0.*--force allows to change") as error:
        config.check_same_run(stored, c)
    assert "optimizer.weight_decay" in str(error.value).partition("--force")[2]
    config.check_same_run(stored, c, force=True)
    c.path = {"name": "trig"}
    with pytest.raises(UserError, match=r"path.name was 'linear', is 'trig'"):
        config.check_same_run(stored, c, force=True)


# All settings of version 0.1.0 and their defaults, as it wrote them to config.json.
OLD_DEFAULT = {
    "seed": 0,
    "task": "flow",
    "steps": 10_000,
    "batch_size": 128,
    "accumulate": 1,
    "lr": 1e-3,
    "warmup": 100,
    "decay": "cosine",
    "b2": 0.99,
    "weight_decay": 0.0,
    "clip": 1.0,
    "nonfinite_limit": 10,
    "path": "linear",
    "coupling": {"name": "independent"},
    "weight": {"name": "constant"},
    "target": {"name": "plain"},
    "drop_rate": 0.1,
    "drop_field_rate": [0.1, 0.1],
    "stratified": False,
    "flip": False,
    "times": {"name": "logit_normal", "mean": 0.0, "std": 1.0},
    "ema": {"name": "constant", "decay": 0.999},
    "data": {
        "name": "avatars",
        "split": "train",
        "test_split": "test",
        "fields": [],
        "data_dir": "",
        "image_size": 0,
    },
    "network": {"name": "unet"},
    "layout": {"name": "data_parallel", "shards": 0, "min_size": 2**14, "overrides": []},
    "log_every": 50,
    "checkpoint_every": 1000,
    "keep": 2,
    "eval_every": 1000,
    "eval_examples": 256,
    "preview": {"every": 1000, "num": 36, "gammas": [1.0, 3.0], "solver": "heun", "steps": 25},
}


def read(tmp_path, **changes):
    (tmp_path / "config.json").write_text(json.dumps({**OLD_DEFAULT, **changes}))
    return config.read_config(tmp_path)


def test_the_old_default_is_the_default_of_today(tmp_path):
    today = config.complete(config.default())
    assert read(tmp_path).to_dict() == today.to_dict()
    config.check_same_run(read(tmp_path), today)
    config.check_same_run(today, read(tmp_path))
    older = {
        name: value for name, value in OLD_DEFAULT.items() if name not in ("b2", "weight_decay", "layout", "target")
    }
    (tmp_path / "config.json").write_text(json.dumps(older))
    config.check_same_run(config.read_config(tmp_path), today)


def test_settings_that_moved_keep_their_values(tmp_path):
    today = config.complete(config.default())
    stored = read(tmp_path, b2=0.95, weight_decay=0.1, path="vp")
    assert stored.optimizer.to_dict() == {"name": "adamw", "b1": 0.9, "b2": 0.95, "weight_decay": 0.1}
    assert stored.path.to_dict() == {"name": "vp", "beta_min": 0.1, "beta_max": 20.0}
    with pytest.raises(UserError) as error:
        config.check_same_run(stored, today)
    for words in ("optimizer.b2 was 0.95, is 0.99", "optimizer.weight_decay was 0.1, is 0.0", "path.name was 'vp'"):
        assert words in str(error.value)
    stored = read(tmp_path, b2=0.95)
    config.check_same_run(stored, today, force=True)
    sharded = {"name": "fsdp", "shards": 4, "min_size": 2**10, "overrides": [["kernel", 1]]}
    stored = read(tmp_path, layout=sharded)
    assert stored.layout.to_dict() == sharded | {"overrides": (("kernel", 1),)}
    config.check_same_run(stored, today)  # the layout may change


@pytest.mark.parametrize("path", ["linaer", 3, {"nmae": "vp"}])
def test_an_old_path_that_never_was_is_refused(path, tmp_path):
    with pytest.raises(UserError, match=r"unknown path 'linaer', did you mean 'linear'|path takes a name"):
        read(tmp_path, path=path)
