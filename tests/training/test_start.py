"""Training that starts from another run has its parameters, but for embeddings of other conditions."""

import jax
import numpy as np
import pytest

from flowguide import sampling
from flowguide.errors import UserError
from flowguide.training import loop
from tests.support.runs import same, small


def still(data_dir, **changes):
    """A run of one step that changes nothing that could be seen."""
    return small(data_dir, steps=1, lr=1e-12, seed=5, **changes)


@pytest.mark.thorough
def test_parameters_and_average_are_those_of_the_run(whole, data_dir, tmp_path):
    theirs = sampling.load(whole[0]).params
    state = loop.train(still(data_dir, init=str(whole[0])), tmp_path / "own")
    for part in (state.params, state.ema):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), part, theirs)
    fresh = loop.train(still(data_dir), tmp_path / "fresh").params
    apart = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), fresh, theirs)
    assert max(jax.tree.leaves(apart)) > 0.1

    # A run that resumes needs the other no more.
    again = loop.train(small(data_dir, steps=2, lr=1e-12, seed=5, init="nowhere"), tmp_path / "own")
    assert int(again.step) == 2


@pytest.mark.thorough
def test_embeddings_of_other_conditions_start_afresh(whole, data_dir, tmp_path, capsys):
    config = still(data_dir, init=str(whole[0]))
    config.data.fields = ("none",)
    state = loop.train(config, tmp_path)
    theirs = sampling.load(whole[0]).params
    assert "condition" not in state.params
    assert same(state.params["inlet"], theirs["inlet"]) or np.allclose(
        state.params["inlet"]["kernel"], theirs["inlet"]["kernel"], atol=1e-6
    )
    # And the other way round: the run without conditions has no embeddings of the labels.
    state = loop.train(still(data_dir, init=str(tmp_path)), tmp_path / "labels")
    assert "they start afresh" in capsys.readouterr().err
    assert np.ptp(state.params["condition"]["fields"]["label"]["table"]) > 0.1


def test_another_network_is_refused_before_anything_is_written(whole, data_dir, tmp_path):
    for changes in ({"network": {"name": "mlp", "width": 24, "depth": 2}}, {"network": {"name": "mlp", "depth": 3}}):
        with pytest.raises(UserError, match=r"has another network than this run, by .*take its network"):
            loop.train(still(data_dir, init=str(whole[0]), **changes), tmp_path / "run")
    with pytest.raises(UserError, match="no run in"):
        loop.train(still(data_dir, init=str(tmp_path / "nowhere")), tmp_path / "run")
    assert not (tmp_path / "run").exists()
