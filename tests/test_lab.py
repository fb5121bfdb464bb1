"""The lab as a user runs it: its table holds what is known exactly."""

import subprocess
import sys

import numpy as np
import pytest

from flowguide import analytic, lab


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    out = tmp_path_factory.mktemp("lab") / "lab.png"
    command = [sys.executable, "-m", "flowguide", "lab", "--gamma=3", "--num=4000", "--steps=50", f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, out


def rows(text, title):
    part = text[text.index(title) :].split("└")[0]
    cells = (line.strip("│ ").split("│") for line in part.splitlines() if line.startswith("│"))
    return {name.strip(): [float(c) for c in values if c.strip()] for name, *values in cells}


@pytest.mark.slow
def test_table_and_figure(printed):
    text, out = printed
    assert out.stat().st_size > 20_000
    law = rows(text, "Gaussian, γ = 3")
    for eta, name in ((0.0, "CFG, ODE"), (1.0, "CFG, SDE η = 1")):
        exact = analytic.guided_moments(3.0, 0.0, 2.0, 1.5, 1.0, eta=eta)
        np.testing.assert_allclose(law[f"exact: {name}"], exact, atol=6e-4)
        np.testing.assert_allclose(law[name][:2], exact, atol=0.06)
    for same, other in (
        ("CFG-Zero*", "exact: p(x|c)"),
        ("APG, parallel 0", "exact: p(x|c)"),
        ("TCFG", "exact: CFG, ODE"),
    ):
        np.testing.assert_allclose(law[same][:2], law[other], atol=0.06)
    modes = rows(text, "two modes, γ = 3")
    assert modes["exact draws of the tilted law"][4] < 0.05 < modes["CFG, ODE"][4]
    assert modes["FKC, η = 2"][4] < 0.3 * modes["CFG, ODE"][4]
    assert modes["PC, M = 8"][4] < modes["PC, M = 2"][4] < modes["CFG, ODE"][4]
    exact = analytic.tilted_moments(3.0, 0.0, 2.0, 1.5, 1.0)
    np.testing.assert_allclose(law["FKC, η = 2"][:2], [exact[0][0], exact[1][0, 0]], atol=0.12)


def test_distances_to_a_density():
    """Of a sample moved by δ, W1 is δ; of disjoint ones TV is 1; of its own quantiles both are nearly 0."""
    p = lab.normal(1.0, 0.5, lab.AXIS)
    draws = lab.inverse(p, 50_000)
    w1, tv = lab.distances(draws, p)
    assert w1 < 0.02
    assert tv < 0.03
    assert lab.distances(draws + 2.0, p)[0] == pytest.approx(2.0, abs=0.02)
    assert lab.distances(draws + 6.0, p)[1] > 0.99


def test_tilted_law_of_gaussians_is_the_closed_form():
    p = lab.powered(lab.gaussian(), 3.0)
    mean = np.trapezoid(p * lab.AXIS, lab.AXIS)
    variance = np.trapezoid(p * (lab.AXIS - mean) ** 2, lab.AXIS)
    exact = analytic.tilted_moments(3.0, 0.0, 2.0, 1.5, 1.0)
    np.testing.assert_allclose([mean, variance], [exact[0][0], exact[1][0, 0]], rtol=1e-5)
