"""Steps that are not finite: skipped, counted and, if there are too many in a row, the end of the run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import build, checkpoint, sampling
from flowguide.data import batches
from flowguide.errors import UserError
from flowguide.training import assembly, loop
from tests.support.runs import small


@pytest.mark.thorough
def test_a_diverging_run_stops_with_the_step(data_dir, tmp_path):
    config = small(data_dir, lr=1e30, clip=0.0, nonfinite_limit=0)
    with pytest.raises(
        UserError, match=r"at step (\d+) the loss is .*lower lr .*the examples of the batch are"
    ) as error:
        loop.train(config, tmp_path)
    assert not list(checkpoint.folder(tmp_path).glob("[0-9]*"))
    kept = json.loads((tmp_path / "nonfinite.json").read_text())
    assert f"at step {kept['step']} " in str(error.value)
    stream = batches(build.dataset(config, config.data.split), 32, config.seed)
    seen = [next(stream) for _ in range(kept["step"])][-1]
    np.testing.assert_array_equal(build.dataset(config, config.data.split).read(np.array(kept["examples"])).x, seen.x)


def failing_at(steps, make_loss):
    """The loss, made NaN at some steps."""

    def make(*args, **options):
        loss = make_loss(*args, **options)
        bad = jnp.array(steps)

        def sometimes(params, step, *rest):
            return jnp.where(jnp.any(step == bad), jnp.nan, 1.0) * loss(params, step, *rest)

        return sometimes

    return make


@pytest.mark.thorough
def test_a_step_that_is_not_finite_is_skipped_and_counted(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "make_loss", failing_at([3, 4, 10], assembly.make_loss))
    state = loop.train(small(data_dir, nonfinite_limit=2, log_every=1), tmp_path / "a")
    assert int(state.step) == 20
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert max(optimizer_counts(state)) == 17
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["skipped"] for line in lines if "skipped" in line} == {4: 1, 5: 2, 11: 3}
    with pytest.raises(UserError, match=r"at step 5 the loss is nan.*in 2 steps in a row"):
        loop.train(small(data_dir, nonfinite_limit=1), tmp_path / "b")


@pytest.mark.thorough
def test_no_checkpoint_is_kept_while_steps_are_skipped(data_dir, tmp_path, monkeypatch, capsys):
    """One that is due waits for a step that counts; at the end there is none, and the last good one stays."""
    real = assembly.make_loss
    monkeypatch.setattr(assembly, "make_loss", failing_at([7, 8, 19], real))
    config = small(data_dir, keep=9, eval_every=10)
    loop.train(config, tmp_path)
    assert {int(p.name) for p in checkpoint.folder(tmp_path).iterdir()} == {10, 16}
    assert (
        "step 20 was skipped, and no checkpoint is kept of it. The last checkpoint is of step 16"
        in capsys.readouterr().out
    )
    monkeypatch.setattr(assembly, "make_loss", real)
    loop.train(config, tmp_path)
    assert "from step 16 to 20" in capsys.readouterr().out
    assert sampling.load(tmp_path).step == 20


def optimizer_counts(state):
    return [int(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.int32]
