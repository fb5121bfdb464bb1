"""Grids of one's own and fitted ones, and the gap between u(x, c) and u(x, ∅)."""

import numpy as np
import pytest
from PIL import Image

from flowguide import pictures, sampling
from flowguide.errors import UserError
from tests.support.toy import MODEL, draw


@pytest.mark.thorough
def test_a_grid_of_ones_own_and_a_fitted_one():
    own = draw(config=sampling.SamplerConfig("ab2", grid=tuple(i / 6 for i in range(7))))
    np.testing.assert_allclose(own.x, draw(config=sampling.SamplerConfig("ab2", 6)).x, atol=1e-5)
    assert (own.evaluations == 12).all()

    config, away = sampling.SamplerConfig("abm3", 4), ["beard=yes"]
    grid = sampling.fit_grid(MODEL, ["hat=red", ""] * 8, config=config, gamma=3.0, negative=away, iterations=10)
    assert len(grid) == 5
    exact = draw(config=sampling.SamplerConfig("dopri5", tolerance=1e-6), gamma=3.0, negative=away).x
    configs = config, config._replace(grid=grid)
    error = [np.abs(draw(config=m, gamma=3.0, negative=away).x - exact).mean() for m in configs]
    assert error[1] < 0.7 * error[0]
    with pytest.raises(UserError, match=r"a grid is fitted to ab2, .*; got renoise"):
        sampling.fit_grid(MODEL, ["hat=red"], config=sampling.SamplerConfig("renoise"))


def test_the_gap_is_drawn(tmp_path):
    gap = sampling.gap(MODEL, "hat=red", num=5, gamma=2.0, config=sampling.SamplerConfig("ab3", 7))
    assert gap.difference.shape == gap.cosine.shape == (7, 5)
    pictures.save_gaps(tmp_path / "gap.png", {"γ = 2": gap}, "hat=red")
    assert Image.open(tmp_path / "gap.png").size[0] > 500
    with pytest.raises(UserError, match=r"measured along ab2, .*; got dopri5"):
        sampling.gap(MODEL, "hat=red", config=sampling.SamplerConfig("dopri5"))
