"""Snapshots of averages in a run: what is kept, resumed, made of them, and refused."""

import json
import shutil

import jax
import numpy as np
import pytest

from flowguide import checkpoint, config, planning, sampling, snapshots
from flowguide.cli import evaluate, sample
from flowguide.cli.command import parse
from flowguide.errors import UserError
from flowguide.restore import steps_in
from flowguide.schema import info_from_json
from flowguide.training import loop
from tests.support.runs import refused_here, same, small

pytestmark = pytest.mark.thorough  # every test has a run that was trained

DIRECT = 0.08  # width of the average in the checkpoints; snapshots are of 0.05 and 0.1


def tracking(data_dir, **changes):
    c = small(data_dir, ema={"name": "power", "std": DIRECT}, **changes)
    c.posthoc.every = 2
    return c


@pytest.fixture(scope="module")
def tracked(data_dir, tmp_path_factory):
    """An uninterrupted run that keeps snapshots, and its last state."""
    workdir = tmp_path_factory.mktemp("tracked") / "run"
    return workdir, loop.train(tracking(data_dir), workdir)


@pytest.fixture
def copy(tracked, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tracked[0], workdir)
    return workdir


def kept(workdir):
    return steps_in(snapshots.folder(workdir))


def close(a, b, bound):
    """Whether the leaves of two trees have one dtype, and differ by less than ``bound`` of their norm."""
    pairs = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return all(x.dtype == y.dtype and np.linalg.norm(x - y) <= bound * np.linalg.norm(y) for x, y in pairs)


def cut(workdir, step):
    """Damages a snapshot."""
    for file in (snapshots.folder(workdir) / str(step) / "tracked").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_a_run_keeps_snapshots_that_outlive_its_checkpoints(tracked, whole):
    workdir, state = tracked
    assert kept(workdir) == list(range(2, 21, 2))
    assert sorted(int(p.name) for p in checkpoint.folder(workdir).iterdir()) == [16, 20]
    assert not close(state.tracked[0], state.tracked[1], 1e-3)
    assert same((state.params, state.opt_state), (whole[1].params, whole[1].opt_state))  # nothing else changes
    assert not snapshots.folder(whole[0]).exists()


def test_the_average_of_another_width_is_the_one_that_was_tracked_directly(tracked):
    workdir, state = tracked
    model = sampling.load(workdir, ema=DIRECT)
    assert (model.step, model.ema) == (20, DIRECT)
    assert close(model.params, state.ema, 3e-4)
    assert not close(state.tracked[0], state.ema, 3e-3)
    assert close(sampling.load(workdir, ema=0.1).params, state.tracked[1], 1e-6)
    assert close(sampling.load(workdir, 16, ema=DIRECT).params, sampling.load(workdir, 16).params, 3e-4)
    assert sampling.load(workdir, 6, ema=DIRECT).step == 6  # its checkpoint is gone


def test_stopping_and_resuming_makes_the_same_snapshots(tracked, data_dir, tmp_path):
    """Also where a part of the run was lost, whose snapshots are of the future, or the snapshot of the stop was."""
    workdir, state = tracked
    loop.train(tracking(data_dir), tmp_path, stop_after=11)
    assert kept(tmp_path) == [2, 4, 6, 8, 10, 11]
    folder = snapshots.folder(tmp_path)
    for step in (12, 13):
        shutil.copytree(folder / "8", folder / str(step))
    shutil.rmtree(folder / "11")
    assert same(loop.train(tracking(data_dir), tmp_path), state)
    assert kept(tmp_path) == [2, 4, 6, 8, 10, 11, 12, 14, 16, 18, 20]
    for step in (12, 20):
        resumed, uninterrupted = (sampling.load(w, step, ema=DIRECT).params for w in (tmp_path, workdir))
        assert close(resumed, uninterrupted, 3e-4)


@pytest.mark.slow
def test_a_bound_thins_them_out_and_another_layout_goes_on(tracked, data_dir, tmp_path):
    c = tracking(data_dir, layout={"name": "fsdp", "min_size": 1})
    c.posthoc.keep = 5
    loop.train(c, tmp_path, stop_after=12)
    assert len(kept(tmp_path)) == 5
    c = tracking(data_dir)
    c.posthoc.keep = 6  # which may change
    state = loop.train(c, tmp_path)
    assert len(kept(tmp_path)) == 6
    assert kept(tmp_path)[-1] == 20
    assert close(state.tracked, tracked[1].tracked, 1e-4)
    assert close(sampling.load(tmp_path, ema=DIRECT).params, tracked[1].ema, 3e-3)


