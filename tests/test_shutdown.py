"""Who ends a run, and what it leaves: signals before and in the loop, and of the launcher's processes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flowguide import checkpoint
from flowguide.training import loop
from tests.support.runs import ROOT, same, small


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    return loop.train(small(data_dir, steps=12), tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_more_signals_do_not_prevent_the_save(whole, data_dir, tmp_path, monkeypatch, number):
    """In the loop and in the save itself; what was the handler before is not called, and is one again at the end."""
    tick, save, ticks, astray = loop.Log.tick, checkpoint.save, [], []

    def send(*numbers):
        for each in numbers:
            os.kill(os.getpid(), each)

    def ticking(self, loss):
        ticks.append(loss)
        if len(ticks) == 5:
            send(number, number, signal.SIGINT, signal.SIGTERM)
        tick(self, loss)

    def saving(*args, **options):
        send(number, signal.SIGINT)
        save(*args, **options)
        send(number)

    def handler(*_):
        astray.append(number)

    monkeypatch.setattr(loop.Log, "tick", ticking)
    monkeypatch.setattr(checkpoint, "save", saving)
    before = {each: signal.signal(each, handler) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert 5 <= int(loop.train(small(data_dir, steps=12), tmp_path).step) <= 7
        assert signal.getsignal(number) is handler
    finally:
        for each, old in before.items():
            signal.signal(each, old)
    assert not astray
    monkeypatch.undo()
    assert same(loop.train(small(data_dir, steps=12), tmp_path), whole)


@pytest.mark.thorough
def test_a_terminal_that_is_gone_does_not_end_a_run(whole, data_dir, tmp_path, monkeypatch):
    """Ctrl-C in `train.py 2>&1 | tee log` ends tee as well, and the save is still to come."""
    monkeypatch.setattr(checkpoint.tempfile, "tempdir", str(tmp_path))
    real, ticks, (reader, writer) = loop.Log.tick, [], os.pipe()

    def tick(self, loss):
        ticks.append(loss)
        if len(ticks) == 3:
            os.close(reader)
        real(self, loss)

    monkeypatch.setattr(loop.Log, "tick", tick)
    with contextlib.suppress(BrokenPipeError), open(writer, "w", buffering=1) as gone:  # closing it writes once more
        monkeypatch.setattr(sys, "stderr", gone)
        monkeypatch.setattr(sys, "stdout", gone)
        state = loop.train(small(data_dir, steps=12), tmp_path / "run")
        monkeypatch.undo()
    assert same(state, whole)


@pytest.mark.thorough
@pytest.mark.parametrize("when", ["imports", "setup"])
def test_ctrl_c_before_the_loop_is_one_line(data_dir, tmp_path, when):
    config = tmp_path / "config.py"
    config.write_text(
        "import os, signal\nfrom ml_collections import ConfigDict\nfrom flowguide.training import assembly\n\n"
        "def network(*_):\n    os.kill(os.getpid(), signal.SIGINT)\n\n"
        f"def get_config():\n    assembly.from_config = network\n    return ConfigDict({small(data_dir).to_dict()!r})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "train.py", f"--config={config}", f"--workdir={tmp_path}/run"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    if when == "imports":
        maps = Path(f"/proc/{process.pid}/maps")
        if not maps.exists():
            pytest.skip("cannot see what the process has loaded")
        while "jaxlib" not in maps.read_text():
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
    assert (process.stderr.read().strip(), process.wait()) == ("train.py: interrupted", 130)
    assert not (tmp_path / "run" / "config.json").exists()
    process.stderr.close()


LAUNCHED = {  # what process 0 does, while process 1 fails
    "sleeps": "time.sleep(100)",
    "does not listen": "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)",
    "is stopped": "os.kill(os.getpid(), signal.SIGSTOP)",
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", LAUNCHED)
def test_the_launcher_ends_the_others_when_one_fails(tmp_path, name):
    child = tmp_path / "child.py"
    child.write_text(
        f"import os, signal, sys, time\nif '--process_id=0' in sys.argv:\n    {LAUNCHED[name]}\n"
        "time.sleep(0.5)\nsys.exit(3)\n"
    )
    patient = "import sys, launch; launch.PATIENCE = 2; sys.exit(launch.main())"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", patient, "--processes=2", str(child)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "examples")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    ended = signal.SIGTERM if name == "sleeps" else signal.SIGKILL
    assert f"process 0 ended with code -{ended.value}" in done.stderr
    assert "process 1 ended with code 3" in done.stderr
    assert done.returncode
    assert time.monotonic() - started < 30


def test_the_launcher_waits_for_those_that_do_well(tmp_path):
    child = tmp_path / "child.py"
    child.write_text("import sys, time\ntime.sleep(1 if '--process_id=0' in sys.argv else 0)\n")
    command = [sys.executable, "examples/launch.py", "--processes=2", str(child)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
