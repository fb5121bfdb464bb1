"""What is read back is what was saved, or it is said that it is not: every file damaged in turn."""

import json
import os
import pickle
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_train import ROOT, same, small

import train as script
from flowguide import build, checkpoint, sampling
from flowguide.data import batches
from flowguide.errors import UserError
from flowguide.hashes import array_hash, json_hash, leaf_hashes
from flowguide.training import spread
from flowguide.training.step import init_state


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """A finished run with checkpoints of steps 8 and 12, the state of each, and how to read it."""
    workdir = tmp_path_factory.mktemp("checkpoint") / "run"
    config = small(data_dir, steps=12, eval_every=100)
    last = script.train(config, workdir)
    data = build.dataset(config, config.data.split)
    optimizer, _ = build.optimizer(config)
    like = init_state(build.network(config, data.info), optimizer, jax.random.key(9))

    def read(folder):
        with checkpoint.manager(folder) as saves:
            stream = batches(data, config.batch_size, config.seed)
            state, meta = checkpoint.restore(saves, like, stream)
            return state, stream, meta

    first = tmp_path_factory.mktemp("first") / "run"
    shutil.copytree(workdir, first)
    shutil.rmtree(first / "checkpoints" / "12")
    assert same(read(workdir)[0], last)
    return workdir, {8: read(first), 12: read(workdir)}, read


LAYOUTS = {
    "pmap 8": lambda: spread.data_parallel(jax.devices()),
    "fsdp 8": lambda: spread.fsdp(jax.devices(), min_size=1),
    "pmap 1": lambda: spread.data_parallel(jax.devices()[:1]),
    "fsdp 2 x 2": lambda: spread.fsdp(jax.devices()[:4], 2, min_size=1),
}


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
            state, _ = checkpoint.restore(saves, spread.abstract(like, to), stream)
        assert same(state, states[12][0])
        places = jax.tree.leaves(to.shardings(state))
        assert all(a.sharding == place for a, place in zip(jax.tree.leaves(state), places, strict=True))
        assert any(not a.is_fully_replicated for a in jax.tree.leaves(state)) == name.startswith("fsdp")
        assert stream.get_state() == states[12][1].get_state()


def damages(content):
    middle = len(content) // 2
    yield "truncated", content[:middle]
    yield "flipped", content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


def test_every_file_damaged_in_turn(run, tmp_path, capsys):
    """The state is that of step 12 or, with a warning, that of step 8, to the bit, data position included."""
    workdir, states, read = run
    files = sorted(p.relative_to(workdir) for p in (workdir / "checkpoints" / "12").rglob("*") if p.is_file())
    assert len(files) > 30
    skipped = 0
    for i, name in enumerate(files):
        for how, content in damages((workdir / name).read_bytes()):
            copy = tmp_path / f"{i}{how}"
            shutil.copytree(workdir, copy)
            (copy / name).write_bytes(content)
            state, stream, meta = read(copy)
            step = int(state.step)
            expected, its_stream, its_meta = states[step]
            warned = "checkpoints/12 is damaged" in capsys.readouterr().err
            assert warned == (step == 8), (name, how)
            assert same(state, expected), (name, how)
            assert stream.get_state() == its_stream.get_state()
            assert meta == its_meta
            skipped += step == 8
            shutil.rmtree(copy)
    assert skipped > 20  # files that are not read, and bits that are not used, do no harm


def test_a_flipped_byte_in_what_is_sampled_from_is_found(run, tmp_path, capsys):
    workdir, states, _ = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    for file in (copy / "checkpoints" / "12" / "ema").rglob("*"):
        if file.is_file() and file.parent.name == "d" and file.stat().st_size > 5000:
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
    loaded = sampling.load(copy)
    assert (loaded.step, same(loaded.params, states[8][0].ema)) == (8, True)
    assert "that of step 8 is used" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"checkpoints/12 cannot be read"):
        sampling.load(copy, 12)


