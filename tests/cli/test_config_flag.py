"""The flags --config=NAME and --config.SETTING=VALUE; named choices are switched before their settings are read."""

import importlib
import pkgutil

import pytest
from absl import flags

import flowguide
from flowguide import build, config
from flowguide.cli import command, plan, train
from flowguide.cli.config_flag import config_and_rest, load_config
from flowguide.errors import UserError
from tests.support.runs import ROOT, run


def parsed(*arguments, of=train.COMMAND):
    """The config that a command line gives."""
    return command.parse(of, "train.py", arguments)[0].config


POINTS = "--config=points"
SWITCHED = [
    (["--config.times.name=uniform"], "times", {"name": "uniform"}),
    (["--config.ema.name=power"], "ema", {"name": "power", "std": 0.05}),
    (
        ["--config.coupling.name=assigned", "--config.coupling.condition_weight=1"],
        "coupling",
        {"name": "assigned", "condition_weight": 1.0},
    ),
    (
        ["--config.path.name=vp", "--config.path.beta_min=0.05"],
        "path",
        {"name": "vp", "beta_min": 0.05, "beta_max": 20.0},
    ),
    (
        ["--config.path.beta_min=0.05", "--config.path.name=vp"],
        "path",
        {"name": "vp", "beta_min": 0.05, "beta_max": 20.0},
    ),
    (
        ["-config.path.beta_min", "0.05", "-config.path.name", "vp"],
        "path",
        {"name": "vp", "beta_min": 0.05, "beta_max": 20.0},
    ),
    (["--config.path=vp"], "path", {"name": "vp", "beta_min": 0.1, "beta_max": 20.0}),
    (["--config.path", "vp"], "path", {"name": "vp", "beta_min": 0.1, "beta_max": 20.0}),
    (["--config.path=vp", "--config.path=trig"], "path", {"name": "trig"}),
    (
        ["--config.optimizer.name=muon"],
        "optimizer",
        {"name": "muon", "beta": 0.95, "weight_decay": 0.0, "adam_b1": 0.9, "adam_b2": 0.99},
    ),
    (
        ["--config.optimizer.b2=0.95"],
        "optimizer",
        {"name": "adamw", "b1": 0.9, "b2": 0.95, "weight_decay": 0.0},
    ),
    (
        ["--config.network.name=dit", "--config.network.depth=3"],
        "network",
        {
            "name": "dit",
            "patch": 2,
            "width": 192,
            "depth": 3,
            "heads": 6,
            "ratio": 4,
            "time_scale": 1000.0,
            "time_features": 128,
            "positions": "sincos",
            "rope": False,
            "norm": "layer",
            "qk_norm": False,
            "mlp": "gelu",
            "bottleneck": 0,
            "class_tokens": 0,
            "class_tokens_from": 0,
            "registers": 0,
            "shared_film": False,
            "context": "keys",
            "field_tokens": False,
            "attention": "xla",
            "remat": False,
            "unroll": 0,
            "dtype": "float32",
        },
    ),
    # The experiment's own settings stay if the name is the same.
    (
        ["--config.network.name=mlp", "--config.network.depth=1"],
        "network",
        {"name": "mlp", "width": 96, "depth": 1, "refine": 0, "dtype": "float32"},
    ),
    # A classifier's networks take other settings.
    (["--config.task=classifier"], "network", {"name": "mlp", "width": 96, "depth": 3, "dtype": "float32"}),
    (
        ["--config.layout=fsdp", "--config.layout.shards=2"],
        "layout",
        {"name": "fsdp", "shards": 2, "min_size": 2**14, "overrides": ()},
    ),
    (
        ["--config.target.name=guidance_free", "--config.target.low=0.5"],
        "target",
        {"name": "guidance_free", "low": 0.5},
    ),
]


@pytest.mark.parametrize(("arguments", "choice", "expected"), SWITCHED)
def test_a_choice_is_switched_and_its_settings_follow(arguments, choice, expected):
    for asked in ([POINTS, *arguments], [*arguments, POINTS]):
        c = parsed(*asked)
        assert c[choice].to_dict() == expected
        config.check_types(c)
        others = {name: c[name].to_dict() for name in config.CHOICES if name != choice}
        assert others == {name: load_config("points")[name].to_dict() for name in others}
        build.path(c)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config.data.fields=hat,beard"],
        ["--config.data.fields", "hat,beard"],
        ["--config.data.fields=('hat','beard')"],
    ],
)
def test_names_are_separated_by_commas(arguments):
    assert parsed(POINTS, *arguments).data.fields == ("hat", "beard")
    assert parsed(POINTS, "--config.data.fields=").data.fields == ()
    assert parsed(POINTS, "--config.data.fields=3d").data.fields == ("3d",)


def test_what_is_parsed_is_what_the_config_file_says():
    assert parsed(POINTS).to_dict() == load_config("points").to_dict()
    assert parsed(POINTS, "--config.lr=3e-4", "--config.drop_field_rate=(0.0,0.5)").lr == 3e-4


