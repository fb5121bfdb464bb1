"""Checkpoints: what is read back is what was saved, and what cannot be saved is rescued."""

import json
import os
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import build, checkpoint, sampling, storage
from flowguide.config import read_config
from flowguide.data import batches
from flowguide.errors import UserError
from flowguide.training import loop, parallel
from tests.support.checkpoints import finished
from tests.support.runs import ROOT, same, small


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    return finished(data_dir, tmp_path_factory.mktemp("checkpoint"))


LAYOUTS = {
    "pmap 8": lambda: parallel.data_parallel(jax.devices()),
    "fsdp 8": lambda: parallel.fsdp(jax.devices(), min_size=1),
    "pmap 1": lambda: parallel.data_parallel(jax.devices()[:1]),
    "fsdp 2 x 2": lambda: parallel.fsdp(jax.devices()[:4], 2, min_size=1),
}


@pytest.mark.slow
def test_checkpoints_move_between_layouts(run, data_dir, tmp_path):
    """To the bit, from each to the next and back to the first; a part at a time goes straight to its device."""
    _, states, _ = run
    state, stream, meta = states[12]
    data = build.dataset(small(data_dir), small(data_dir).data.split)
    for i, name in enumerate([*LAYOUTS, next(iter(LAYOUTS))]):
        with checkpoint.manager(tmp_path / str(i)) as saves:
            checkpoint.save(saves, state, stream, meta, wait=True)
            to, like = LAYOUTS[name](), jax.eval_shape(lambda tree: tree, state)
            stream = batches(data, 32, 0)
            state, _ = checkpoint.restore(saves, parallel.abstract(like, to), stream)
        assert same(state, states[12][0])
        places = jax.tree.leaves(to.shardings(state))
        assert all(a.sharding == place for a, place in zip(jax.tree.leaves(state), places, strict=True))
        assert any(not a.is_fully_replicated for a in jax.tree.leaves(state)) == name.startswith("fsdp")
        assert stream.get_state() == states[12][1].get_state()


@pytest.mark.thorough
@pytest.mark.parametrize("asked", [None, 8])
def test_a_checkpoint_deleted_while_it_is_read_is_looked_up_again(run, tmp_path, monkeypatch, capsys, asked):
    """As a trainer that keeps one deletes it, having written the next."""
    workdir, states, _ = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "12")
    real = checkpoint.ocp.Checkpointer.restore

    def deleting(self, directory, *args, **options):
        if directory.name == "8" and (copy / "checkpoints" / "8").exists():
            shutil.copytree(workdir / "checkpoints" / "12", copy / "checkpoints" / "12")
            shutil.rmtree(copy / "checkpoints" / "8")
        return real(self, directory, *args, **options)

    monkeypatch.setattr(checkpoint.ocp.Checkpointer, "restore", deleting)
    if asked is None:
        loaded = sampling.load(copy)
        assert (loaded.step, same(loaded.params, states[12][0].ema)) == (12, True)
    else:
        with pytest.raises(UserError, match=r"no checkpoint of step 8 in .*there are \[12\]"):
            sampling.load(copy, asked)
    assert "damaged" not in capsys.readouterr().err


