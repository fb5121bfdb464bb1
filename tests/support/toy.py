"""A made-up model, whose samples take milliseconds."""

import jax.numpy as jnp

from flowguide import paths, sampling
from flowguide.networks import Network
from flowguide.schema import Cond, DataInfo, Label, Vectors

FIELDS = {"hat": Label(("none", "red")), "beard": Label(("no", "yes"))}
SHAPE = (3, 3, 1)
FKC = sampling.SamplerConfig(steps=8, sampler="fkc", particles=6, threshold=0.9)


def velocity(params, t, x, c):
    """A network that reads everything it is given."""
    hat, beard = (jnp.where(c.present[k], c.value[k] + 1.0, 0.0)[:, None, None, None] for k in ("hat", "beard"))
    return params["w"] * jnp.tanh(x) + jnp.sin(3 * t)[:, None, None, None] + 0.3 * hat - 0.2 * beard * x


NETWORK = Network(lambda key: {"w": jnp.float32(0.5)}, velocity)
MODEL = sampling.Model(
    DataInfo("toy", Vectors(SHAPE), FIELDS), NETWORK, {"w": jnp.float32(0.5)}, paths.linear(), sampling.Plain(), 7
)
# The same with one field of ten classes, which needs no name.
ONE = MODEL._replace(
    info=MODEL.info._replace(fields={"hat": Label(tuple("0123456789"))}),
    network=NETWORK._replace(
        velocity=lambda params, t, x, c: (
            jnp.where(c.present["hat"], jnp.sin(c.value["hat"] + 1.0), 0)[:, None, None, None] - x
        )
    ),
)
# The same without fields.
FREE = MODEL._replace(
    info=MODEL.info._replace(fields={}), network=NETWORK._replace(velocity=lambda params, t, x, c: -x)
)


def draw(cond: Cond = "hat=red", **options):
    """Ten samples of the model, in six steps at γ = 2."""
    options = {"num": 10, "gamma": 2.0, "config": sampling.SamplerConfig(steps=6), **options}
    return sampling.sample(MODEL, cond, **options)


def draw_laws(cond: Cond = "hat=red", **options):
    """The particles of five laws of the model at γ = 2.5."""
    options = {"num": 5, "gamma": 2.5, "config": FKC, **options}
    return sampling.sample_particles(MODEL, cond, **options)
