"""Settings of a wrong type or out of range, and config files that cannot be, are refused by name."""

import json
import math

import jax
import pytest
from ml_collections import ConfigDict

from flowguide import build, config, kinds, model
from flowguide.errors import UserError
from flowguide.schema import DataInfo, Images, Label

AVATARS = DataInfo("avatars", Images((16, 16, 3)), {"hat": Label(("a", "b")), "beard": Label(("a", "b"))})
MNIST = DataInfo("mnist", Images((28, 28, 1)), {"label": Label(tuple("0123456789"))})

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
    (
        {"data": 3},
        "data has the settings name, path, example, split, test_split, fields, known, data_dir, image_size; got 3",
    ),
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
    ({"path": ["vp"]}, "path takes a name and its settings"),
    ({"path": {"name": "vp", "beta_min": "low"}}, "path 'vp': beta_min takes a number, such as 0.1; got 'low'"),
    ({"path": {"name": "vp", "beta_max": -1.0}}, "path.beta_max must be finite and above 0; got -1.0"),
    ({"optimizer": "adamw"}, "optimizer takes a name and its settings"),
    ({"optimizer": {"name": "adamw", "b2": 1.0}}, "optimizer.b2 must be from 0 to less than 1; got 1.0"),
    ({"optimizer": {"name": "sgd", "nesterov": 1}}, "optimizer 'sgd': nesterov takes True or False"),
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
    stored = config.default().to_dict()
    for name, value in changes.items():
        merged = name in ("data", "preview") and isinstance(value, dict)
        stored[name] = {**stored[name], **value} if merged else value
    (tmp_path / "config.json").write_text(json.dumps(stored))

    for make in (lambda: ConfigDict(stored), lambda: config.read_config(tmp_path)):
        with pytest.raises(UserError, match=message):
            everything(make(), AVATARS)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b'[["steps", 3]]', b"3", b"null", b'"a"', b"\xff\xfe", b"[" * 100_000, b'{"steps": ' + b"9" * 5000],
)
def test_a_config_that_train_did_not_write_is_refused(content, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config.json cannot be read .*restore it"):
        config.read_config(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(UserError, match=r"config.json cannot be read .*restore it"):
        config.read_config(tmp_path)


def leaves(tree, place=()):
    for name, value in tree.items():
        yield from leaves(value, (*place, name)) if isinstance(value, dict) else [((*place, name), value)]


def numeric(value):
    numbers = value if isinstance(value, tuple) else (value,)
    return bool(numbers) and all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)


def every_number():
    """The place of each setting with a number for its default, and the choice that has it."""
    for place, value in leaves(config.default().to_dict()):
        if numeric(value) and place[0] not in config.CHOICES:
            yield place, {}, value
    for choice in config.CHOICES:
        for name, make in config.OPTIONS[choice].by_name.items():
            for p in kinds.parameters(make).values():
                if numeric(p.default):
                    yield (choice, p.name), {"name": name}, p.default


@pytest.mark.parametrize(("place", "choice", "usual"), list(every_number()), ids=str)
def test_no_number_may_be_nan_or_infinite(place, choice, usual):
    c = config.default().to_dict()
    node = c
    for name in place[:-1]:
        node = node[name]
    if choice:
        c[place[0]] = node = dict(choice)
    if choice.get("name") == "distilled":
        node["workdir"] = "somewhere"
    for bad in (math.nan, math.inf, -math.inf):
        node[place[-1]] = (bad,) * len(usual) if isinstance(usual, tuple) else bad
        with pytest.raises(UserError, match=f"{place[0]}|{place[-1]}") as error:
            everything(ConfigDict(c), MNIST)
        assert "\n" not in str(error.value)


def everything(c, info):
    """Builds all that checks settings."""
    config.check_numbers(c, 1)
    build.recipe(c)
    build.average(c)
    build.optimizer(c)
    build.layout(c, jax.devices()[:1])
    model.from_config(c, info)
