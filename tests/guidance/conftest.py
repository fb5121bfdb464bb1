"""Fixtures shared by the guidance tests."""

import jax
import pytest


@pytest.fixture
def float64():
    """Numbers of double precision, so that a formula is right to eight digits or wrong."""
    with jax.enable_x64(True):
        yield
