"""Every experiment builds: its settings exist, its network fits its data, a step of it has a finite shape."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from flowguide import build
from flowguide.condition import Condition, Label, Tokens, Vector
from flowguide.data import DataInfo
from flowguide.errors import UserError

TEN = {"label": Label(tuple("0123456789"))}
INFO = {
    "avatars": DataInfo("avatars", (16, 16, 3), "image", {"hat": Label(("a", "b")), "beard": Label(("a", "b"))}),
    "captions": DataInfo("avatars", (16, 16, 3), "image", {"caption": Tokens(5, ("", "a", "b"))}),
    "digits": DataInfo("digits", (8, 8, 1), "image", TEN),
    "digits_classifier": DataInfo("digits", (8, 8, 1), "image", TEN),
    "points": DataInfo("mixture2d", (2,), "points", TEN),
    "mnist": DataInfo("mnist", (28, 28, 1), "image", TEN),
    "fashion_mnist": DataInfo("fashion_mnist", (28, 28, 1), "image", TEN),
    "cifar10": DataInfo("cifar10", (32, 32, 3), "image", TEN),
    "imagenet64": DataInfo("imagenet2012", (64, 64, 3), "image", TEN),
}


def test_every_config_is_in_the_table():
    assert set(INFO) == {p.stem for p in (Path(__file__).parent.parent / "configs").glob("*.py")}


@pytest.mark.parametrize("name", sorted(INFO))
def test_config_builds(name):
    config, info = importlib.import_module(f"configs.{name}").get_config(), INFO[name]
    build.check_sizes(config, 8)
    build.recipe(config)
    build.optimizer(config)
    build.profile(config)
    network = build.network(config, info)
    assert set(config) == set(build.default())
    params = jax.eval_shape(network.init, jax.random.key(0))
    value = {k: jnp.zeros((2, f.length) if isinstance(f, Tokens) else 2, int) for k, f in info.fields.items()}
    c = Condition(value, {k: jnp.ones(2, bool) for k in value})
    out = jax.eval_shape(network.velocity, params, jnp.zeros(2), jnp.zeros((2, *info.shape)), c)
    assert out.shape == ((2, *info.shape) if config.task == "flow" else (2, 10))
    assert out.dtype == jnp.float32


def test_a_field_named_gamma_and_data_without_fields_are_refused():
    config = build.default()
    config.network = {"name": "mlp", "width": 8}
    config.target = {"name": "guidance_free"}
    with pytest.raises(UserError, match="adds a field 'gamma'; points has one"):
        build.network(config, DataInfo("points", (2,), "points", {"gamma": Vector(1)}))
    with pytest.raises(UserError, match="guided towards conditions; points has none"):
        build.network(config, DataInfo("points", (2,), "points", {}))
    config.update({"task": "classifier", "target": {"name": "plain"}})
    with pytest.raises(UserError, match=r"classifier 'mlp' for points .*one label apart; got fields \['a', 'b'\]"):
        build.network(config, DataInfo("points", (2,), "points", {"a": Vector(1), "b": Vector(1)}))
