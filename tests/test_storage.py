"""Runs and data in buckets, through a stand-in for them: all but the arrays, which TensorStore writes itself."""

import contextlib
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
from orbax.checkpoint._src.path import gcs_utils
from PIL import Image

from flowguide import checkpoint, config, lock, mirrors, restore, sampling, storage
from flowguide.cli import sample, sample_output
from flowguide.cli.command import parse
from flowguide.cli.sample_command import parse as parse_command
from flowguide.cli.sample_output import Drawn
from flowguide.data import embed, import_path, open_dataset, open_path, parts
from flowguide.errors import DataError, UserError
from flowguide.lock import only_trainer
from flowguide.pictures import save_png
from flowguide.training import evaluators, profiling
from flowguide.training.guard import NonFiniteGuard
from flowguide.training.logs import Log
from flowguide.workdir import open_workdir, prepare_folder
from tests.support import text_encoders
from tests.support.buckets import Bucket, stand_in
from tests.support.runs import small
from tests.support.toy import MODEL


@pytest.fixture
def objects(monkeypatch):
    """The objects of an empty bucket named "bucket", by name."""
    monkeypatch.setattr(lock, "SETTLE", 0.05)
    with stand_in(monkeypatch) as found:
        yield found


def test_folders_stay_pathlib_and_need_no_etils():
    for text in ("runs/a", "/runs/a", ".", Path("runs/a"), "odd:/name"):
        assert type(storage.path(text)) is type(Path())
        assert storage.path(text) == Path(text)
        assert not storage.is_remote(storage.path(text))


@pytest.mark.parametrize("text", ["", " "])
def test_no_name_is_no_folder(text):
    """It comes from a variable that is not set, and would be the current folder."""
    with pytest.raises(UserError, match="expected a file or folder"):
        storage.path(text)


def test_an_address_keeps_its_slashes(objects):
    for scheme in ("gs", "s3"):
        address = f"{scheme}://bucket/runs/a"
        for given in (address, Path(address), storage.path(address)):  # pathlib makes one slash of two
            found = storage.path(given)
            assert storage.is_remote(found)
            assert str(found) == str(storage.absolute(found)) == str(found.expanduser()) == address
        assert str(storage.path(address) / "x" / ".." / "info.json").startswith(address)


@pytest.mark.parametrize("address", ["az://bucket/run", "http://host/run", "gs://", "s3:///"])
def test_other_addresses_are_refused(address):
    with pytest.raises(UserError, match="expected a folder, gs://BUCKET/NAME or s3://BUCKET/NAME; got the address"):
        storage.path(address)


@pytest.mark.parametrize(("scheme", "library"), [("gs", "gcsfs, or tensorflow$"), ("s3", "s3fs$")])
def test_a_missing_library_is_named(objects, monkeypatch, scheme, library):
    def missing(scheme):
        raise ImportError(f"no {scheme}")

    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(UserError, match=f"{scheme}://bucket/a cannot be reached .* pip install {library}"):
        storage.path(f"{scheme}://bucket/a")


def test_tensorflow_reaches_no_s3(objects, monkeypatch):
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: name == "tensorflow")
    monkeypatch.delenv("EPATH_USE_TF")
    storage.path("gs://bucket/a")
    with pytest.raises(UserError, match="EPATH_USE_TF=0"):
        storage.path("s3://bucket/a")


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_objects_are_written_read_and_moved(objects, scheme):
    folder = storage.path(f"{scheme}://bucket/run")
    storage.make_folder(folder / "none", parents=True)
    prepare_folder(folder)
    assert objects == {}  # the probe is gone
    assert storage.may_write(folder)
    storage.replace_text(folder / "a", "old")
    storage.replace_text(folder / "a", "new")
    storage.write_bytes(folder / "sub" / "b", b"\0")
    with storage.writing(folder / "sub" / "c") as file:
        np.savez_compressed(file, x=np.arange(3))
    assert objects["bucket/run/a"] == b"new"
    assert storage.read_text(folder / "a") == "new"
    np.testing.assert_array_equal(np.load((folder / "sub" / "c").open("rb"))["x"], np.arange(3))
    with contextlib.suppress(ZeroDivisionError), storage.writing(folder / "d") as file:
        file.write(b"half")
        _ = 1 / 0
    restore.move_away(folder / "sub", folder / "broken" / "sub")
    restore.move_away(folder / "broken", folder / "broken")  # the name is taken
    assert set(objects) == {f"bucket/run/{name}" for name in ("a", "broken-1/sub/b", "broken-1/sub/c")}
    assert {str(file) for file in storage.files_in(folder)} == {f"{scheme}://{name}" for name in objects}


