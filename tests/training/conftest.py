"""A finished run that several files start from."""

import pytest

from flowguide.training import loop
from tests.support.runs import small


@pytest.fixture(scope="session")
def whole(data_dir, tmp_path_factory):
    """An uninterrupted run: its folder and its last state."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, loop.train(small(data_dir), workdir)
