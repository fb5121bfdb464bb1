"""The trainer as a user runs it: resume to the bit, refusals in one line, and a network that learns an exact law."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import train as script
from flowguide import analytic, build, checkpoint, paths, sampling, times
from flowguide.condition import Condition, Label, given
from flowguide.data import Batch, DataInfo, Dataset, batches
from flowguide.data.builders import mixture2d
from flowguide.errors import UserError
from flowguide.targets import GAMMA, with_gamma

ROOT = Path(__file__).parent.parent


def small(data_dir, **changes):
    c = build.default()
    c.data.name, c.data.data_dir = "mixture2d", str(data_dir)
    c.data.split, c.data.test_split = "train[:4%]", "test[:5%]"  # decoding all of it takes longer than the training
    c.network = {"name": "mlp", "width": 16, "depth": 2}
    c.update({"batch_size": 32, "steps": 20, "warmup": 2, "log_every": 4, "checkpoint_every": 8, "eval_every": 8})
    c.preview.every = 0
    c.update(changes)
    return c


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """An uninterrupted run: its folder and its last state."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, script.train(small(data_dir), workdir)


def test_stopping_and_resuming_gives_the_same_bits(whole, data_dir, tmp_path):
    first = script.train(small(data_dir), tmp_path, stop_after=11)
    assert int(first.step) == 11
    resumed = script.train(small(data_dir), tmp_path)
    assert int(resumed.step) == 20
    assert same(resumed, whole[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_termination_signal_saves_and_the_run_goes_on_to_the_same_bits(
    whole, data_dir, tmp_path, monkeypatch, number
):
    real, ticks = script.Log.tick, []

    def tick(self, loss):
        ticks.append(loss)
        if len(ticks) == 5:
            os.kill(os.getpid(), number)
        real(self, loss)

    monkeypatch.setattr(script.Log, "tick", tick)
    handler = signal.getsignal(number)
    first = script.train(small(data_dir), tmp_path)
    assert 5 <= int(first.step) <= 7
    assert signal.getsignal(number) is handler
    assert same(script.train(small(data_dir), tmp_path), whole[1])


def test_another_layout_goes_on_to_the_same_parameters(whole, data_dir, tmp_path):
    """A run may change how it lies over devices; what comes out differs by rounding alone."""
    script.train(small(data_dir), tmp_path, stop_after=11)
    resumed = script.train(small(data_dir, layout={"name": "fsdp", "min_size": 1}), tmp_path)
    for a, b in zip(jax.tree.leaves(whole[1]), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    assert any(not a.is_fully_replicated for a in jax.tree.leaves(resumed.params))
    assert same(sampling.load(tmp_path).params, resumed.ema)


def test_a_longer_run_goes_on_from_the_end(whole, data_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    assert int(script.train(small(data_dir, steps=24), workdir).step) == 24


def test_finished_run_does_nothing_more(whole, data_dir):
    assert same(script.train(small(data_dir), whole[0]), whole[1])


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


def test_a_preview_that_fails_does_not_end_the_run(data_dir, tmp_path, monkeypatch, capsys):
    def refuse(*args, **options):
        raise UserError("the samples are not finite")

    monkeypatch.setattr(script.sampling, "sample", refuse)
    config = small(data_dir, steps=3)
    config.preview.every = 2
    assert int(script.train(config, tmp_path).step) == 3
    assert "no preview at step 2: the samples are not finite" in capsys.readouterr().out


def test_a_picture_that_fails_does_not_end_the_run(data_dir, tmp_path, monkeypatch, capsys):
    def fail(*args):
        raise MemoryError("no room for\nthe figure")

    monkeypatch.setattr(script, "save_figure", fail)
    config = small(data_dir, steps=2)
    config.preview.update({"every": 2, "num": 8, "solver": "euler", "steps": 2})
    assert int(script.train(config, tmp_path).step) == 2
    assert "no preview at step 2: MemoryError: no room for the figure" in capsys.readouterr().out


EXAMPLES = {
    "scalars": ((), np.float32, True),
    "scalars with an axis, unconditional": ((1,), np.float32, False),
    "volumes": ((3, 4, 4, 1), np.float32, True),
    "float images": ((4, 4, 1), np.float32, True),
    "RGBA, unconditional": ((4, 4, 4), np.uint8, False),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_every_shape_are_previewed(name, tmp_path, monkeypatch, capsys):
    shape, dtype, conditional = EXAMPLES[name]
    x = (100 * np.random.default_rng(0).random((40, *shape))).astype(dtype)
    fields = {"label": Label(("a", "b"))} if conditional else {}
    info = DataInfo("made_up", shape, "image" if dtype == np.uint8 else "points", fields)

    def read(index):
        index = np.asarray(index)
        return Batch(x[index], {"label": (index % 2).astype(np.int32)} if conditional else {})

    data = Dataset(info, "train", "1", len(x), True, read)
    monkeypatch.setattr(script.build, "dataset", lambda config, split, fields=None: data)
    config = small("", batch_size=8, steps=2, warmup=1, network={"depth": 1, "width": 8})
    config.preview.update({"every": 2, "num": 9, "gammas": (1.0, 2.0), "solver": "euler", "steps": 2})
    real, drawn = script.save_figure, []

    def save_figure(path, cells, *labels):
        drawn.append(cells.shape)
        return real(path, cells, *labels)

    monkeypatch.setattr(script, "save_figure", save_figure)
    script.train(config, tmp_path)
    assert "no preview" not in capsys.readouterr().out
    assert drawn == [(1, 2 if conditional else 1, 9, *shape)]  # without a condition γ has no meaning
    with Image.open(tmp_path / "previews" / "00000002.png") as picture:
        assert min(picture.size) > 60


def test_keeps_the_newest_and_the_best(data_dir, tmp_path):
    script.train(small(data_dir, keep=1, checkpoint_every=4, eval_every=4), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    kept = {int(p.name) for p in checkpoint.folder(tmp_path).iterdir()}
    assert kept == {20, min(scores, key=scores.__getitem__)}


def test_another_config_in_the_same_folder_is_refused(whole, data_dir):
    with pytest.raises(UserError, match=r"lr was 0.001, is 0.1; network.width was 16, is 8"):
        script.train(small(data_dir, lr=0.1, network={"width": 8}), whole[0])


def test_a_diverging_run_stops_with_the_step(data_dir, tmp_path):
    config = small(data_dir, lr=1e30, clip=0.0, nonfinite_limit=0)
    with pytest.raises(
        UserError, match=r"at step (\d+) the loss is .*lower lr .*the examples of the batch are"
    ) as error:
        script.train(config, tmp_path)
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


def test_a_step_that_is_not_finite_is_skipped_and_counted(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "make_loss", failing_at([3, 4, 10], script.make_loss))
    state = script.train(small(data_dir, nonfinite_limit=2, log_every=1), tmp_path / "a")
    assert int(state.step) == 20
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state))
    assert max(optimizer_counts(state)) == 17
    lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["skipped"] for line in lines if "skipped" in line} == {4: 1, 5: 2, 11: 3}
    with pytest.raises(UserError, match=r"at step 5 the loss is nan.*in 2 steps in a row"):
        script.train(small(data_dir, nonfinite_limit=1), tmp_path / "b")


def test_no_checkpoint_is_kept_while_steps_are_skipped(data_dir, tmp_path, monkeypatch, capsys):
    """One that is due waits for a step that counts; at the end there is none, and the last good one stays."""
    real = script.make_loss
    monkeypatch.setattr(script, "make_loss", failing_at([7, 8, 19], real))
    config = small(data_dir, keep=9, eval_every=10)
    script.train(config, tmp_path)
    assert {int(p.name) for p in checkpoint.folder(tmp_path).iterdir()} == {10, 16}
    assert (
        "step 20 was skipped, and no checkpoint is kept of it. The last checkpoint is of step 16"
        in capsys.readouterr().out
    )
    monkeypatch.setattr(script, "make_loss", real)
    script.train(config, tmp_path)
    assert "from step 16 to 20" in capsys.readouterr().out
    assert sampling.load(tmp_path).step == 20


def test_a_failed_first_attempt_does_not_claim_the_folder(whole, data_dir, tmp_path):
    with pytest.raises(UserError, match=r"lower lr or clip\. No checkpoint was kept; the examples"):
        script.train(small(data_dir, lr=1e30, nonfinite_limit=0), tmp_path)
    assert same(script.train(small(data_dir), tmp_path), whole[1])
    with pytest.raises(UserError, match=r"lr was 0\.001, is 0\.1"):
        script.train(small(data_dir, lr=0.1), tmp_path)
    shutil.move(checkpoint.folder(tmp_path), tmp_path / "broken")  # they were the run's, whatever befell them
    with pytest.raises(UserError, match=r"lr was 0\.001, is 0\.1"):
        script.train(small(data_dir, lr=0.1), tmp_path)


def test_a_warm_up_longer_than_the_run_is_shortened(data_dir, tmp_path, capsys):
    script.train(small(data_dir, steps=10, warmup=100, log_every=1), tmp_path)
    assert "a warm-up of 100 steps is as long as the run: it is shortened to 1" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines if "lr" in line][:2] == pytest.approx([1e-3, 1e-3])


def optimizer_counts(state):
    return [int(leaf) for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.int32]


TARGETS = {
    "model_guidance": {"name": "model_guidance", "gamma": 2.0},
    "guidance_free": {"name": "guidance_free", "low": 0.25},
    "distilled": {"name": "distilled", "gamma_range": (1.0, 4.0)},
}


@pytest.mark.parametrize("name", TARGETS)
def test_guidance_is_trained_in_and_gamma_is_told(name, whole, data_dir, tmp_path):
    target = dict(TARGETS[name])
    if name == "distilled":
        target["workdir"] = str(whole[0])
    config = small(data_dir, target=target, steps=3)
    config.preview.update({"every": 8, "num": 8, "gammas": (9.0,), "solver": "euler", "steps": 2})
    state = script.train(config, tmp_path)
    assert (tmp_path / "previews" / "00000003.png").exists()

    stored, run = build.read_config(tmp_path), sampling.load(tmp_path)
    assert same(run.params, state.ema)
    assert build.takes_gamma(stored) == (name != "model_guidance")
    fields = build.network_fields(stored, run.info)
    assert set(fields) == set(run.info.fields) | ({GAMMA} if name != "model_guidance" else set())
    c = given({"label": jnp.arange(4)})
    told = with_gamma(c, 2.0) if build.takes_gamma(stored) else c
    u = jax.jit(run.network.velocity)(run.params, jnp.full(4, 0.5), jnp.ones((4, 2)), told)
    assert np.isfinite(u).all()
    assert np.any(u)


def test_the_teacher_must_fit(whole, data_dir, tmp_path):
    def refused(message, workdir, **changes):
        with pytest.raises(UserError, match=message):
            script.train(small(data_dir, target={"name": "distilled", "workdir": str(workdir)}, **changes), student)
        assert not student.exists()

    student = tmp_path / "student"
    refused("no run in .*nowhere", tmp_path / "nowhere")
    refused("has path linear; expected that of this run, trig", whole[0], path="trig")
    teacher = tmp_path / "teacher"
    shutil.copytree(whole[0], teacher)
    for changes, message in (
        ({"target": {"name": "guidance_free"}}, "not told γ"),
        ({"task": "classifier"}, "must be a velocity"),
        ({"drop_rate": 0.0}, "knows no ∅"),
    ):
        stored = json.loads((whole[0] / "config.json").read_text())
        (teacher / "config.json").write_text(json.dumps(stored | changes))
        refused(message, teacher)


def test_a_classifier_trains_with_the_same_trainer(data_dir, tmp_path):
    config = small(data_dir, task="classifier", steps=3)
    config.preview.every = 3
    assert int(script.train(config, tmp_path).step) == 3
    assert not (tmp_path / "previews").exists()


@pytest.mark.parametrize("cut", ["params", "ema", "train"])
def test_a_truncated_checkpoint_is_named_and_nothing_is_lost(whole, data_dir, tmp_path, capsys, cut):
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    files = [p for p in (workdir / "checkpoints" / "20" / cut).rglob("*") if p.is_file() and p.stat().st_size > 100]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    state = script.train(small(data_dir), workdir)
    assert "checkpoints/20 is damaged" in capsys.readouterr().err
    assert same(state, whole[1])  # from step 16 on again, to the same bits
    assert (workdir / "broken" / "20" / cut).is_dir()
    assert same(sampling.load(workdir).params, whole[1].ema)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"name": "avatarz"}}, "did you mean avatars"),
        ({"data": {"fields": ("hut",)}}, "hut"),
        ({"data": {"split": "trian"}}, "trian"),
        ({"network": {"name": "resnet"}}, "unknown network 'resnet': there are dit, mlp, unet"),
        (
            {"network": {"name": "mlp", "with": 3}},
            "no setting 'with': it takes width, depth, refine",
        ),
        ({"network": {"name": "unet"}}, r"network 'unet' for mixture2d .*unet takes images \(H, W, C\): use mlp"),
        ({"network": {"name": "mlp", "width": 0}}, "width must be a whole number of at least 1; got 0"),
        ({"task": "classifier", "network": {"name": "mlp", "depth": 0}}, "depth must be a whole number"),
        ({"times": {"name": "sway", "mean": 3.0}}, "times 'sway' has no setting 'mean': it takes k"),
        ({"ema": {"name": "power", "std": 0.5}}, "0.2887; got 0.5"),
        ({"weight": {"name": "snr"}}, "unknown weight 'snr': there are constant, min_snr, x0_error, x1_error"),
        (
            {"target": {"name": "guided"}},
            "unknown target 'guided': there are distilled, guidance_free, model_guidance, pl",
        ),
        ({"target": {"name": "model_guidance", "w": 1}}, "target 'model_guidance' has no setting 'w': it takes gamma"),
        ({"target": {"name": "model_guidance", "gamma": 0.5}}, "finite gamma of 1 or more; got 0.5: 2.0, say"),
        ({"target": {"name": "model_guidance"}, "drop_rate": 0.0}, "on the way; got drop_rate 0.0: 0.1, say"),
        ({"target": {"name": "guidance_free", "low": 0.0}}, "γ = 1/β; got low=0.0: 0.2, say"),
        ({"target": {"name": "distilled"}}, "got no workdir: name the folder of its run"),
        (
            {"target": {"name": "distilled", "workdir": "x", "gamma_range": (5.0, 1.0)}},
            r"the lower first; got \(5.0, 1.0",
        ),
        ({"target": {"name": "guidance_free"}, "task": "classifier"}, "one of velocities; got task 'classifier': set"),
        ({"task": "regress"}, "unknown task 'regress': there are classifier, flow"),
        ({"task": "classifier", "network": {"name": "unet"}}, "unknown classifier 'unet': there are mlp"),
        ({"path": "straight"}, "unknown path 'straight': there are linear, trig, vp"),
        ({"coupling": {"name": "none"}}, "unknown coupling 'none': there are assigned, independent, sinkhorn"),
        ({"batch_size": 33}, "batch_size 33 cannot be shared by 8 devices"),
        ({"accumulate": 3}, "in 3 parts each: make it a multiple of 24"),
        ({"network": {"name": "mlp", "refine": 8}}, r"refine corrects the pixels of images .*; got shape \(2,\)"),
        ({"drop_rate": 2.0}, "drop_rate must be a probability, 0 to 1; got 2.0"),
        ({"drop_field_rate": (0.5, 0.1)}, r"drop_field_rate is a range .*; got \(0.5, 0.1\)"),
        ({"drop_field_rate": (0.5, 2.0)}, r"drop_field_rate must be a probability, 0 to 1; got \(0.5, 2.0\)"),
        ({"lr": 0.0}, "lr must be finite and above 0; got 0.0"),
        ({"lr": math.nan}, "lr must be finite and above 0; got nan"),
        ({"lr": math.inf}, "lr must be finite and above 0; got inf"),
        ({"warmup": -1}, "warmup must be at least 0; got -1"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"b2": 1.0}, "b2 must be from 0 to less than 1; got 1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be finite and at least 0; got -0.1"),
        ({"clip": -1.0}, "clip must be finite and at least 0; got -1.0"),
        ({"nonfinite_limit": -1}, "nonfinite_limit must be at least 0; got -1"),
        ({"ema": {"name": "constant", "decay": math.nan}}, "ema.decay must be from 0 to less than 1; got nan"),
        ({"ema": {"name": "constant", "decay": 2.0}}, "ema.decay must be from 0 to less than 1; got 2.0"),
        ({"ema": {"name": "constant", "decay": -1.0}}, "ema.decay must be from 0 to less than 1; got -1.0"),
        ({"preview": {"every": -1}}, "preview.every must be at least 0; got -1"),
        ({"preview": {"gammas": (1.0, math.inf)}}, r"preview.gammas must be finite; got \(1.0, inf\)"),
        ({"eval_examples": -5}, "eval_examples must be at least 1; got -5"),
        ({"eval_examples": 7}, "7 examples to validate with are fewer than the devices, 8: take more"),
        ({"preview": {"gammas": (1, "abc")}}, r"preview.gammas takes numbers, such as .*; got \(1, 'abc'\)"),
        ({"preview": {"gammas": ()}}, "preview.gammas are the scales at which previews are drawn; got none"),
        ({"preview": {"solver": "huen"}}, "preview: .*no solver 'huen', did you mean 'heun'"),
        ({"preview": {"steps": -3}}, "preview.steps must be at least 1; got -3"),
        ({"preview": {"num": 0}}, "preview.num must be at least 1; got 0"),
        ({"seed": -1}, r"seed must be from 0 to 2\^32 - 1; got -1"),
        ({"seed": 2**32}, r"seed must be from 0 to 2\^32 - 1; got 4294967296"),
        ({"data": {"image_size": -8}}, "data.image_size must be at least 0; got -8"),
        ({"times": {"name": "logit_normal", "std": 0.0}}, "times.std must be finite and above 0; got 0.0"),
        ({"times": {"name": "mode", "s": 2.0}}, r"times.s must be from -1 to .*; got 2.0"),
        ({"layout": {"name": "fsdp", "shards": 3}}, "shards must divide the number of devices, 8; got 3"),
        ({"layout": {"name": "pmap"}}, "unknown layout 'pmap': there are data_parallel, fsdp"),
    ],
    ids=str,
)
def test_bad_config_is_refused_before_any_work(changes, message, data_dir, tmp_path):
    config = small(data_dir)
    for name in ("network", "times", "ema"):
        if name in changes:
            del config[name]
    config.update(changes)
    with pytest.raises(UserError, match=message) as error:
        script.train(config, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def run(script, *arguments):
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def refused(script, arguments, message):
    """The command ends with code 2 and one line that holds ``message``."""
    done = run(script, *arguments)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert message in done.stderr


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config=configs/nowhere.py", "No such file or directory: 'configs/nowhere.py'"),
        ("--config.learning_rate=1", "the config has no setting 'learning_rate'"),
        ("--config.=1", "the flags cannot be read"),
        ("--config.lr=fast", "could not convert string to float"),
        ("--workdir=/proc/nowhere", "cannot write to /proc/nowhere"),
        ("--workdir=gs://bucket/run", "got the address gs://bucket/run: mount it"),
        ("--coordinator=localhost:1", "needs --num_processes=N and --process_id=0 to N - 1; got None and None"),
        ("--wokdir=x", "wokdir"),
        ("avatars", "expected flags of the form --name=value"),
    ],
)
def test_bad_commands_are_one_line(argument, message, data_dir, tmp_path):
    base = ["--config=configs/points.py", f"--workdir={tmp_path / 'run'}", f"--config.data.data_dir={data_dir}"]
    refused("train.py", [*base, argument], message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "is_folder", "message"),
    [
        ("info.json", True, "info.json cannot be used (Is a directory): move it away"),
        ("checkpoints", False, "checkpoints (File exists): choose another folder"),
    ],
)
def test_a_folder_in_the_place_of_a_file_is_one_line(name, is_folder, message, data_dir, tmp_path):
    place = tmp_path / name
    place.mkdir() if is_folder else place.write_text("")
    data = [
        f"--config.data.data_dir={data_dir}",
        "--config.data.split=train[:4%]",
        "--config.data.test_split=test[:5%]",
    ]
    refused("train.py", ["--config=configs/points.py", f"--workdir={tmp_path}", *data], message)


