"""Targets that are guided already: the network takes γ where it must, and a teacher has to fit."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import build, sampling
from flowguide.condition import given
from flowguide.config import read_config
from flowguide.errors import UserError
from flowguide.targets import GAMMA, with_gamma
from flowguide.training import loop
from tests.support.runs import same, small

TARGETS = {
    "model_guidance": {"name": "model_guidance", "gamma": 2.0},
    "guidance_free": {"name": "guidance_free", "low": 0.25},
    "distilled": {"name": "distilled", "gamma_range": (1.0, 4.0)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_guidance_is_trained_in_and_gamma_is_told(name, whole, data_dir, tmp_path):
    target = dict(TARGETS[name])
    if name == "distilled":
        target["workdir"] = str(whole[0])
    config = small(data_dir, target=target, steps=3)
    config.preview.update({"every": 8, "num": 8, "gammas": (9.0,), "solver": "euler", "steps": 2})
    state = loop.train(config, tmp_path)
    assert (tmp_path / "previews" / "00000003.png").exists()

    stored, run = read_config(tmp_path), sampling.load(tmp_path)
    assert same(run.params, state.ema)
    takes_gamma = build.target(stored).gammas is not None
    assert takes_gamma == (name != "model_guidance")
    fields = build.network_fields(stored, run.info)
    assert set(fields) == set(run.info.fields) | ({GAMMA} if name != "model_guidance" else set())
    c = given({"label": jnp.arange(4)})
    told = with_gamma(c, 2.0) if takes_gamma else c
    u = jax.jit(run.network.velocity)(run.params, jnp.full(4, 0.5), jnp.ones((4, 2)), told)
    assert np.isfinite(u).all()
    assert np.any(u)


def test_the_teacher_must_fit(whole, data_dir, tmp_path):
    def refused(message, workdir, **changes):
        with pytest.raises(UserError, match=message):
            loop.train(small(data_dir, target={"name": "distilled", "workdir": str(workdir)}, **changes), student)
        assert not student.exists()

    student = tmp_path / "student"
    refused("no run in .*nowhere", tmp_path / "nowhere")
    refused("has path .*linear.*; expected that of this run, .*trig", whole[0], path={"name": "trig"})
    teacher = tmp_path / "teacher"
    shutil.copytree(whole[0], teacher)
    for changes, message in (
        ({"target": {"name": "guidance_free"}}, "takes no γ"),
        ({"task": "classifier", "network": {"name": "mlp", "width": 16}}, "must be a velocity"),
        ({"drop_rate": 0.0}, "knows no ∅"),
    ):
        stored = json.loads((whole[0] / "config.json").read_text())
        (teacher / "config.json").write_text(json.dumps(stored | changes))
        refused(message, teacher)
