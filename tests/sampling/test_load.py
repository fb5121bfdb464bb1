"""Runs that cannot be loaded are refused by the name of what is damaged."""

import shutil

import pytest

from flowguide import sampling
from flowguide.errors import UserError


def test_truncated_checkpoint_and_missing_files_are_named(digits, tmp_path):
    broken = tmp_path / "run"
    shutil.copytree(digits, broken)
    for file in (broken / "checkpoints" / "3" / "ema").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"checkpoints/3 cannot be read"):
        sampling.load(broken)
    (broken / "info.json").write_text("{")
    with pytest.raises(UserError, match=r"info.json cannot be read"):
        sampling.load(broken)