def test_a_config_file_without_a_config_is_one_line(tmp_path):
    (tmp_path / "config.py").write_text("def get_config():\n    return {'steps': 3}\n")
    arguments = [f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]
    refused("train.py", arguments, "returns a dict, expected the ConfigDict of flowguide.build.default()")


def test_help_lists_the_flags():
    done = run("train.py", "--help")
    assert done.returncode == 0
    for word in ("--config", "--workdir", "--stop_after", "python train.py"):
        assert word in done.stdout


@pytest.mark.slow
def test_a_trained_network_is_the_exact_field(data_dir, tmp_path):
    """configs/points.py on a mixture whose velocity is known: fields, moments and classes agree with theory."""
    from configs.points import get_config

    config = get_config()
    config.data.data_dir, config.preview.every, config.steps = str(data_dir), 0, 2000
    script.train(config, tmp_path)
    trained = sampling.load(tmp_path)
    exact = analytic.velocity(analytic.mixture(mixture2d.WEIGHTS, mixture2d.MEANS, mixture2d.STD**2), paths.linear())
    n = 4000
    key = jax.random.split(jax.random.key(0), 3)
    label = jnp.arange(n) % mixture2d.CLASSES
    x1 = jnp.asarray(mixture2d.MEANS)[label] + mixture2d.STD * jax.random.normal(key[0], (n, 2))
    t = jax.random.uniform(key[1], (n,))
    x = paths.interpolate(paths.linear(), t, jax.random.normal(key[2], (n, 2)), x1)
    for c in (given({"label": label}), Condition({"label": label}, {"label": jnp.zeros(n, bool)})):
        u, v = trained.network.velocity(trained.params, t, x, c), exact(t, x, c)
        assert float(jnp.mean((u - v) ** 2) / jnp.mean(v**2)) < 0.02

    s = sampling.sample(
        trained, [str(i) for i in range(8)] * 250, batch_size=2000, method=sampling.SamplerConfig("rk4", 20)
    )
    for k in range(8):
        own = s.x[k::8]
        np.testing.assert_allclose(own.mean(0), mixture2d.MEANS[k], atol=5 * mixture2d.STD / 250**0.5)
        np.testing.assert_allclose(own.std(0), mixture2d.STD, rtol=0.25)


