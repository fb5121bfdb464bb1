"""The plan of a run: exact where it says so, without the data, and refused in one line where it cannot be."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from flowguide import build
from flowguide.config import default
from flowguide.model import from_config
from flowguide.planning import CHIPS, bytes_text, plan, time_text
from flowguide.training.step import init_state
from tests.support.runs import ROOT, refused, refused_here


def config(**layout):
    c = default()
    c.network = {"name": "dit", "width": 32, "depth": 4, "heads": 2, "patch": 4}
    c.layout.update(layout)
    c.batch_size = 16
    return c


@pytest.mark.slow
def test_memory_of_a_device_falls_with_the_shards():
    """State by the rule, leaf by leaf; operations and parameters do not depend on the layout."""
    c = config()
    info, (optimizer, _) = build.data_info(c), build.optimizer(c)
    like = jax.eval_shape(lambda: init_state(from_config(c, info).network, optimizer, jax.random.key(0)))
    total = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(like))
    whole = plan(c, info, jax.devices())
    assert (whole.state, whole.state_each, whole.shards, whole.best_shards) == (total, total, 1, 1)
    assert whole.parameters == sum(a.size for a in jax.tree.leaves(like.params))
    for shards in (2, 8):
        made = plan(config(name="fsdp", shards=shards, min_size=100), info, jax.devices())
        sizes = [
            a.size // (shards if a.size >= 100 and any(n % shards == 0 for n in a.shape) else 1)
            for a in jax.tree.leaves(like)
        ]
        assert made.state_each == 4 * sum(sizes)
        assert made.state_each / total == pytest.approx(1 / shards, rel=0.1)
        assert (made.operations, made.parameters, made.shards) == (whole.operations, whole.parameters, shards)
        assert made.best_shards == 8
    c = config(name="fsdp", shards=2, overrides=((r"params/outlet/kernel$", 0), ("blocks/film", 1)))
    assert plan(c, info, jax.devices()).best_shards in (2, 4, 8)  # where an override fits, others are not tried
    assert whole.preview == 0 < made.preview == 4 * made.parameters
    assert whole.batch == 2 * (16 * 16 * 3 + 4 * len(info.fields) + 4)


def run(*arguments):
    command = [sys.executable, "plan.py", *arguments]
    env = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_command_line_plans_what_is_not_there(tmp_path):
    """A set that nobody has prepared, a shape that no set has, more devices than the tests."""
    done = run(
        "--config=configs/imagenet64.py",
        f"--config.data.data_dir={tmp_path}",
        "--shape=16,16,4",
        "--config.network.width=96",
        "--config.network.depth=2",
        "--config.network.heads=4",
        "--config.batch_size=64",
        "--config.layout.name=fsdp",
        "--devices=64",
        "--chip=h100",
        "--mfu=0.5",
    )
    assert done.returncode == 0, done.stderr
    assert "dit on imagenet2012 (16, 16, 4), 64 devices, fsdp, 64 shards" in done.stdout
    assert "1 of 64 examples" in done.stdout
    assert "50% of 989 TFLOP/s" in done.stdout
    assert "--config.layout.shards=32 would leave least of the state on a device" in done.stdout
    assert "fits" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_data_of_a_file_are_planned_for(tmp_path):
    """Without a config one is made for them; a config is taken with the file's columns."""
    rows = "".join(f"{x},{2 * x},{x % 2}\n" for x in np.linspace(0.5, 9, 30))
    (tmp_path / "t.csv").write_text("a,b,c\n" + rows)
    data = [f"--data={tmp_path / 't.csv'}", "--fields=c", "--devices=1"]
    for config, example in ([], "(2,)"), (["--config=points", "--example=a"], "(1,)"):
        done = run(*data, *config)
        assert done.returncode == 0, done.stderr
        assert f"mlp on t {example}, 1 devices" in done.stdout


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fields=a"], "--fields is about --data=PATH"),
        (["--data=nowhere.csv"], "got nowhere.csv, which does not exist"),
        (["--data=avatars", "--minutes=3"], "unknown flag --minutes"),
        ([], "expected --config=NAME"),
        (["--config=configs/nowhere.py"], "the config file cannot be loaded: there is no file configs/nowhere.py"),
        (["--config=README.md"], "the config file cannot be loaded: README.md is not a Python file"),
        (["--config=configs/avatars.py", "--memory=0"], "--memory is a positive number; got 0"),
        (["--config=configs/avatars.py", "--chip=v9"], "value should be one of <v4|v5e"),
        (["--config=configs/avatars.py", "--mfu=40"], "--mfu is a share of the peak, over 0 and up to 1; got 40"),
        (["--config=configs/avatars.py", "--shape=a"], "--shape takes sizes such as 32,32,4; got a"),
    ],
)
def test_bad_commands_are_one_line(arguments, message):
    refused_here("plan", arguments, message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.target.name=distilled"], "cannot be planned without its teacher"),
        (["--devices=3"], "batch_size 128 cannot be shared by 3 devices"),
        (
            ["--devices=4", "--config.layout.name=fsdp", "--config.layout.shards=3"],
            "shards must divide the number of devices, 4; got 3",
        ),
    ],
)
def test_bad_numbers_of_devices_are_one_line(arguments, message):
    """In a process of its own, where as many devices can be made up."""
    refused("plan.py", ["--config=configs/avatars.py", *arguments], message)


def test_help_lists_the_flags():
    done = run("--help")
    assert done.returncode == 0
    for word in ("--devices", "--chip", "--mfu", "flowguide plan"):
        assert word in done.stdout


def test_times_and_sizes_are_read_easily():
    assert [time_text(t) for t in (3e-4, 2.0, 90.0, 7200.0, 3e5)] == [
        "0.3 ms",
        "2 s",
        "1.5 min",
        "2 hours",
        "3.47 days",
    ]
    assert [bytes_text(n) for n in (512, 2**20, 3 * 2**30)] == ["0.5 KiB", "1.00 MiB", "3.00 GiB"]
    assert np.all([chip.peak > 1e14 and chip.memory > 1e10 for chip in CHIPS.values()])
