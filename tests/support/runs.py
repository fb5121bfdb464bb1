"""Small runs, and commands in processes of their own."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from flowguide import cli, config
from flowguide.training import loop

ROOT = Path(__file__).parent.parent.parent


def small(data_dir, **changes):
    """The config of a run of 20 steps on points."""
    c = config.default()
    c.data.name, c.data.data_dir = "mixture2d", str(data_dir)
    c.data.split, c.data.test_split = "train[:4%]", "test[:5%]"  # decoding all of it takes longer than the training
    c.network = {"name": "mlp", "width": 16, "depth": 2}
    c.update({"batch_size": 32, "steps": 20, "warmup": 2, "log_every": 4, "checkpoint_every": 8, "eval_every": 8})
    c.preview.every = 0
    c.update(changes)
    return c


def train_digits(data_dir, workdir):
    """Trains a tiny network for three steps on the real digits: enough to be sampled from."""
    c = config.default()
    c.data.name, c.data.data_dir = "digits", str(data_dir)
    c.network = {"name": "mlp", "width": 8, "depth": 1}
    c.update({"batch_size": 16, "steps": 3, "warmup": 1, "eval_examples": 16})
    c.preview.update({"num": 4, "steps": 2})
    loop.train(c, workdir)


def same(a, b):
    """Whether two trees hold the same bits."""
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def run(script, *arguments):
    """Runs a script of the repository."""
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def refused(script, arguments, message):
    """The command ends with code 2 and one line that holds ``message``."""
    done = run(script, *arguments)
    _check_refused(done.returncode, done.stderr, message)


def refused_here(command, arguments, message):
    """As ``refused``, in this process: that saves the seconds in which Python and JAX start."""
    with (
        contextlib.chdir(ROOT),
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        pytest.raises(SystemExit) as end,
    ):
        cli.main([command, *arguments])
    _check_refused(end.value.code, stderr.getvalue(), message)


def _check_refused(code, stderr, message):
    assert code == 2, stderr
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert message in stderr