def test_a_damaged_snapshot_is_left_out_with_a_warning(tracked, copy, capsys):
    cut(copy, 14)
    assert close(sampling.load(copy, ema=DIRECT).params, tracked[1].ema, 3e-3)
    assert "snapshots/14 is damaged" in capsys.readouterr().err
    cut(copy, 20)
    assert sampling.load(copy, ema=DIRECT).step == 18
    with pytest.raises(UserError, match=r"no snapshot of step 20 that can be read .* there are those of steps 2, 4"):
        sampling.load(copy, 20, ema=DIRECT)
    shutil.move(snapshots.folder(copy) / "16", snapshots.folder(copy) / "17")
    assert sampling.load(copy, ema=DIRECT).step == 18
    assert "it was saved as that of step 16" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_loses_nothing(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.tempfile, "tempdir", str(tmp_path))
    workdir = tmp_path / "run"
    real = snapshots.save

    def save(to, state, *rest, **named):
        if int(state.step) == 6:
            raise checkpoint.SaveError("No space left")
        real(to, state, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(snapshots, "save", save)
        with pytest.raises(UserError, match=r"No space left.*the state of step 6 was saved to"):
            loop.train(tracking(data_dir), workdir)
    (rescued,) = tmp_path.glob("flowguide-rescued-*")
    loop.train(tracking(data_dir), rescued, stop_after=8)
    assert kept(rescued) == [6, 8]


def test_a_plan_counts_the_averages(tracked):
    workdir, state = tracked
    info = info_from_json(json.loads((workdir / "info.json").read_text()))
    with_them, without = config.read_config(workdir), config.read_config(workdir)
    without.posthoc.every = 0
    more = planning.plan(with_them, info, jax.devices()).state - planning.plan(without, info, jax.devices()).state
    assert more == 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize(
    ("width", "message"),
    [
        ("0.3", "needs a relative width between 0 and 12^-½ = 0.2887; got 0.3: 0.1, say"),
        ("-1", "needs a relative width between 0 and 12^-½ = 0.2887; got -1.0"),
        ("nan", "got nan"),
        ("0.001", "ema takes a width that 10 snapshots of the widths 0.05, 0.1 can give; got 0.001, of whose weights"),
        ("wide", "wide"),
    ],
)
def test_a_width_that_cannot_be_is_refused_in_one_line(tracked, width, message, tmp_path):
    for command in ("sample", "evaluate"):
        arguments = ["--coordinator=none", f"--workdir={tracked[0]}", f"--ema={width}", f"--out={tmp_path / 'new'}"]
        said = message if (command, width) != ("evaluate", "nan") else "--ema takes finite numbers; got 'nan'"
        refused_here(command, arguments, said)
        assert not (tmp_path / "new").exists()


def test_runs_without_snapshots_are_refused(whole, copy):
    with pytest.raises(UserError, match=r"ema 0.08 is an average made of snapshots, and the run .* keeps none"):
        sampling.load(whole[0], ema=0.08)
    with pytest.raises(UserError, match=r"no snapshot of step 7 .*: there are those of steps 2, 4, 6"):
        sampling.load(copy, 7, ema=0.08)
    shutil.rmtree(snapshots.folder(copy))
    with pytest.raises(UserError, match=r"no snapshot in .*: let train.py reach its first one"):
        sampling.load(copy, ema=0.08)


def test_settings_that_cannot_be_are_refused(tracked, data_dir, tmp_path):
    for widths, message in (
        ((0.05, 0.3), r"posthoc.widths must be above 0 and below .* = 0.2887; got \(0.05, 0.3\)"),
        ((), "got none"),
    ):
        c = tracking(data_dir)
        c.posthoc.widths = widths
        with pytest.raises(UserError, match=message):
            loop.train(c, tmp_path / "new")
    with pytest.raises(UserError, match=r"posthoc.every was 2, is 0"):
        loop.train(small(data_dir, ema={"name": "power", "std": DIRECT}), tracked[0], force=True)


def test_sample_and_evaluate_take_widths(tracked, tmp_path):
    workdir, _ = tracked
    values, _ = parse(sample.COMMAND, "sample", [f"--workdir={workdir}", "--coordinator=none", "--ema=0.08"])
    values.num, values.save, values.out = 4, "npz", str(tmp_path)
    sample.main(values)
    record = json.loads((tmp_path / "samples.json").read_text())
    assert (record["ema"], record["train_step"]) == (0.08, 20)
    expected = sampling.load(workdir, ema=0.08).sample(num=4, batch_size=64)
    np.testing.assert_allclose(np.load(tmp_path / "samples.npz")["x"], expected, rtol=1e-5, atol=1e-5)

    values, _ = parse(evaluate.COMMAND, "evaluate", ["--step=16,newest", "--ema=0.05,0.12"])
    models = evaluate._models(values, workdir)
    found = {name: (model.step, model.ema) for name, model in models.items()}
    assert found == {
        "16, ema 0.05": (16, 0.05),
        "16, ema 0.12": (16, 0.12),
        "newest, ema 0.05": (20, 0.05),
        "newest, ema 0.12": (20, 0.12),
    }


@pytest.mark.slow
def test_a_sweep_of_widths_says_whose_numbers_they_are(tracked, tmp_path):
    flags = ["--ema=0.05,0.15", "--gamma=1", "--steps=2", "--num=20", "--num_real=100", "--coordinator=none"]
    values, _ = parse(evaluate.COMMAND, "evaluate", [f"--workdir={tracked[0]}", f"--out={tmp_path}", *flags])
    evaluate.main(values)
    rows = json.loads((tmp_path / "evaluation.json").read_text())["rows"]
    assert [row["weights"] for row in rows] == ["newest, ema 0.05", "newest, ema 0.15"]
    assert [row["ema"] for row in rows] == [{"name": "power", "std": 0.05}, {"name": "power", "std": 0.15}]
    assert rows[0]["metrics"] != rows[1]["metrics"]
