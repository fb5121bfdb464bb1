"""Every experiment builds: its settings exist, its network fits its data, and what it gives has the right shape."""

import ast
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from flowguide import build, config, model
from flowguide.cli.config_flag import load_config
from flowguide.condition import Condition
from flowguide.errors import UserError
from flowguide.schema import DataInfo, Images, Label, Latents, Tokens, Vector, Vectors
from tests.support.runs import ROOT

TEN = {"label": Label(tuple("0123456789"))}
SD = Latents((256, 256, 3), (32, 32, 4), "a", scale=(1 / 0.18215,) * 4, flips=True)
INFO = {
    "avatars": DataInfo("avatars", Images((16, 16, 3)), {"hat": Label(("a", "b")), "beard": Label(("a", "b"))}),
    "avatars_best": DataInfo("avatars", Images((16, 16, 3)), {"hat": Label(("a", "b")), "beard": Label(("a", "b"))}),
    "avatars_demo": DataInfo("avatars", Images((16, 16, 3)), {"hat": Label(("a", "b")), "beard": Label(("a", "b"))}),
    "avatars_vae": DataInfo("avatars", Images((16, 16, 3)), {"hat": Label(("a", "b"))}),
    "avatars_latent": DataInfo("avatars_latents", Latents((16, 16, 3), (8, 8, 4), "a"), {"hat": Label(("a", "b"))}),
    "captions": DataInfo("avatars", Images((16, 16, 3)), {"caption": Tokens(5, ("", "a", "b"))}),
    "captions_mmdit": DataInfo("avatars", Images((16, 16, 3)), {"caption": Tokens(5, ("", "a", "b"))}),
    "digits": DataInfo("digits", Images((8, 8, 1)), TEN),
    "digits_classifier": DataInfo("digits", Images((8, 8, 1)), TEN),
    "points": DataInfo("mixture2d", Vectors((2,)), TEN),
    "mnist": DataInfo("mnist", Images((28, 28, 1)), TEN),
    "fashion_mnist": DataInfo("fashion_mnist", Images((28, 28, 1)), TEN),
    "fashion_mnist_cpu": DataInfo("fashion_mnist", Images((28, 28, 1)), TEN),
    "cifar10": DataInfo("cifar10", Images((32, 32, 3)), TEN),
    "imagenet64": DataInfo("imagenet2012", Images((64, 64, 3)), TEN),
    "sit_b2_imagenet256": DataInfo("imagenet256_latents", SD, TEN),
    "sit_xl2_imagenet256": DataInfo("imagenet256_latents", SD, TEN),
    "lightningdit_xl1_imagenet256": DataInfo(
        "imagenet256_latents16", Latents((256, 256, 3), (16, 16, 32), "a", flips=True), TEN
    ),
    "jit_b16_imagenet256": DataInfo("imagenet2012", Images((256, 256, 3)), TEN),
}


def test_every_config_is_in_the_table():
    assert set(INFO) == {p.stem for p in (ROOT / "configs").glob("*.py")}


@pytest.mark.thorough
@pytest.mark.parametrize("name", sorted(INFO))
def test_config_builds(name):
    c, info = load_config(name), INFO[name]
    config.check_numbers(c, 8)
    build.recipe(c)
    build.optimizer(c)
    build.average(c)
    network = model.from_config(c, info).network
    assert set(c) == set(config.default())
    params = jax.eval_shape(network.init, jax.random.key(0))
    value = {k: jnp.zeros((2, f.length) if isinstance(f, Tokens) else 2, int) for k, f in info.fields.items()}
    given = Condition(value, {k: jnp.ones(2, bool) for k in value})
    first = jax.random.split(jax.random.key(0), 2) if c.task == "autoencoder" else jnp.zeros(2)
    found: Any = jax.eval_shape(network.velocity, params, first, jnp.zeros((2, *info.model_shape)), given)
    out = found.x if c.task == "autoencoder" else found
    assert out.shape == ((2, 10) if c.task == "classifier" else (2, *info.model_shape))
    assert out.dtype == jnp.float32


@pytest.mark.parametrize("name", sorted(INFO))
def test_every_config_says_what_it_runs_on_and_for_how_long(name):
    said = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text())) or ""
    assert f"{name}" in said
    assert re.search(r"\b(CPUs?|GPU|accelerators)\b", said)
    assert re.search(r"\d (s|min|minutes|hours?)\b|half an hour|times of mnist", said)


def test_a_field_named_gamma_and_data_without_fields_are_refused():
    c = config.default()
    c.network = {"name": "mlp", "width": 8}
    c.target = {"name": "guidance_free"}
    with pytest.raises(UserError, match="adds a field 'gamma'; points has one"):
        model.from_config(c, DataInfo("points", Vectors((2,)), {"gamma": Vector(1)}))
    with pytest.raises(UserError, match="guided towards conditions; points has none"):
        model.from_config(c, DataInfo("points", Vectors((2,)), {}))
    c.update({"task": "classifier", "target": {"name": "plain"}})
    with pytest.raises(UserError, match=r"classifier 'mlp' for points .*one label apart; got fields \['a', 'b'\]"):
        model.from_config(c, DataInfo("points", Vectors((2,)), {"a": Vector(1), "b": Vector(1)}))
