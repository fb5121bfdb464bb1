"""Classifier guidance beside classifier-free guidance, on digits: the class asked for, and diversity.

python train.py --config=configs/digits.py --workdir=runs/digits
python train.py --config=configs/digits_classifier.py --workdir=runs/digits_classifier
python benchmarks/classifier.py --workdir=runs/digits --classifier=runs/digits_classifier

The unconditional velocity is pushed by the gradient of a classifier that knows the noise; were both exact, a weight w
would be CFG with γ = w. A judge trained on the real images, and on nothing else, says which digit each sample is.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from flowguide import build, checkpoint, config, guidance, model, sampling, solvers, times
from flowguide.cli.command import run_script
from flowguide.condition import bind, given, null
from flowguide.errors import UserError
from flowguide.metrics import predict, train_judge
from flowguide.networks import log_probability
from flowguide.schema import to_pixels

WORKDIR = flags.DEFINE_string("workdir", None, "run of configs/digits.py")
CLASSIFIER = flags.DEFINE_string("classifier", None, "run of configs/digits_classifier.py")
NUM = flags.DEFINE_integer("num", 250, "samples for each line, of ten digits")
STEPS = flags.DEFINE_integer("steps", 40, "steps of AB2")


def main() -> None:
    if WORKDIR.value is None or CLASSIFIER.value is None:
        raise UserError("expected --workdir=DIR and --classifier=DIR, two folders that train.py has written")
    plain, settings = sampling.load(WORKDIR.value), config.read_config(Path(WORKDIR.value))
    network = model.from_config(config.read_config(Path(CLASSIFIER.value)), plain.info).network
    params, _ = checkpoint.restore_ema(Path(CLASSIFIER.value), jax.eval_shape(network.init, jax.random.key(0)), None)
    log_p = log_probability(network, params)
    real = build.dataset(settings, settings.data.split, plain.info.fields)
    real = real.read(np.arange(real.size))
    judge = train_judge(real.x, real.value, levels=2, noise=30)

    label = np.arange(NUM.value) % 10
    c, path = given({"label": label}), plain.path
    velocity = partial(plain.network.velocity, plain.params)
    x0 = jax.random.normal(jax.random.key(0), (NUM.value, *plain.info.shape))

    @jax.jit
    def by_classifier(x: jax.Array, weight: jax.Array) -> jax.Array:
        u = guidance.with_gradient(bind(velocity, null(c)), lambda t, x: log_p(t, x, c), weight, path)
        return solvers.solve(solvers.ab2(), u, x, times.grid(STEPS.value))

    @jax.jit
    def free(x: jax.Array, gamma: jax.Array) -> jax.Array:
        u = guidance.guide(velocity, c, guidance.classifier_free(velocity, c, gamma))
        return solvers.solve(solvers.ab2(), u, x, times.grid(STEPS.value))

    print(f"{'w or γ':>8}{'classifier: asked digit':>26}{'diversity':>11}{'free: asked digit':>20}{'diversity':>11}")
    for weight in (0.0, 1.0, 2.0, 4.0):
        cells = []
        for draw in (by_classifier, free):
            x = to_pixels(np.asarray(draw(x0, jnp.float32(weight))))
            spread = np.sqrt(np.mean([x[label == k].reshape((label == k).sum(), -1).var(0) for k in range(10)]))
            cells += [np.mean(predict(judge, x)["label"] == label), spread]
        print(f"{weight:8g}{cells[0]:26.3f}{cells[1]:11.1f}{cells[2]:20.3f}{cells[3]:11.1f}", flush=True)


if __name__ == "__main__":
    run_script(main)