@pytest.mark.thorough
def test_a_state_that_finds_no_room_is_rescued(run, data_dir, tmp_path, monkeypatch):
    _, states, _ = run
    real, workdir = checkpoint.ocp.CheckpointManager.save, tmp_path / "full"

    def full(self, step, *args, **options):
        if str(workdir) in str(self.directory) and step > 8:
            raise OSError(28, "No space left on device")
        return real(self, step, *args, **options)

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
    monkeypatch.setattr(checkpoint.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot be written .*No space left.*step 12 was saved to .*make room and"):
        loop.train(small(data_dir, steps=12, eval_every=100), workdir)
    (rescued,) = tmp_path.glob("flowguide-rescued-*")
    assert same(sampling.load(rescued).params, states[12][0].ema)
    # The cure that the message names: the run goes on to the same bits.
    shutil.move(rescued / "checkpoints" / "12", workdir / "checkpoints" / "12")
    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", real)
    assert same(loop.train(small(data_dir, steps=12, eval_every=100), workdir), states[12][0])


def test_a_full_log_ends_the_run_and_loses_nothing(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.tempfile, "tempdir", str(tmp_path))
    workdir = tmp_path / "full"
    workdir.mkdir()
    (workdir / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be written to .*No space left.*step 4 was saved to"):
        loop.train(small(data_dir, log_every=3), workdir)
    (rescued,) = tmp_path.glob("flowguide-rescued-*")
    assert sampling.load(rescued).step == 4


@pytest.mark.slow
@pytest.mark.parametrize("replaced", [False, True])
def test_a_folder_deleted_while_training_loses_nothing(run, data_dir, tmp_path, monkeypatch, replaced):
    """Nothing is written where it was, as another run may begin there."""
    _, states, _ = run
    workdir, config, ticks = tmp_path / "run", small(data_dir, steps=12, eval_every=100), []

    def tick(self, loss):
        ticks.append(loss)
        if len(ticks) == 3:
            shutil.rmtree(workdir)
            if replaced:
                workdir.mkdir()

    monkeypatch.setattr(loop.Log, "tick", tick)
    monkeypatch.setattr(checkpoint.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match=r"deleted or replaced .*step 8 was saved to .* resume with --workdir="):
        loop.train(config, workdir)
    assert not list(workdir.glob("*"))
    (rescued,) = tmp_path.glob("flowguide-rescued-*")
    assert sampling.load(rescued).step == 8
    assert same(loop.train(config, rescued), states[12][0])


@pytest.mark.thorough
def test_the_best_is_kept_over_restarts_and_bad_scores_are_set_aside(run, tmp_path, capsys):
    _, states, _ = run
    state, stream, meta = states[12]

    def save(step, loss):
        with checkpoint.manager(tmp_path, keep=1) as saves:
            at = state._replace(step=jnp.full_like(state.step, step))
            checkpoint.save(saves, at, stream, meta, {checkpoint.BEST_BY: loss} if loss else None, wait=True)
            return sorted(saves.all_steps())

    assert save(1, 0.5) == [1]
    assert [save(step, loss) for step, loss in ((2, 0.1), (3, None), (4, 0.3), (5, 0.2))][-1] == [2, 5]
    for content in ('{"val', "[]", '{"val_loss": null}'):
        (tmp_path / "checkpoints" / "5" / "metrics" / "metrics").write_text(content)
        assert save(5, 0.2) == [2, 5]
        assert "checkpoints/5 is damaged: its scores" in capsys.readouterr().err
    assert {p.name for p in (tmp_path / "broken").iterdir()} == {"5", "5-1", "5-2"}


def test_a_text_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "config.json"
    storage.replace_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        storage.replace_text(file, "new\ud800")
    assert file.read_text() == "old"
    storage.replace_text(file, "new")
    assert file.read_text() == "new"


@pytest.mark.thorough
def test_settings_that_fit_may_be_forced(run, data_dir, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    config = small(data_dir, steps=14, eval_every=100, lr=2e-3)
    with pytest.raises(UserError, match=r"lr was 0.001, is 0.002.*--force allows to change lr, warmup"):
        loop.train(config, copy)
    with pytest.raises(UserError, match=r"network.width was 16, is 8"):
        loop.train(small(data_dir, steps=14, network={"name": "mlp", "width": 8, "depth": 2}), copy, force=True)
    assert int(loop.train(config, copy, force=True).step) == 14
    assert read_config(copy).lr == 2e-3


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(data_dir, tmp_path):
    """Twenty processes of train.py, each killed with −9 at a random moment, most of them while they train or save."""
    config = tmp_path / "config.py"
    config.write_text(
        "from flowguide.config import default\n\n\ndef get_config():\n    c = default()\n"
        f'    c.data.name, c.data.data_dir = "mixture2d", {str(data_dir)!r}\n'
        '    c.data.split, c.data.test_split = "train[:4%]", "test[:5%]"\n'
        '    c.network = {"name": "mlp", "width": 16, "depth": 2}\n'
        '    c.update({"batch_size": 32, "steps": 1000, "warmup": 2, "checkpoint_every": 10, "eval_every": 1000})\n'
        "    c.preview.every = 0\n    return c\n"
    )

    def start(workdir, *more):
        command = [sys.executable, "train.py", f"--config={config}", f"--workdir={workdir}", *more]
        env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}  # eight take longer to start
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def said(process):
        assert process.stderr is not None
        return process.stderr.read()

    whole = start(tmp_path / "whole")
    assert whole.wait() == 0, said(whole)

    random, workdir = np.random.default_rng(0), tmp_path / "killed"

    def started():
        """A process that has saved something: it trains."""
        before = set(checkpoint.folder(workdir).glob("*"))
        process = start(workdir)
        while process.poll() is None and not set(checkpoint.folder(workdir).glob("*")) - before:
            time.sleep(0.01)
        return process

    polite = started()
    polite.terminate()
    assert polite.wait() == 0, said(polite)
    for kill in range(20):
        process = started()
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -9, (kill, process.returncode, said(process))
    last = start(workdir)
    assert last.wait() == 0, said(last)
    assert same(sampling.load(workdir).params, sampling.load(tmp_path / "whole").params)
    assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 1000
