"""Every experiment builds: its settings exist, its network fits its data, a step of it has a finite shape."""

import importlib
import inspect
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from flowguide import build
from flowguide.condition import Condition, Label, Tokens, Vector
from flowguide.data import DataInfo
from flowguide.errors import UserError
from flowguide.losses import WEIGHTS
from flowguide.networks import NETWORKS
from flowguide.times import WARPS
from flowguide.training.ema import PROFILES
from flowguide.training.parallel import LAYOUTS

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
    build.check_numbers(config, 8)
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


WRONG = [
    ({"steps": "many"}, "steps takes a whole number, such as 10000; got 'many'"),
    ({"steps": 3.0}, "steps takes a whole number"),
    ({"steps": True}, "steps takes a whole number"),
    ({"steps": 2**63}, "steps takes a whole number"),
    ({"lr": "1e-3"}, "lr takes a number"),
    ({"lr": None}, "lr takes a number"),
    ({"flip": 1}, "flip takes True or False"),
    ({"decay": 3}, "decay takes text"),
    ({"drop_field_rate": 0.5}, "drop_field_rate takes numbers, such as .0.1, 0.1."),
    ({"data": 3}, "data has the settings data_dir, fields, .*; got 3"),
    ({"data": {"fields": "hat"}}, "data.fields takes texts"),
    ({"preview": {"gammas": (1, "abc")}}, "preview.gammas takes numbers"),
    ({"times": "uniform"}, "times takes a name and its settings, .*; got 'uniform'"),
    ({"times": {"name": ["uniform"]}}, "times takes a name and its settings"),
    (
        {"times": {"name": "logit_normal", "mean": "a"}},
        "times 'logit_normal': mean takes a number, such as 0.0; got 'a'",
    ),
    ({"times": {"name": "logit_normal", "std": (1.0,)}}, "std takes a number"),
    ({"times": {"name": "karras", "rho": 0}}, "times.rho must be"),
    ({"ema": {"name": "power", "std": "wide"}}, "ema 'power': std takes a number"),
    ({"weight": {"name": "min_snr", "limit": None}}, "weight 'min_snr': limit takes a number"),
    ({"coupling": {"name": 3}}, "coupling takes a name"),
    ({"coupling": {"name": "assigned", "condition_weight": "1"}}, "condition_weight takes a number"),
    (
        {"target": {"name": "distilled", "workdir": "w", "gamma_range": 3}},
        "gamma_range takes 2 numbers",
    ),
    ({"target": []}, "target takes a name"),
    ({"network": None}, "network takes a name"),
    ({"network": {"name": "unet", "width": "32"}}, "network 'unet': width takes a whole number, such as 32; got '32'"),
    ({"network": {"name": "unet", "multipliers": 3}}, "multipliers takes whole numbers"),
    ({"network": {"name": "dit", "remat": "yes"}}, "remat takes True or False"),
    ({"layout": {"name": "fsdp", "overrides": ((3, 1),)}}, "overrides takes what fits"),
    ({"task": {"name": "flow"}}, "task takes text"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_settings_of_a_wrong_type_are_named(changes, message, tmp_path):
    """Those of a config in memory, and of one that lies beside a run."""
    stored = build.default().to_dict()
    for name, value in changes.items():
        merged = name in ("data", "preview") and isinstance(value, dict)
        stored[name] = {**stored[name], **value} if merged else value
    (tmp_path / "config.json").write_text(json.dumps(stored))

    for config in (lambda: ConfigDict(stored), lambda: build.read_config(tmp_path)):
        with pytest.raises(UserError, match=message):
            everything(config(), INFO["avatars"])


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"null", b'"a"', b"\xff\xfe", b"[" * 100_000, b'{"steps": ' + b"9" * 5000]
)
def test_a_config_that_train_did_not_write_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config.json cannot be read .*restore it"):
        build.read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config.json cannot be read .*restore it"):
        build.read_config(tmp_path)


def leaves(tree, place=()):
    for name, value in tree.items():
        yield from leaves(value, (*place, name)) if isinstance(value, dict) else [((*place, name), value)]


def numeric(value):
    numbers = value if isinstance(value, tuple) else (value,)
    return bool(numbers) and all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)


REGISTRIES = {
    "coupling": build.COUPLINGS,
    "weight": WEIGHTS,
    "target": build.TARGETS,
    "times": WARPS,
    "ema": PROFILES,
    "network": NETWORKS,
    "layout": LAYOUTS,
}


def every_number():
    """The place of each setting with a number for its default, and the choice that has it."""
    for place, value in leaves(build.default().to_dict()):
        if numeric(value) and place[0] not in REGISTRIES:
            yield place, {}, value
    for group, registry in REGISTRIES.items():
        for name, make in registry.items():
            parameters = inspect.signature(make).parameters.values()
            for p in parameters:
                if numeric(p.default):
                    yield (group, p.name), {"name": name}, p.default


@pytest.mark.parametrize(("place", "choice", "usual"), list(every_number()), ids=str)
def test_no_number_may_be_nan_or_infinite(place, choice, usual):
    config = build.default().to_dict()
    node = config
    for name in place[:-1]:
        node = node[name]
    if choice:
        config[place[0]] = node = dict(choice)
    if choice.get("name") == "distilled":
        node["workdir"] = "somewhere"
    for bad in (math.nan, math.inf, -math.inf):
        node[place[-1]] = (bad,) * len(usual) if isinstance(usual, tuple) else bad
        with pytest.raises(UserError, match=f"{place[0]}|{place[-1]}") as error:
            everything(ConfigDict(config), INFO["mnist"])
        assert "\n" not in str(error.value)


def everything(config, info):
    """Builds all that checks settings."""
    build.check_numbers(config, 1)
    build.recipe(config)
    build.profile(config)
    build.layout(config, jax.devices()[:1])
    build.network(config, info)
