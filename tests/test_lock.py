"""One trainer a folder: who holds it is named, and who is dead holds nothing."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from flowguide import lock
from flowguide.errors import UserError
from flowguide.lock import only_trainer
from flowguide.training import loop
from tests.support.runs import ROOT, small

HOLD = """
import sys, time
from pathlib import Path
from flowguide.lock import only_trainer
with only_trainer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_second_trainer_is_refused_and_leaves_the_folder_alone(data_dir, tmp_path):
    config = small(data_dir, steps=4)
    with only_trainer(tmp_path):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(UserError, match=rf"process {os.getpid()} on {socket.gethostname()} trains in .* --workdir"):
            loop.train(config, tmp_path)
        assert sorted(tmp_path.iterdir()) == before
    assert int(loop.train(config, tmp_path).step) == 4
    assert int(loop.train(small(data_dir, steps=6), tmp_path).step) == 6


@pytest.mark.slow
def test_a_failed_start_does_not_hold_the_folder(data_dir, tmp_path):
    loop.train(small(data_dir, steps=4), tmp_path)
    with pytest.raises(UserError, match="another config") as kept:
        loop.train(small(data_dir, steps=4, lr=0.1), tmp_path)
    loop.train(small(data_dir, steps=5), tmp_path)
    assert kept.traceback  # which holds whatever the start that failed had opened


def test_a_killed_owner_holds_nothing(tmp_path):
    """It is refused while it lives, also while it is stopped, and taken at once when it is gone."""
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "held\n"
    for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGKILL):
        with pytest.raises(UserError, match=f"process {owner.pid} on "), only_trainer(tmp_path):
            pass
        owner.send_signal(number)
    owner.wait()
    owner.stdout.close()
    started = time.monotonic()
    with only_trainer(tmp_path):
        pass
    assert time.monotonic() - started < lock.SILENCE / 2  # it was not waited for a beat


@pytest.mark.parametrize("locks", [True, False])
def test_an_owner_elsewhere_is_known_by_its_beat(tmp_path, monkeypatch, capsys, locks):
    """Where the file system keeps locks within a host, or keeps none."""
    monkeypatch.setattr(lock, "SILENCE", 1.0)
    if not locks:

        def refuse(*args):
            raise OSError(95, "Operation not supported")

        monkeypatch.setattr(lock.fcntl, "flock", refuse)
    file = tmp_path / lock.NAME
    file.write_text("process 7 on elsewhere")
    alive, stop = threading.Event(), threading.Event()

    def beat():
        while not stop.wait(0.1):
            os.utime(file)
            alive.set()

    other = threading.Thread(target=beat)
    other.start()
    assert alive.wait(5)
    with pytest.raises(UserError, match="process 7 on elsewhere trains in"), only_trainer(tmp_path):
        pass
    stop.set()
    other.join()
    assert file.read_text() == "process 7 on elsewhere"

    with only_trainer(tmp_path):  # it was alive a moment ago
        assert file.read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    assert "process 7 on elsewhere has trained in" in capsys.readouterr().err

    file.write_text("process 7 on elsewhere")
    os.utime(file, (0, 0))
    with only_trainer(tmp_path):  # it was alive long ago
        pass
    assert capsys.readouterr().err == ""


def test_the_owner_shows_life(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    with only_trainer(tmp_path):
        os.utime(tmp_path / lock.NAME, (0, 0))
        time.sleep(0.5)
        assert (tmp_path / lock.NAME).stat().st_mtime > 1e9


def test_a_lock_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / lock.NAME).mkdir()
    with pytest.raises(UserError, match=r"cannot write to .* choose another folder"), only_trainer(tmp_path):
        pass
    (tmp_path / lock.NAME).rmdir()
    (tmp_path / lock.NAME).write_bytes(b"\xff\xfe\x00")
    os.utime(tmp_path / lock.NAME, (0, 0))
    with only_trainer(tmp_path):
        pass