@pytest.mark.parametrize(
    "arguments",
    [["--config", "avatars"], ["--config=avatars"], ["-config=avatars"], ["--config=configs/avatars.py"]],
)
def test_a_config_is_named_or_a_file(arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    c = parsed(*arguments, "--config.steps=3")
    assert (c.data.name, c.network.refine, c.steps) == ("avatars", 64, 3)


def test_a_config_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parsed("--config=captions").data.fields == ("caption",)  # which changes that of avatars
    (tmp_path / "mine.py").write_text("from flowguide.cli.config_flag import load_config\n")
    with pytest.raises(UserError, match=r"cannot be loaded: mine\.py: AttributeError"):
        parsed("--config=mine.py")
    (tmp_path / "mine.py").write_text(
        "import their_points\n\ndef get_config():\n    c = their_points.get_config()\n    c.steps = 7\n    return c\n"
    )
    (tmp_path / "their_points.py").write_text((ROOT / "configs" / "points.py").read_text())
    assert parsed("--config=mine.py").steps == 7


MISTAKES = [
    ([], "expected --config=NAME, an experiment such as avatars"),
    (["--config.lr=1"], "expected --config=NAME"),
    (["--config=avatrs"], "unknown config 'avatrs', did you mean 'avatars'?: there are avatars, avatars_best, "),
    (["--config="], "the config file cannot be loaded: there is no file"),
    (["--config=configs"], "the config file cannot be loaded: there is no file configs"),
    (["--config=nowhere.py"], "the config file cannot be loaded: there is no file nowhere.py"),
    ([POINTS, "--config.path=lineer"], "unknown path 'lineer', did you mean 'linear'?: there are linear, trig, vp"),
    ([POINTS, "--config.ema.name=powr"], "unknown ema 'powr', did you mean 'power'?: there are constant, power"),
    ([POINTS, "--config.times.name=uniforn"], "unknown times 'uniforn', did you mean 'uniform'?"),
    ([POINTS, "--config.coupling.name="], "unknown coupling ''"),
    ([POINTS, "--config.optimizer.name=adam"], "unknown optimizer 'adam', did you mean 'adamw'?"),
    ([POINTS, "--config.network=mlpp"], "unknown network 'mlpp', did you mean 'mlp'?"),
    ([POINTS, "--config.network=mlpp"], "or package.module:Class of your own"),
    ([POINTS, "--config.task=classifier", "--config.network=unet"], "unknown classifier 'unet': there are mlp"),
    ([POINTS, "--config.drop_rte=0.1"], "no setting 'drop_rte': Did you mean \"drop_rate\""),
    ([POINTS, "--config.data.nmae=digits"], "no setting 'nmae': Did you mean \"name\""),
    ([POINTS, "--config.network.widht=3"], "no setting 'widht': Did you mean \"width\""),
    ([POINTS, "--config.path=vp", "--config.path.beta_mni=1"], "no setting 'beta_mni': Did you mean \"beta_min\""),
    ([POINTS, "--config.path.beta_min=1"], "no setting 'beta_min'"),  # of another path
    ([POINTS, "--wrkdir=x"], "unknown flag --wrkdir, did you mean 'workdir'?"),
    ([POINTS, "points"], "got 'points', expected flags of the form --name=value"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes_are_refused_with_the_likely_name(arguments, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as error:
        parsed(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_of_a_wrong_type_are_refused():
    for argument in ("--config.steps=many", "--config.network.width=wide", "--config.flip=perhaps"):
        with pytest.raises(flags.Error, match=argument.partition("=")[0].lstrip("-")):
            parsed(POINTS, argument)


def test_what_is_no_config_flag_is_left():
    values = flags.FlagValues()
    rest, data = config_and_rest(values, [POINTS, "--workdir=x", "--config.steps=3", "word"])
    assert data is None
    assert [argument for argument in rest if "config" not in argument] == ["--workdir=x", "word"]


def test_every_command_has_flags_of_its_own():
    """Two commands in one process do not meet: plan's flags are not train's."""
    assert parsed(POINTS, "--devices=3", of=plan.COMMAND).data.name == "mixture2d"
    with pytest.raises(UserError, match="unknown flag --devices"):
        parsed(POINTS, "--devices=3")


def test_imports_define_no_flags():
    for module in pkgutil.walk_packages(flowguide.__path__, "flowguide."):
        importlib.import_module(module.name)  # __main__ runs nothing, as its name is another
    assert not [name for name in flags.FLAGS.flags_by_module_dict() if name.startswith("flowguide")]


def test_the_help_of_the_program():
    done = run("-m", "flowguide", "--help")
    assert done.returncode == 0
    for word in ("usage: flowguide COMMAND", "train", "sample", "evaluate", "plan", "data", "lab"):
        assert word in done.stdout
    alone = run("-m", "flowguide")
    assert (alone.returncode, alone.stdout) == (2, done.stdout)
    version = run("-m", "flowguide", "--version")
    assert (version.returncode, version.stdout.strip()) == (0, flowguide.__version__)


def test_an_unknown_command():
    done = run("-m", "flowguide", "tarin", "--config=points")
    assert done.returncode == 2
    assert done.stderr.startswith("flowguide: error: unknown command 'tarin', did you mean 'train'?\n")
    assert "usage: flowguide COMMAND" in done.stderr
    assert not done.stdout


@pytest.mark.thorough
def test_the_help_of_a_command():
    done = run("-m", "flowguide", "train", "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("flowguide train --flag=value ...")
    for word in ("--workdir", "--config", "--stop_after", "--config.path.name=linear", "vp beta_min=0.1", "muon beta="):
        assert word in done.stdout
    assert not done.stderr