def test_nothing_is_unpickled(run, monkeypatch):
    """What could run code from a checkpoint is not even called."""

    def refuse(*args, **options):
        raise AssertionError("a checkpoint was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
        monkeypatch.setattr(f"_pickle.{name}", refuse)
    workdir, states, read = run
    assert same(read(workdir)[0], states[12][0])
    assert same(sampling.load(workdir).params, states[12][0].ema)


@pytest.mark.parametrize("what", ["empty", "no commit marker", "no hashes", "none whole"])
def test_folders_that_are_no_checkpoint(run, tmp_path, what, capsys):
    workdir, states, read = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    newest = copy / "checkpoints" / "12"
    if what == "empty":
        (copy / "checkpoints" / "16").mkdir()
        state, *_ = read(copy)
        assert int(state.step) == 12
        assert "checkpoints/16 is damaged" in capsys.readouterr().err
    elif what == "no commit marker":
        for marker in newest.rglob("commit_success.txt"):
            marker.unlink()
        state, *_ = read(copy)
        assert same(state, states[int(state.step)][0])
    elif what == "no hashes":
        shutil.rmtree(newest / "hashes")
        assert int(read(copy)[0].step) == 8
        assert (copy / "broken" / "12").is_dir()
    else:
        for step in ("8", "12"):
            shutil.rmtree(copy / "checkpoints" / step / "params")
        with pytest.raises(UserError, match=r"checkpoints/12 cannot be read .*neither can 8"):
            read(copy)
        assert newest.is_dir()


def test_scores_that_are_emptied_do_not_matter_to_the_sampler(run, tmp_path, capsys):
    workdir, states, read = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    for content in ("", "[]", "{"):
        (copy / "checkpoints" / "12" / "metrics" / "metrics").write_text(content)
        loaded = sampling.load(copy)
        assert (loaded.step, same(loaded.params, states[12][0].ema)) == (12, True)
    assert int(read(copy)[0].step) == 8
    assert "checkpoints/12 is damaged: its scores cannot be read" in capsys.readouterr().err


def test_a_checkpoint_under_the_name_of_another_step_is_not_believed(run, tmp_path, capsys):
    """Renamed or exchanged, by the trainer and by the sampler."""
    workdir, states, read = run
    renamed, exchanged = tmp_path / "renamed", tmp_path / "exchanged"
    for copy in (renamed, exchanged):
        shutil.copytree(workdir, copy)
        (copy / "checkpoints" / "12").rename(copy / "checkpoints" / "20")
    (exchanged / "checkpoints" / "8").rename(exchanged / "checkpoints" / "12")
    (exchanged / "checkpoints" / "20").rename(exchanged / "checkpoints" / "8")

    loaded = sampling.load(renamed)
    assert (loaded.step, same(loaded.params, states[8][0].ema)) == (8, True)
    assert "checkpoints/20 is damaged (it was saved as that of step 12)" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"checkpoints/20 cannot be read .*saved as that of step 12"):
        sampling.load(renamed, 20)
    assert same(read(renamed)[0], states[8][0])
    assert (renamed / "broken" / "20").is_dir()
    for reader in (sampling.load, read):
        with pytest.raises(UserError, match=r"checkpoints/12 cannot be read .*saved as that of step 8.*neither can 8"):
            reader(exchanged)


