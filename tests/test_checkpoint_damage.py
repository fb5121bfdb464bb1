"""Damaged checkpoints: it is said, an older one is used, and nothing that was not saved is believed."""

import json
import pickle
import shutil

import pytest

from flowguide import build, checkpoint, sampling
from flowguide.data import batches
from flowguide.errors import UserError
from tests.support.checkpoints import finished
from tests.support.runs import same, small


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    return finished(data_dir, tmp_path_factory.mktemp("checkpoint"))


def damages(content):
    middle = len(content) // 2
    yield "truncated", content[:middle]
    yield "flipped", content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]


@pytest.mark.slow
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


@pytest.mark.thorough
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


def test_a_damaged_best_checkpoint_is_replaced_by_the_newest_whole_one(run, tmp_path, capsys):
    """Step 8 is made the best one, then damaged; a step that is asked for by its number is not replaced."""
    workdir, states, _ = run
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    c = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**c, "use": "best"}))
    for step, loss in ((8, 0.1), (12, 0.2)):
        scores = copy / "checkpoints" / str(step) / "metrics" / "metrics"
        scores.parent.mkdir(exist_ok=True)
        scores.write_text(json.dumps({checkpoint.BEST_BY: loss}))
    assert same(sampling.load(copy).params, states[8][0].ema)
    assert not capsys.readouterr().err
    shutil.rmtree(copy / "checkpoints" / "8" / "ema")
    loaded = sampling.load(copy)
    assert (loaded.step, same(loaded.params, states[12][0].ema)) == (12, True)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("warning: the best checkpoint ")
    assert line.endswith("; that of step 12 is used in its place")
    with pytest.raises(UserError, match=r"checkpoints/8 cannot be read"):
        sampling.load(copy, 8)


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
