"""One step, by several routes: what ``train`` runs is what ``assemble`` gives, what ``plan`` plans, and by hand."""

import json

import jax
import numpy as np
import pytest

from flowguide import build, losses, paths, sampling, times
from flowguide.config import complete
from flowguide.data import batches
from flowguide.networks import MLP, as_network, count_parameters
from flowguide.planning import plan
from flowguide.training import loop
from flowguide.training.assembly import assemble
from flowguide.training.parallel import parallelize
from flowguide.training.step import make_loss
from tests.support.runs import same, small

CONFIGS = {
    "the simplest": {},
    "of another kind throughout": {
        "accumulate": 2,
        "coupling": {"name": "assigned"},
        "ema": {"name": "power"},
        "optimizer": {"name": "muon"},
        "path": {"name": "trig"},
        "stratified": True,
        "target": {"name": "guidance_free"},
    },
}


@pytest.fixture
def one_device(monkeypatch):
    real = jax.devices
    monkeypatch.setattr(jax, "devices", lambda *backend: real(*backend)[:1])


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_train_and_plan_take_the_step_that_is_assembled(name, data_dir, tmp_path, one_device):
    config = small(data_dir, steps=1, log_every=1, **CONFIGS[name])
    trained = loop.train(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]

    data = build.dataset(config, config.data.split)
    made = assemble(complete(config), data.info, jax.devices())
    batch = next(batches(data, config.batch_size, config.seed))
    batch = batch._replace(index=np.arange(config.batch_size, dtype=np.int32))
    state = made.init(made.init_key, shardings=made.layout.shardings)
    stepped, metrics = parallelize(made.layout, made.step_with(1), donate=False)(state, batch)
    assert same(stepped, trained)
    assert same(stepped.ema, sampling.load(tmp_path).params)
    assert lines[0]["loss"] == float(metrics["loss"])
    assert not same(stepped.params, state.params)

    by_jit, metrics = jax.jit(made.step_with(1)(lambda tree: tree))(state, batch)
    assert lines[0]["loss"] == pytest.approx(float(metrics["loss"]), rel=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (stepped.params, by_jit.params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

    planned = plan(config, data.info, jax.devices())
    assert planned.parameters == count_parameters(trained.params)
    assert planned.state == sum(leaf.nbytes for leaf in jax.tree.leaves(trained))


@pytest.mark.thorough
@pytest.mark.parametrize("jitter", [0.0, 0.4])
def test_the_loss_is_what_the_config_says(data_dir, jitter):
    config = complete(small(data_dir, jitter=jitter))
    data = build.dataset(config, config.data.split)
    made = assemble(config, data.info, jax.devices())
    batch = next(batches(data, config.batch_size, config.seed))
    batch = batch._replace(index=np.arange(config.batch_size, dtype=np.int32))
    state = made.init(made.init_key)
    _, metrics = parallelize(made.layout, made.step_with(1), donate=False)(state, batch)

    network = as_network(lambda rngs: MLP((2,), data.info.fields, width=16, depth=2, rngs=rngs))
    init_key, draw_key, test_key = jax.random.split(jax.random.key(0), 3)
    params = network.init(init_key)
    assert same(params, state.params)
    recipe = losses.Recipe(paths.linear(), times.logit_normal(), drop_rate=0.1)

    def noisy(keys, x, coins):
        noise = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 4), (2,)))(keys)
        return x + jitter * noise

    by_hand = make_loss(network, recipe, noisy, draw_key)
    assert float(metrics["loss"]) == pytest.approx(float(by_hand(params, 0, batch)), rel=1e-5)
    undropped = make_loss(
        network, recipe._replace(drop_rate=0.0, drop_field_rate=0.0), lambda keys, x, coins: x, test_key
    )
    assert float(made.validation_loss(params, 0, batch)) == pytest.approx(float(undropped(params, 0, batch)), rel=1e-5)
