"""Whether a network learned its null token ∅, and where the verdict is kept."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowguide import config, sampling
from flowguide.sampling import null as null_module
from tests.support.toy import MODEL, NETWORK


def test_untrained_null_tokens_are_seen(digits):
    model = sampling.load(digits)
    seed = config.read_config(digits).seed
    fresh = model.network.init(jax.random.split(jax.random.key(seed), 3)[0])
    null = sampling.check_null(model._replace(params=fresh), seed)
    assert null.untouched == ("label",)
    assert not null.gap > 0  # the last layer is zero at first
    moved = sampling.check_null(model._replace(params=jax.tree.map(lambda p: p + 0.1, fresh)), seed)
    assert moved.untouched == ()
    assert moved.gap > 0


def test_the_gap_of_null_is_relative_to_the_conditional_velocity():
    def known(params, t, x, c):
        present = (c.present["hat"] & c.present["beard"])[:, None, None, None]
        return jnp.broadcast_to(jnp.where(present, 4 * t[:, None, None, None], 0.5), x.shape)  # 2 half-way, or 0.5

    null = sampling.check_null(MODEL._replace(network=NETWORK._replace(velocity=known)), 0)
    assert null == ((), pytest.approx(1.5 / 2, rel=1e-6))


def test_the_verdict_on_null_is_kept_at_the_end_of_training(digits, tmp_path, monkeypatch):
    """Training has looked. ``kept_null`` looks only if there is no verdict on its step, and keeps what it finds."""
    model, seed = sampling.load(digits), config.read_config(digits).seed
    own, kept = sampling.check_null(model, seed), sampling.kept_null(digits, model)
    assert kept == (own.untouched, pytest.approx(own.gap, rel=1e-5))  # another program, on other devices
    assert json.loads((digits / "null.json").read_text())["step"] == model.step == 3

    looks = []
    look = lambda model, seed: looks.append(model.step) or sampling.Null(("label",), float("nan"))  # noqa: E731
    monkeypatch.setattr(null_module, "check_null", look)
    assert sampling.kept_null(digits, model) == kept
    assert not looks
    shutil.copytree(digits, tmp_path / "run")
    other = model._replace(step=2)
    for _ in range(2):
        assert sampling.kept_null(tmp_path / "run", other).untouched == ("label",)
    assert looks == [2]
    assert "NaN" not in (tmp_path / "run" / "null.json").read_text()
    (tmp_path / "run" / "null.json").write_text("{")
    assert np.isnan(sampling.kept_null(tmp_path / "run", model).gap)
    assert looks == [2, 3]
