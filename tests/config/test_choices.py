"""Named choices: every option can be built from its name alone, mistyped ones are named, networks may be foreign."""

import importlib
import inspect
import re
import sys

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from flowguide import build, config, model, sampling
from flowguide.cli import command
from flowguide.cli import train as cli_train
from flowguide.cli.config_flag import load_config
from flowguide.config.choices import choose
from flowguide.config.defaults import SETTINGS
from flowguide.errors import UserError
from flowguide.schema import DataInfo, Images, Label
from flowguide.training import loop
from tests.support.runs import small

INFO = DataInfo("toy", Images((16, 16, 3)), {"label": Label(("a", "b"))})
TASKS = ("classifier", "autoencoder")  # with networks of their own
EVERY = [(choice, name) for choice, options in config.OPTIONS.items() for name in options.by_name]


def with_option(choice, name):
    """The default config with one option, by its name alone."""
    c = config.default()
    if choice in TASKS:
        c.task, choice = choice, "network"
    elif choice == "network":
        c.network = {"name": "mlp"}
    else:
        c.network = {"name": "mlp", "width": 8, "depth": 1}
    c[choice] = ConfigDict({"name": name})
    return c


@pytest.mark.parametrize(("choice", "name"), EVERY)
def test_every_option_can_be_built_from_its_name_alone(choice, name):
    c = with_option(choice, name)
    config.complete(c)
    chosen = c["network" if choice in TASKS else choice]
    make = config.OPTIONS[choice].by_name[name]
    function = make.__init__ if inspect.isclass(make) else make
    taken = set(inspect.signature(function).parameters) - set(config.OPTIONS[choice].given)
    assert set(chosen) == {"name", *taken}
    config.check_numbers(c, 1)  # its settings are in their ranges
    if (choice, name) == ("target", "distilled"):
        with pytest.raises(UserError, match="target 'distilled' has a teacher; got no workdir: name the folder"):
            build.target(c)
        return
    if (choice, name) == ("coupling", "sinkhorn"):
        pytest.importorskip("ott")
    checked(c)


def test_completing_twice_changes_nothing():
    once = config.complete(config.default()).to_dict()
    assert config.complete(ConfigDict(once)).to_dict() == once


def test_completing_keeps_what_is_given():
    c = config.default()
    c.path = {"name": "vp", "beta_min": 0.05}
    assert config.complete(c).path.to_dict() == {"name": "vp", "beta_min": 0.05, "beta_max": 20.0}


def test_the_help_has_every_setting_and_every_option():
    text = config.settings_help()
    for name, setting in SETTINGS.items():
        assert f"--config.{name}" in text
        assert setting.meaning in text
    for choice, name in EVERY:
        make = config.OPTIONS[choice].by_name[name]
        meaning = str(inspect.getdoc(make)).split("\n\n")[0].replace("\n", " ")
        assert meaning in text, (choice, name)
        assert len(meaning) > 5


MISTYPED = [
    ("c.drop_rte = 0.3", "no setting 'drop_rte', did you mean 'drop_rate'?"),
    ("c.data.nmae = 'digits'", "no setting 'data.nmae', did you mean 'data.name'?"),
    ("c.network = {'name': 'unet', 'widht': 3}", "network 'unet' has no setting 'widht', did you mean 'width'?"),
    ("c.network = {'name': 'unnet'}", "unknown network 'unnet', did you mean 'unet'?"),
    ("c.path = {'name': 'lineer'}", "unknown path 'lineer', did you mean 'linear'?"),
    ("c.path = {'name': 'vp', 'beta_mni': 1.0}", "path 'vp' has no setting 'beta_mni', did you mean 'beta_min'?"),
    ("c.optimizer.weight_decy = 0.1", "optimizer 'adamw' has no setting 'weight_decy', did you mean 'weight_decay'?"),
    ("c.times.men = 0.1", "times 'logit_normal' has no setting 'men', did you mean 'mean'?"),
    ("c.task = 'clasifier'", "unknown task 'clasifier', did you mean 'classifier'?"),
    ("del c.network", "the setting network is missing"),
    ("del c.data.name", "the setting data.name is missing: its default is 'avatars'"),
    ("c.path = 'vp'", "mine.py: TypeError"),
]


@pytest.mark.parametrize(("line", "message"), MISTYPED)
def test_a_mistyped_key_of_a_config_file_is_refused_with_the_likely_name(line, message, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        f"from flowguide import config\n\ndef get_config():\n    c = config.default()\n    {line}\n    return c\n"
    )
    with pytest.raises(UserError, match=re.escape(message)):
        checked(load_config(str(file)))


def checked(c):
    """Builds all that a config names."""
    config.check_numbers(c, 1)
    build.task(c)
    build.recipe(c)
    build.optimizer(c)
    build.average(c)
    build.layout(c, jax.devices()[:1])
    model.from_config(c, INFO)


