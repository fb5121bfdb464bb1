"""An evaluation to make pages of, which takes no judge and no second."""

import numpy as np
import pytest

from flowguide import evaluation, sampling
from flowguide.evaluation import judging
from tests.support.toy import ONE
from tests.support.toy_data import data_of

CONFIG = sampling.SamplerConfig(solver="euler", steps=3)
GAMMAS = (1.0, 2.0, 4.0)


def classes(x):
    """Features, and probabilities of two classes."""
    flat = x.reshape(len(x), -1)
    p = 1 / (1 + np.exp(-flat[:, :1]))
    return flat[:, :4], np.concatenate([p, 1 - p], 1)


@pytest.fixture(scope="session")
def found(tmp_path_factory):
    """Two rules at three scales."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "STEPS", 20)
        settings = evaluation.settings(ONE, GAMMAS, (CONFIG, CONFIG._replace(guidance="apg")))
        folder = tmp_path_factory.mktemp("found")
        measured = evaluation.evaluate(settings, data_of(ONE.info), folder, num=20, features=classes, batch_size=20)
    assert measured is not None
    return measured