@pytest.mark.slow
def test_the_loss_of_a_gaussian_reaches_its_minimum(tmp_path):
    """A small network on N(m, Σ): its loss on fresh draws comes within 3 % of the known least value."""
    import optax

    from flowguide import losses
    from flowguide.networks import MLP, as_network
    from flowguide.training import ema
    from flowguide.training.step import Batch, init_state, make_loss, make_step

    law, p, size = analytic.mixture([1.0], [[0.5, -1.0]], jnp.array([[[0.5, 0.2], [0.2, 1.0]]])), paths.linear(), 512
    network = as_network(lambda rngs: MLP((2,), {}, width=32, depth=2, rngs=rngs))
    loss = make_loss(network, losses.Recipe(p, times.uniform()), lambda x: x, jax.random.key(1))
    optimizer = optax.adamw(optax.cosine_decay_schedule(5e-3, 600))
    step = make_step(loss, optimizer, ema.constant(0.99))(lambda tree: tree)
    label = given(jnp.zeros(size, int))

    def batch(key):
        return Batch(analytic.sample(key, law, label), {}, jnp.arange(size))

    @jax.jit
    def train(state):
        return jax.lax.scan(lambda s, key: step(s, batch(key)), state, jax.random.split(jax.random.key(2), 600))

    state, _ = train(init_state(network, optimizer, jax.random.key(0)))
    fresh = jax.vmap(lambda i, key: loss(state.ema, 10_000 + i, batch(key)))
    measured = fresh(jnp.arange(100), jax.random.split(jax.random.key(3), 100))
    minimum = float(analytic.flow_matching_minimum(law, p, jnp.linspace(0, 1, 20_001)).mean())
    error = float(measured.std()) / 10
    assert minimum - 4 * error < float(measured.mean()) < 1.03 * minimum + 4 * error


