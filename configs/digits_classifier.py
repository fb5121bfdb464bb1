"""A noise-aware classifier of the digits, p_t(c|x_t) at every t, for classifier guidance.

python train.py --config=configs/digits_classifier.py --workdir=runs/digits_classifier

About 35 s on 2 CPU cores. benchmarks/classifier.py compares its guidance with classifier-free guidance.
"""

from flowguide import config


def get_config():
    c = config.default()
    c.task = "classifier"
    c.data.name = "digits"
    c.network = {"name": "mlp", "width": 128, "depth": 2, "dtype": "float32"}
    c.times = {"name": "uniform"}
    c.steps = 1000
    c.batch_size = 128
    c.lr = 2e-3
    c.warmup = 50
    c.optimizer.weight_decay = 1e-2
    c.ema.decay = 0.99
    c.stratified = True
    c.checkpoint_every = 500
    c.eval_every = 250
    c.preview.every = 0
    return c
