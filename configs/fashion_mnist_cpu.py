"""Fashion-MNIST for a CPU: a perceptron, and a thirteenth of the examples that fashion_mnist sees.

flowguide data prepare fashion_mnist [--files=DIR]
flowguide train --config=fashion_mnist_cpu --workdir=runs/fashion_mnist_cpu
flowguide sample --workdir=runs/fashion_mnist_cpu --cond=Bag --gamma=2

For a CPU: 15 min 32 s on one core of a shared machine. The samples are recognisable, and speckled; what guidance buys
here is in docs/benchmarks.md.
"""

from fashion_mnist import get_config as fashion_mnist


def get_config():
    c = fashion_mnist()
    # The items are centred, so an MLP over all pixels learns them faster than a U-Net.
    c.network = {"name": "mlp", "width": 512, "depth": 3, "refine": 64, "dtype": "float32"}
    c.steps = 1500
    c.batch_size = 128
    c.lr = 1e-3
    c.warmup = 50
    c.times.update({"mean": 0.3, "std": 1.4})
    c.log_every = 20
    c.checkpoint_every = 500
    c.eval_every = 500
    c.preview.update({"every": 500, "num": 25, "gammas": (1.0, 2.0), "solver": "ab2"})
    return c
