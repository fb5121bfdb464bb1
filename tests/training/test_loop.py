"""The trainer as a user runs it: resuming to the bit, what a run leaves, and whose folder it is."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

from flowguide import checkpoint, sampling
from flowguide.errors import UserError
from flowguide.training import loop
from tests.support.runs import same, small


@pytest.mark.thorough
def test_stopping_and_resuming_gives_the_same_bits(whole, data_dir, tmp_path):
    first = loop.train(small(data_dir), tmp_path, stop_after=11)
    assert int(first.step) == 11
    resumed = loop.train(small(data_dir), tmp_path)
    assert int(resumed.step) == 20
    assert same(resumed, whole[1])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_termination_signal_saves_and_the_run_goes_on_to_the_same_bits(
    whole, data_dir, tmp_path, monkeypatch, number
):
    real, ticks = loop.Log.tick, []

    def tick(self, loss):
        ticks.append(loss)
        if len(ticks) == 5:
            os.kill(os.getpid(), number)
        real(self, loss)

    monkeypatch.setattr(loop.Log, "tick", tick)
    handler = signal.getsignal(number)
    first = loop.train(small(data_dir), tmp_path)
    assert 5 <= int(first.step) <= 7
    assert signal.getsignal(number) is handler
    assert same(loop.train(small(data_dir), tmp_path), whole[1])


@pytest.mark.slow
def test_another_layout_goes_on_to_the_same_parameters(whole, data_dir, tmp_path):
    """A run may change how it lies over devices; what comes out differs by rounding alone."""
    loop.train(small(data_dir), tmp_path, stop_after=11)
    resumed = loop.train(small(data_dir, layout={"name": "fsdp", "min_size": 1}), tmp_path)
    for a, b in zip(jax.tree.leaves(whole[1]), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    assert any(not a.is_fully_replicated for a in jax.tree.leaves(resumed.params))
    assert same(sampling.load(tmp_path).params, resumed.ema)


@pytest.mark.thorough
def test_a_longer_run_goes_on_from_the_end(whole, data_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    assert int(loop.train(small(data_dir, steps=24), workdir).step) == 24


def test_finished_run_does_nothing_more(whole, data_dir):
    assert same(loop.train(small(data_dir), whole[0]), whole[1])


def test_what_a_run_leaves(whole):
    workdir, state = whole
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [4, 8, 12, 16, 20]
    assert [line["step"] for line in lines if "val_loss" in line] == [8, 16, 20]
    assert list((workdir / "tensorboard").iterdir())
    run = sampling.load(workdir)
    assert run.step == 20
    assert same(run.params, state.ema)
    assert same(sampling.load(workdir, 16).params, run.params) is False


@pytest.mark.thorough
def test_keeps_the_newest_and_the_best(data_dir, tmp_path):
    loop.train(small(data_dir, keep=1, checkpoint_every=4, eval_every=4), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    kept = {int(p.name) for p in checkpoint.folder(tmp_path).iterdir()}
    assert kept == {20, min(scores, key=scores.__getitem__)}


def test_another_config_in_the_same_folder_is_refused(whole, data_dir):
    with pytest.raises(UserError, match=r"lr was 0.001, is 0.1; network.width was 16, is 8"):
        loop.train(small(data_dir, lr=0.1, network={"width": 8}), whole[0])


@pytest.mark.thorough
def test_a_failed_first_attempt_does_not_claim_the_folder(whole, data_dir, tmp_path):
    with pytest.raises(UserError, match=r"lower lr or clip\. No checkpoint was kept; the examples"):
        loop.train(small(data_dir, lr=1e30, nonfinite_limit=0), tmp_path)
    assert same(loop.train(small(data_dir), tmp_path), whole[1])
    with pytest.raises(UserError, match=r"lr was 0\.001, is 0\.1"):
        loop.train(small(data_dir, lr=0.1), tmp_path)
    shutil.move(checkpoint.folder(tmp_path), tmp_path / "broken")  # they were the run's, whatever befell them
    with pytest.raises(UserError, match=r"lr was 0\.001, is 0\.1"):
        loop.train(small(data_dir, lr=0.1), tmp_path)


@pytest.mark.thorough
def test_a_warm_up_longer_than_the_run_is_shortened(data_dir, tmp_path, capsys):
    loop.train(small(data_dir, steps=10, warmup=100, log_every=1), tmp_path)
    assert "a warm-up of 100 steps is as long as the run: it is shortened to 1" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines if "lr" in line][:2] == pytest.approx([1e-3, 1e-3])


@pytest.mark.thorough
def test_a_classifier_trains_with_the_same_trainer(data_dir, tmp_path):
    config = small(data_dir, task="classifier", steps=3)
    config.preview.every = 3
    assert int(loop.train(config, tmp_path).step) == 3
    assert not (tmp_path / "previews").exists()


@pytest.mark.thorough
@pytest.mark.parametrize("cut", ["params", "ema", "train"])
def test_a_truncated_checkpoint_is_named_and_nothing_is_lost(whole, data_dir, tmp_path, capsys, cut):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    files = [p for p in (workdir / "checkpoints" / "20" / cut).rglob("*") if p.is_file() and p.stat().st_size > 100]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    state = loop.train(small(data_dir), workdir)
    assert "checkpoints/20 is damaged" in capsys.readouterr().err
    assert same(state, whole[1])  # from step 16 on again, to the same bits
    assert (workdir / "broken" / "20" / cut).is_dir()
    assert same(sampling.load(workdir).params, whole[1].ema)
