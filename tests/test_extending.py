"""What docs/architecture.md promises of a new field and a new kind of example, with the very code of docs/extending.md.

Each is registered in the places that the page names and nowhere else; then it trains, is saved, loaded, prompted,
sampled, planned and exported.
"""

import re

import jax
import numpy as np
import pytest

from flowguide import build, config, sampling
from flowguide.config import complete
from flowguide.data import Dataset
from flowguide.data.readers import READERS
from flowguide.errors import UserError
from flowguide.guidance import methods
from flowguide.networks import embed
from flowguide.planning import plan
from flowguide.schema import Batch, DataInfo, Label, Vectors, examples, fields
from flowguide.training import loop
from tests.support.runs import ROOT

PAGE = (ROOT / "docs" / "extending.md").read_text()


@pytest.fixture(scope="module")
def page():
    """The names that the code blocks of the page define."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        if re.search(r"^class (Angle|AngleEmbedding|Waves)\b", block, re.MULTILINE):
            exec(block.replace("EMBEDDINGS[Angle] =", "_ ="), names)
    return names


def tiny():
    c = config.default()
    c.network = {"name": "mlp", "width": 8, "depth": 1}
    c.update({"batch_size": 8, "steps": 2, "warmup": 1, "log_every": 1, "eval_examples": 8})
    c.preview.every = 0
    return complete(c)


def trained(monkeypatch, workdir, info, x, value):
    """A model trained for two steps on these examples, and loaded again."""
    data = Dataset(info, "train", "1", len(x), True, lambda i: Batch(x[i], {k: v[i] for k, v in value.items()}))
    monkeypatch.setattr(build, "dataset", lambda config, split, fields=None: data)
    loop.train(tiny(), workdir)
    return sampling.load(workdir)


@pytest.mark.slow
def test_a_field_of_ones_own(page, monkeypatch, tmp_path):
    angle = page["Angle"]()
    monkeypatch.setitem(fields.FIELDS, "angle", page["Angle"])
    monkeypatch.setitem(embed.EMBEDDINGS, page["Angle"], embed.Embedding(page["AngleEmbedding"]))
    info = DataInfo("circle", Vectors((2,)), {"heading": angle, "kind": Label(("a", "b"))})
    degrees = np.linspace(0, 350, 16, dtype=np.float32)
    x = np.stack([np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))], axis=-1)
    model = trained(monkeypatch, tmp_path, info, x, {"heading": degrees, "kind": np.arange(16, dtype=np.int32) % 2})
    assert model.info == info
    c = sampling.SamplerConfig("euler", 3)
    prompted = sampling.sample(model, "heading=450,kind=b", num=4, gamma=2.0, config=c).x
    given = sampling.sample(model, {"heading": np.full(4, 90.0), "kind": "b"}, num=4, gamma=2.0, config=c).x
    np.testing.assert_array_equal(prompted, given)
    assert np.abs(prompted - sampling.sample(model, "heading=0,kind=b", num=4, gamma=2.0, config=c).x).max() > 0
    with pytest.raises(UserError, match="'heading' takes an angle in degrees; got 'north'"):
        sampling.sample(model, "heading=north")
    assert plan(tiny(), info, jax.devices()[:1]).batch == 8 * (2 * 4 + 4 + 4 + 4)
    assert len(sampling.export(model, config=c, platforms=["cpu"])) > 1000


@pytest.mark.slow
def test_a_kind_of_example_of_ones_own(page, monkeypatch, tmp_path):
    monkeypatch.setitem(examples.EXAMPLES, "wave", page["Waves"])
    monkeypatch.setitem(READERS, "wave", READERS["points"])
    info = DataInfo("tones", page["Waves"]((6,)), {"kind": Label(("a", "b"))})
    x = np.random.default_rng(0).integers(-9000, 9000, (16, 6)).astype(np.int16)
    model = trained(monkeypatch, tmp_path, info, x, {"kind": np.arange(16, dtype=np.int32) % 2})
    assert model.info == info
    drawn = sampling.sample(model, "a", num=3, config=sampling.SamplerConfig("euler", 3)).x
    assert (drawn.dtype, drawn.shape) == (np.int16, (3, 6))
    assert np.abs(drawn).max() > 1000
    assert plan(tiny(), info, jax.devices()[:1]).batch == 8 * (6 * 2 + 4 + 4)


def test_a_rule_is_known_to_the_library_and_the_command_line_by_its_name(monkeypatch):
    def gentle(inputs: methods.GuidanceInputs, *, share: float = 0.5) -> methods.Guidance:
        """CFG at a share of its scale"""
        return methods.cfg(inputs._replace(gamma=lambda t: share * inputs.gamma(t)))

    monkeypatch.setitem(methods.METHODS, "gentle", gentle)
    resolved = sampling.resolve_defaults(sampling.SamplerConfig(guidance="gentle", settings=(("share", 0.3),)))
    assert resolved.guidance == "gentle"
    assert "gentle:share=0.5 -- CFG at a share of its scale" in methods.summary()
    with pytest.raises(UserError, match="has no setting 'shore'"):
        sampling.check_together(resolved._replace(settings=(("shore", 0.3),)))