def test_a_run_whose_info_was_changed_is_refused(run, data_dir, tmp_path):
    """Valid, of the same sizes, and of another meaning."""
    workdir, states, _ = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    info = json.loads((copy / "info.json").read_text())
    info["fields"]["label"]["values"].reverse()
    (copy / "info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"checkpoints/12 cannot be read .*saved with another info.json"):
        sampling.load(copy)
    stream = batches(build.dataset(small(data_dir), small(data_dir).data.split), 32, 0)
    with (
        checkpoint.manager(copy) as saves,
        pytest.raises(UserError, match=r"checkpoints/12 cannot be read .*saved with another info.json"),
    ):
        checkpoint.restore(saves, states[12][0], stream, info)
    assert sorted(p.name for p in checkpoint.folder(copy).iterdir()) == ["12", "8"]


def test_checkpoints_from_before_step_and_info_were_hashed_are_read(run, tmp_path, capsys):
    workdir, states, read = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    for step in ("8", "12"):
        (file,) = (p for p in (copy / "checkpoints" / step / "hashes").iterdir() if '"params"' in p.read_text())
        hashes = json.loads(file.read_text())
        assert hashes.pop("step") == int(step)
        del hashes["info"]
        file.write_text(json.dumps(hashes))
    assert same(sampling.load(copy).params, states[12][0].ema)
    assert same(read(copy)[0], states[12][0])
    assert "damaged" not in capsys.readouterr().err


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
        script.train(small(data_dir, steps=12, eval_every=100), workdir)
    (rescued,) = tmp_path.glob("flowguide-rescued-*")
    assert same(sampling.load(rescued).params, states[12][0].ema)
    # The cure that the message names: the run goes on to the same bits.
    shutil.move(rescued / "checkpoints" / "12", workdir / "checkpoints" / "12")
    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", real)
    assert same(script.train(small(data_dir, steps=12, eval_every=100), workdir), states[12][0])


def test_a_full_log_ends_the_run_and_loses_nothing(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.tempfile, "tempdir", str(tmp_path))
    workdir = tmp_path / "full"
    workdir.mkdir()
    (workdir / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be written to .*No space left.*step 4 was saved to"):
        script.train(small(data_dir, log_every=3), workdir)
    (rescued,) = tmp_path.glob("flowguide-rescued-*")
    assert sampling.load(rescued).step == 4


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

    monkeypatch.setattr(script.Log, "tick", tick)
    monkeypatch.setattr(checkpoint.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(UserError, match=r"deleted or replaced .*step 8 was saved to .* go on with --workdir="):
        script.train(config, workdir)
    assert not list(workdir.glob("*"))
    (rescued,) = tmp_path.glob("flowguide-rescued-*")
    assert sampling.load(rescued).step == 8
    assert same(script.train(config, rescued), states[12][0])


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
    build.replace_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        build.replace_text(file, "new\ud800")
    assert file.read_text() == "old"
    build.replace_text(file, "new")
    assert file.read_text() == "new"


def test_settings_that_fit_may_be_forced(run, data_dir, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run[0], copy)
    config = small(data_dir, steps=14, eval_every=100, lr=2e-3)
    with pytest.raises(UserError, match=r"lr was 0.001, is 0.002.*--force allows to change lr, warmup"):
        script.train(config, copy)
    with pytest.raises(UserError, match=r"network.width was 16, is 8"):
        script.train(small(data_dir, steps=14, network={"name": "mlp", "width": 8, "depth": 2}), copy, force=True)
    assert int(script.train(config, copy, force=True).step) == 14
    assert build.read_config(copy).lr == 2e-3


HASHED = {
    "float32": np.linspace(-1, 1, 1000, dtype=np.float32).reshape(10, 100),
    "bfloat16": np.asarray(jnp.linspace(-1, 1, 77, dtype=jnp.bfloat16)),
    "int32": np.arange(50, dtype=np.int32),
    "bool": np.arange(9) % 2 == 0,
    "scalar": np.float32(3.0),
}


@pytest.mark.parametrize("name", HASHED)
def test_hashes_notice_every_bit_and_every_exchange(name):
    a = HASHED[name]
    before = leaf_hashes({"a": jnp.asarray(a)})
    assert list(before) == ["['a']"]
    raw, itemsize = a.tobytes(), a.dtype.itemsize
    for bit in range(0, 8 * len(raw), max(1, len(raw) // 40)):
        if a.dtype == bool and bit % 8:
            continue  # a bool has one bit
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        b = np.frombuffer(bytes(changed), a.dtype).reshape(a.shape)
        assert leaf_hashes({"a": jnp.asarray(b)}) != before
    if a.size > 2:
        flat = a.reshape(-1).copy()
        flat[[0, 1]] = flat[[1, 0]]
        assert leaf_hashes({"a": jnp.asarray(flat.reshape(a.shape))}) != before
        assert leaf_hashes({"a": jnp.asarray(a.reshape(1, *a.shape))}) != before
    assert itemsize


def test_hashes_do_not_depend_on_where_an_array_lies():
    a = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    places = [PartitionSpec(), PartitionSpec("a"), PartitionSpec("a", "b"), PartitionSpec(None, ("a", "b"))]
    found = {leaf_hashes([jax.device_put(a, NamedSharding(mesh, place))])["[0]"] for place in places}
    assert found == {leaf_hashes([jnp.asarray(a)])["[0]"]}
    # Of an array that is split no device sees the whole, only sums travel.
    split = jax.device_put(a, NamedSharding(mesh, places[-1]))
    assert "all-gather" not in jax.jit(array_hash).lower(split).compile().as_text()
    assert json_hash({"a": 1, "b": [2]}) == json_hash({"b": [2], "a": 1}) != json_hash({"a": 1, "b": [3]})


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_bits(data_dir, tmp_path):
    """Twenty processes of train.py, each killed with −9 at a random moment, most of them while they train or save."""
    config = tmp_path / "config.py"
    config.write_text(
        "from flowguide import build\n\n\ndef get_config():\n    c = build.default()\n"
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

    whole = start(tmp_path / "whole")
    assert whole.wait() == 0, whole.stderr.read()

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
    assert polite.wait() == 0, polite.stderr.read()
    for kill in range(20):
        process = started()
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -9, (kill, process.returncode, process.stderr.read())
    last = start(workdir)
    assert last.wait() == 0, last.stderr.read()
    assert same(sampling.load(workdir).params, sampling.load(tmp_path / "whole").params)
    assert json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 1000