def test_what_fails_in_a_bucket_is_an_os_error_in_one_line(objects):
    nowhere = storage.path("gs://nowhere/run")
    for act in (
        lambda: storage.check_writable(nowhere),
        lambda: storage.write_text(nowhere / "a", ""),
        lambda: storage.write_bytes(nowhere / "a", b""),
    ):
        with pytest.raises(OSError, match="Refused: 403 for nowhere") as error:
            act()
        assert error.value.strerror
        assert error.value.filename.startswith("gs://nowhere/run")
    with pytest.raises(FileNotFoundError):
        storage.read_text(nowhere / "a")
    assert not storage.may_write(nowhere)
    with pytest.raises(UserError, match=r"cannot write to gs://nowhere/run \(Refused: 403"):
        prepare_folder(nowhere)


def test_a_file_that_finds_no_room_is_not_left_in_part(tmp_path, monkeypatch):
    def fail(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    (tmp_path / "old.png").write_bytes(b"old")
    monkeypatch.setattr(type(tmp_path), "write_bytes", fail)
    for name in ("old.png", "new.png"):
        with pytest.raises(OSError, match="No space"):
            save_png(tmp_path / name, np.zeros((2, 2, 3), np.uint8))
    assert [file.name for file in tmp_path.iterdir()] == ["old.png"]


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_what_could_not_be_replaced_stays_alone(tmp_path, monkeypatch, step):
    def fail(self, content):
        raise OSError(28, "No space left on device")

    def fail_in_the_middle(self, content):
        with self.open("wb") as file:
            file.write(content[:1])
        fail(self, content)

    (tmp_path / "old").write_bytes(b"old")
    monkeypatch.setattr(type(tmp_path), step, fail_in_the_middle if step == "write_bytes" else fail)
    for name in ("old", "new"):
        with pytest.raises(OSError, match="No space"):
            storage.replace_bytes(tmp_path / name, b"content")
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


def test_a_run_claims_its_address(objects):
    workdir = storage.path("gs://bucket/runs/a")

    def opened(c, force=False):
        c = config.complete(c)
        with contextlib.ExitStack() as held:
            open_workdir(workdir, c, {"config.json": config.config_text(c), "info.json": "{}"}, force, held)()
            assert objects["bucket/runs/a/.trainer"]
        assert objects["bucket/runs/a/.trainer"] == b""

    opened(small("gs://bucket/data"))
    opened(small("gs://bucket/data", lr=0.1))  # the first never reached a checkpoint
    objects["bucket/runs/a/checkpoints/8/commit_success.txt"] = b""
    assert checkpoint.any_in(workdir)
    opened(small("gs://bucket/data", lr=0.1))
    with pytest.raises(UserError, match=r"another config \(lr was 0.1, is 0.2\)"):
        opened(small("gs://bucket/data", lr=0.2))
    assert config.read_config(workdir).lr == 0.1
    opened(small("gs://bucket/data", lr=0.2), force=True)
    assert set(objects) == {
        f"bucket/runs/a/{name}" for name in (".trainer", "config.json", "info.json", "checkpoints/8/commit_success.txt")
    }


def test_of_two_trainers_the_living_one_is_known_by_its_beat(objects, monkeypatch, capsys):
    monkeypatch.setattr(lock, "SILENCE", 2.0)
    monkeypatch.setattr(lock, "BEAT", 0.05)
    workdir = storage.path("gs://bucket/run")
    with only_trainer(workdir) as check:
        told = r"process \d+ on .* trains in gs://bucket/run: wait .* another --workdir"
        with pytest.raises(UserError, match=told), only_trainer(workdir):
            pass
        check()
    assert "waiting up to 2 s" in capsys.readouterr().err
    with only_trainer(workdir):  # left in good order, there is nothing to wait for
        pass
    assert capsys.readouterr().err == ""

    monkeypatch.setattr(lock, "SILENCE", 0.3)
    objects["bucket/run/.trainer"] = b"process 7 on elsewhere\nabc 3"  # it was killed
    with only_trainer(workdir) as check:
        objects["bucket/run/.trainer"] = b"process 8 on elsewhere\ndef 0"  # it has not heard of us for 90 s
        with pytest.raises(OSError, match="was deleted or replaced while process"):
            check()
        time.sleep(0.2)
    assert objects["bucket/run/.trainer"].startswith(b"process 8")


def test_of_two_trainers_that_start_together_one_is_refused(objects, monkeypatch):
    written = storage.write_text

    def written_by_both(file, text):
        written(file, text)
        objects["bucket/run/.trainer"] = b"process 8 on elsewhere\ndef 0"

    monkeypatch.setattr(storage, "write_text", written_by_both)
    with (
        pytest.raises(UserError, match="process 8 on elsewhere trains in"),
        only_trainer(storage.path("gs://bucket/run")),
    ):
        pass


def test_a_short_outage_ends_no_beat(objects, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.02)
    with only_trainer(storage.path("gs://bucket/run")) as check:
        monkeypatch.setattr(Bucket, "out_of_service", True)
        time.sleep(0.1)
        monkeypatch.setattr(Bucket, "out_of_service", False)
        before = objects["bucket/run/.trainer"]
        time.sleep(0.3)
        assert objects["bucket/run/.trainer"] != before
        check()


def test_logs_grow_over_a_resume_and_a_failure(objects):
    workdir = storage.path("gs://bucket/run")

    def logged(first):
        with Log(workdir, first, 8, 8) as log:
            for step in (first + 2, first + 4):
                log.scalars(step, {"loss": 0.5})
            log.picture(first, "samples", np.zeros((4, 4, 3), np.uint8))
            raise ZeroDivisionError

    for first in (0, 4):
        with pytest.raises(ZeroDivisionError):
            logged(first)
    lines = [json.loads(line) for line in objects["bucket/run/metrics.jsonl"].decode().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert any(name.startswith("bucket/run/tensorboard/events") for name in objects)


def test_a_silent_process_touches_no_bucket(objects):
    with Log(storage.path("gs://bucket/run"), 0, 8, 8, silent=True) as log:
        log.scalars(1, {"loss": 0.5})
    assert Bucket.writes == []


def test_logs_are_copied_on_the_way_and_after_an_outage(objects, monkeypatch, capsys):
    monkeypatch.setattr(mirrors, "EVERY", 0.02)
    monkeypatch.setattr(Bucket, "out_of_service", True)

    def wait_for(happened):
        ends = time.monotonic() + 20
        while not happened():
            assert time.monotonic() < ends
            time.sleep(0.02)

    told = []

    def warned():
        told.append(capsys.readouterr().err)
        return "gs://bucket/run cannot be written to (Refused: 403" in "".join(told)

    with Log(storage.path("gs://bucket/run"), 0, 8, 8) as log:
        log.scalars(1, {"loss": 0.5})
        wait_for(warned)
        monkeypatch.setattr(Bucket, "out_of_service", False)
        wait_for(lambda: b'"step": 1' in objects.get("bucket/run/metrics.jsonl", b""))
        wait_for(lambda: any("tensorboard" in name for name in objects))
        count = len(Bucket.writes)
        time.sleep(0.2)
        assert len(Bucket.writes) <= count + 1  # what has not grown is not copied again


def test_logs_that_cannot_be_copied_at_the_end_are_kept(objects, monkeypatch, capsys):
    with Log(storage.path("gs://bucket/run"), 0, 8, 8) as log:
        log.scalars(1, {"loss": 0.5})
        monkeypatch.setattr(Bucket, "out_of_service", True)
    place = Path(capsys.readouterr().err.rpartition("logs are in ")[2].strip())
    assert json.loads((place / "metrics.jsonl").read_text())["step"] == 1


def test_earlier_lines_that_cannot_be_fetched_are_not_replaced(objects, monkeypatch):
    objects["bucket/run/metrics.jsonl"] = b"{}\n"

    def fail(self, path, *args, **options):
        raise RuntimeError("try again")

    monkeypatch.setattr(Bucket, "_open", fail)
    with pytest.raises(OSError, match="try again"):
        Log(storage.path("gs://bucket/run"), 0, 8, 8)
    assert objects["bucket/run/metrics.jsonl"] == b"{}\n"


def test_a_trace_is_copied(objects, monkeypatch):
    def start_trace(place):
        folder = Path(place) / "plugins" / "profile"
        folder.mkdir(parents=True)
        (folder / "x.pb").write_bytes(b"trace")

    monkeypatch.setattr(profiling.jax.profiler, "start_trace", start_trace)
    monkeypatch.setattr(profiling.jax.profiler, "stop_trace", lambda: None)
    window = profiling.ProfileWindow((2, 3), storage.path("gs://bucket/run/profile"))
    for step in (1, 2, 3):
        window.before(step)
        told = window.after(step, 0, stopping=False)
    assert told == "steps 2 to 3 are traced in gs://bucket/run/profile"
    assert objects == {"bucket/run/profile/plugins/profile/x.pb": b"trace"}


def test_the_batch_that_ended_a_run_is_noted(objects):
    guard = NonFiniteGuard(0, storage.path("gs://bucket/run"), lambda step: [step, 5])
    with pytest.raises(UserError, match=r"all in gs://bucket/run/nonfinite\.json"):
        guard.look(3, dict.fromkeys(("loss", "grad_norm", "update_norm"), float("nan")), "No checkpoint was kept")
    assert json.loads(objects["bucket/run/nonfinite.json"]) == {"step": 3, "examples": [3, 5]}


def test_previews_are_drawn(objects, monkeypatch):
    c = config.complete(small("", batch_size=8))
    c.preview.update({"every": 2, "num": 4, "gammas": (1.0, 2.0)})
    x = np.zeros((4, *MODEL.info.shape), np.float32)
    assembly: Any = SimpleNamespace(model=MODEL)
    test: Any = SimpleNamespace(size=8, info=MODEL.info, read=lambda index: SimpleNamespace(x=x, value={}))
    monkeypatch.setattr(evaluators.sampling, "sample", lambda *args, **options: SimpleNamespace(x=x))
    context = evaluators.Context(c, assembly, test, test, storage.path("gs://bucket/run"), None)
    drawn = evaluators.previews(context).evaluate(MODEL.params, 2).picture
    assert drawn is not None
    assert list(objects) == ["bucket/run/previews/00000002.png"]
    with Image.open((context.workdir / "previews" / "00000002.png").open("rb")) as picture:
        assert picture.size == drawn.shape[1::-1]


def command_of(*arguments):
    values, _ = parse(sample.COMMAND, "sample.py", ["--coordinator=none", *arguments])
    return parse_command(values)


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_samples_are_written(objects, scheme):
    command = command_of(f"--workdir={scheme}://bucket/run", "--cond=hat=red", "--num=2", "--steps=2", "--save=npz")
    assert str(command.out) == f"{scheme}://bucket/run/samples"
    cell = {"cond": "hat=red", "gamma": 2.0, "first": 0, "num": 2, "network_evaluations": 4}
    drawn = Drawn([2.0], [cell], [np.zeros((2, *MODEL.info.shape), np.float32)], {}, 1.0)
    seen = sample_output.write(command, MODEL, sampling.resolve_defaults(command.config, MODEL), drawn)
    assert str(seen) == f"{scheme}://bucket/run/samples/grid.png"
    assert {name.rpartition("/")[2] for name in objects} == {"samples.npz", "samples.json", "grid.png"}
    with np.load((command.out / "samples.npz").open("rb")) as kept:
        assert kept["x"].shape == (2, *MODEL.info.shape)
    assert json.loads(objects["bucket/run/samples/samples.json"])["workdir"] == f"{scheme}://bucket/run"


def test_samples_that_cannot_be_written_are_one_line(objects):
    command = command_of("--workdir=gs://bucket/run", "--out=gs://nowhere/out", "--num=2", "--steps=2", "--save=npz")
    cell = {"cond": "", "gamma": 2.0, "first": 0, "num": 2, "network_evaluations": 4}
    drawn = Drawn([2.0], [cell], [np.zeros((2, *MODEL.info.shape), np.float32)], {}, 1.0)
    with pytest.raises(UserError, match=r"cannot write the samples to gs://nowhere/out \(Refused: 403"):
        sample_output.write(command, MODEL, sampling.resolve_defaults(command.config, MODEL), drawn)


def test_a_sampler_is_exported(objects, monkeypatch, capsys):
    command = command_of("--workdir=gs://bucket/run", "--export=s3://bucket/exported/sampler", "--steps=2")
    assert command.export is not None
    monkeypatch.setattr(sampling, "export", lambda *args, **options: b"program")
    sample._export(command, MODEL, command.config, command.export)
    assert objects["bucket/exported/sampler"] == b"program"
    assert json.loads(objects["bucket/exported/sampler.json"])["train_step"] == MODEL.step


def test_the_verdict_on_null_is_kept(objects):
    null = sampling.Null(("hat",), 0.5)
    sampling.keep_null(storage.path("gs://bucket/run"), MODEL.step, null)
    assert sampling.kept_null("gs://bucket/run", MODEL) == null
    sampling.keep_null(storage.path("gs://nowhere/run"), MODEL.step, null)  # which may fail


def test_a_run_is_read_from_its_address(objects, monkeypatch, digits):
    for name in ("config.json", "info.json"):
        objects[f"bucket/run/{name}"] = (digits / name).read_bytes()
    local = sampling.load(digits)
    seen = []

    def restore_ema(workdir, like, step, info, best):
        seen.append((str(workdir), info == json.loads((digits / "info.json").read_text())))
        return local.params, 3

    with pytest.raises(UserError, match="Orbax keeps checkpoints in folders and gs:// buckets, not in s3://bucket/run"):
        sampling.load("s3://bucket/run")
    monkeypatch.setattr(checkpoint, "restore_ema", restore_ema)
    for workdir in ("gs://bucket/run", Path("gs://bucket/run")):
        assert sampling.load(workdir).info == local.info
    assert seen == [("gs://bucket/run", True)] * 2
    with pytest.raises(UserError, match="no run in gs://bucket/none"):
        sampling.load("gs://bucket/none")
    objects["bucket/run/info.json"] = b"{"
    with pytest.raises(UserError, match=r"gs://bucket/run/info\.json cannot be read"):
        sampling.load("gs://bucket/run")


def test_finished_checkpoints_are_listed(objects, monkeypatch):
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)  # which asks Google
    for step in (8, 16):
        objects[f"bucket/run/checkpoints/{step}/commit_success.txt"] = b""
    objects["bucket/run/checkpoints/24/ema/part"] = b""  # the save was cut short
    assert restore.steps_in(storage.path("gs://bucket/run/checkpoints")) == [8, 16]


@pytest.mark.slow
def test_data_are_prepared_in_a_bucket_and_read_from_a_copy(objects, monkeypatch, tmp_path, data_dir, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    here = open_dataset("mixture2d", "test[:5%]", data_dir=data_dir)
    for scheme in ("gs", "s3"):
        there = open_dataset("mixture2d", "test[:5%]", data_dir=f"{scheme}://bucket/{scheme}")
        assert (there.info, there.version, there.size) == (here.info, here.version, here.size)
        np.testing.assert_array_equal(there.read(np.arange(9)).x, here.read(np.arange(9)).x)
        kept = [name for name in Bucket.writes if name.startswith(f"bucket/{scheme}/")]
        assert kept[-1] == f"bucket/{scheme}/mixture2d/{here.version}/dataset_info.json"
    count = len(Bucket.writes)
    assert capsys.readouterr().err.count("copying") == 2
    mirrors.local_copy.cache_clear()  # as in the next process
    open_dataset("mixture2d", "train[:1%]", data_dir="gs://bucket/gs")
    assert capsys.readouterr().err == ""
    assert len(Bucket.writes) == count


def test_files_are_imported_into_a_bucket_and_replaced_there(objects, monkeypatch, tmp_path):
    """Copies of a set that is imported anew, of the same size, are made anew as well."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    for sign in (1, -1):
        np.save(tmp_path / "x.npy", sign * x)
        assert import_path(tmp_path / "x.npy", "mine", "gs://bucket/data").written
        assert Bucket.writes[-1] == "bucket/data/mine/1.0.0/dataset_info.json"
        assert not import_path(tmp_path / "x.npy", "mine", "gs://bucket/data").written
        there = open_dataset("mine", data_dir="gs://bucket/data")
        np.testing.assert_array_equal(
            there.read(np.arange(18)).x, open_path(tmp_path / "x.npy")[0].read(np.arange(18)).x
        )
        objects.pop("bucket/data/mine/1.0.0/dataset_info.json")  # as if the import had been killed
        mirrors.local_copy.cache_clear()  # as in the next process


def test_texts_are_embedded_into_a_bucket_and_what_was_stopped_resumes(objects, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(parts, "PART", 8)
    texts = np.array([f"text number {i}" for i in range(20)])
    np.savez(tmp_path / "t.npz", x=np.random.default_rng(0).normal(size=(20, 3)), caption=texts)
    options = {"field": "caption", "encoder": text_encoders.ngrams}
    written, real = [], parts.storage.replace_bytes

    def stopped(file, content):
        if len(written) == 2:
            raise OSError("the bucket has gone")
        written.append(file.name)
        real(file, content)

    with monkeypatch.context() as broken:
        broken.setattr(parts.storage, "replace_bytes", stopped)
        with pytest.raises(
            DataError, match=r"mine cannot be written to gs://bucket/data/mine.* \(the bucket has gone\)"
        ):
            embed(tmp_path / "t.npz", "mine", "gs://bucket/data", **options)
    text_encoders.CALLS.clear()
    assert embed(tmp_path / "t.npz", "mine", "gs://bucket/data", **options).written
    assert sum(map(len, text_encoders.CALLS)) == 12
    assert not [name for name in objects if "incomplete" in name]
    there = open_dataset("mine", data_dir="gs://bucket/data").read(np.arange(18)).value["caption"]
    assert embed(tmp_path / "t.npz", "mine", tmp_path / "here", **options).written
    here = open_dataset("mine", data_dir=tmp_path / "here").read(np.arange(18)).value["caption"]
    np.testing.assert_array_equal(there, here)


def test_a_copy_finds_a_place_where_there_is_no_home(objects, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    objects.update({"bucket/d/info": b"1", "bucket/d/sub/x": b"2"})
    copy = mirrors.local_copy(storage.path("gs://bucket/d"), "info")
    assert (copy / "sub" / "x").read_bytes() == b"2"
    assert mirrors.local_copy(tmp_path, "info") == tmp_path