@pytest.mark.slow
def test_a_digits_classifier_knows_clean_digits_and_not_noise(data_dir, tmp_path):
    """configs/digits_classifier.py, shortened: accuracy and the sharpness of the posterior grow with t."""
    from configs.digits_classifier import get_config
    from flowguide.data import to_model
    from flowguide.networks import log_probability

    config = get_config()
    config.data.data_dir = str(data_dir)
    config.steps = 300
    state = script.train(config, tmp_path)
    test = build.dataset(config, "test")
    batch = test.read(np.arange(test.size))
    x1, c = to_model(jnp.asarray(batch.x)), given(batch.value)
    network = build.network(config, test.info)
    log_p, p = log_probability(network, state.ema), paths.linear()
    x0 = jax.random.normal(jax.random.key(0), x1.shape)

    def accuracy(t):
        x = paths.interpolate(p, jnp.full(test.size, t), x0, x1)
        guesses = [log_p(jnp.float32(t), x, given({"label": jnp.full(test.size, k)})) for k in range(10)]
        assert float(jnp.mean(log_p(jnp.float32(t), x, c))) > -2.4  # never worse than to know nothing, log(1/10)
        np.testing.assert_allclose(jnp.exp(jnp.stack(guesses)).sum(axis=0), 1.0, rtol=1e-4)
        return float(jnp.mean(jnp.argmax(jnp.stack(guesses), axis=0) == c.value["label"]))

    early, middle, late = map(accuracy, (0.05, 0.5, 0.95))
    assert early < 0.35
    assert early < middle < late
    assert late > 0.85