def test_a_config_in_python_is_checked_before_it_is_completed(data_dir, tmp_path):
    c = small(data_dir)
    del c.network
    with pytest.raises(UserError, match="the setting network is missing"):
        loop.train(c, tmp_path)
    c = small(data_dir, path={"name": "vpp"})
    with pytest.raises(UserError, match="unknown path 'vpp', did you mean 'vp'"):
        loop.train(c, tmp_path)
    assert not list(tmp_path.iterdir())


def test_paths_of_the_same_settings_are_one_path():
    """Samplers compare paths, and compiled programs are kept by them."""
    a, b = (with_option("path", "vp") for _ in range(2))
    assert build.path(config.complete(a)) is build.path(config.complete(b))
    b.path.beta_min = 0.2
    assert build.path(a) is not build.path(b)


NETWORK = '''
from flax import nnx


class Mine(nnx.Module):
    """A line."""

    def __init__(self, shape, fields, *, width: int = 8, rngs: nnx.Rngs):
        self.inlet = nnx.Linear(shape[-1], width, rngs=rngs)
        self.outlet = nnx.Linear(width, shape[-1], rngs=rngs)

    def __call__(self, t, x, c):
        return self.outlet(nnx.silu(self.inlet(x) + t[:, None]))


NUMBER = 3
'''


@pytest.fixture
def own_package(tmp_path, monkeypatch):
    """A package of the user's own; forgets that it was imported when called."""
    (tmp_path / "own_networks").mkdir()
    (tmp_path / "own_networks" / "__init__.py").touch()
    (tmp_path / "own_networks" / "net.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(tmp_path)

    def forget():
        for name in ("own_networks", "own_networks.net"):
            sys.modules.pop(name, None)

    yield forget
    forget()


@pytest.mark.slow
def test_a_network_of_ones_own_is_trained_and_sampled_but_never_imported_unasked(own_package, data_dir, tmp_path):
    settings = {"steps": 3, "warmup": 1, "batch_size": 16, "eval_examples": 16, "preview.every": 0}
    settings |= {"data.data_dir": data_dir, "data.split": "train[:4%]", "network.width": 4}
    arguments = [f"--config.{name}={value}" for name, value in settings.items()]
    asked = ["--config=points", "--config.network.name=own_networks.net:Mine", *arguments]
    values, _ = command.parse(cli_train.COMMAND, "train.py", asked)
    workdir = tmp_path / "run"
    loop.train(values.config, workdir, stop_after=2)
    state = loop.train(values.config, workdir)  # what is trained there is trusted by the one who trains it
    assert int(state.step) == 3
    assert state.params["inlet"]["kernel"].shape == (2, 4)

    own_package()
    with pytest.raises(UserError, match=r"the network 'own_networks.net:Mine', code outside of flowguide") as error:
        sampling.load(workdir)
    assert "--trust_code" in str(error.value)
    with pytest.raises(UserError, match="code outside of flowguide"):
        loop.train(small(data_dir, steps=3), workdir)
    assert "own_networks.net" not in sys.modules

    loaded = sampling.load(workdir, trust_code=True)
    assert "own_networks.net" in sys.modules
    x = sampling.sample(loaded, "3", num=3, config=sampling.SamplerConfig("heun", 2)).x
    assert x.shape == (3, 2)
    assert np.isfinite(x).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_networks.net:Yours", "network 'own_networks.net:Yours' cannot be imported"),
        ("own_networks.nte:Mine", "network 'own_networks.nte:Mine' cannot be imported"),
        ("own_networks.net:NUMBER", "network 'own_networks.net:NUMBER' is of type int"),
        ("own_networks:net", "network 'own_networks:net' is of type module"),
        (":", "network ':' cannot be imported"),
    ],
)
def test_a_network_of_ones_own_that_cannot_be_had(own_package, name, message):
    importlib.import_module("own_networks.net")

    c = config.default()
    c.network = {"name": name}
    with pytest.raises(UserError, match=r"give package\.module:Class") as error:
        config.complete(c)
    assert message in str(error.value)


def test_settings_of_a_network_of_ones_own_are_checked(own_package):
    c = config.default()
    c.network = {"name": "own_networks.net:Mine", "widht": 4}
    with pytest.raises(UserError, match="net:Mine' has no setting 'widht', did you mean 'width'"):
        model.from_config(config.complete(c), INFO)
    c.network = {"name": "own_networks.net:Mine", "width": "4"}
    with pytest.raises(UserError, match="width takes a whole number, such as 8; got '4'"):
        model.from_config(c, INFO)


def test_only_networks_may_be_foreign():
    for choice in config.CHOICES:
        c = config.default()
        c[choice] = ConfigDict({"name": "os:getcwd"})
        if choice == "network":
            assert config.OPTIONS[choice].foreign
            continue
        with pytest.raises(UserError, match=f"unknown {choice} 'os:getcwd': there are"):
            config.complete(c)
        with pytest.raises(UserError, match=f"unknown {choice} 'os:getcwd': there are"):
            choose(choice, c)
