"""Points from eight Gaussians on a ring, whose exact velocity is known.

python train.py --config=configs/points.py --workdir=runs/points

For a CPU: 90 s of CPU time, the start included.
"""

from flowguide import config


def get_config():
    c = config.default()
    c.data.name = "mixture2d"
    c.network = {"name": "mlp", "width": 96, "depth": 3}
    c.steps = 3000
    c.batch_size = 512
    c.lr = 4e-3
    c.ema.decay = 0.995
    c.times = {"name": "uniform"}
    c.log_every = 100
    c.eval_every = 1000
    c.eval_examples = 4096
    c.preview.every = 1500
    c.preview.num = 512
    return c
