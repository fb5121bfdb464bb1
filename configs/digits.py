"""Real handwritten digits, 8x8, ten classes.

About 90 s on 2 CPU cores; at γ = 2 all of 256 samples had the requested class (benchmarks/adherence.py).

python train.py --config=configs/digits.py --workdir=runs/digits
python sample.py --workdir=runs/digits --cond=3 --gamma=2 --num=64
"""

from flowguide import config


def get_config():
    c = config.default()
    c.data.name = "digits"
    c.network = {"name": "unet", "width": 32, "multipliers": (1, 2), "blocks": 1, "dtype": "float32"}
    c.steps = 600
    c.batch_size = 64
    c.lr = 2e-3
    c.warmup = 50
    c.stratified = True
    c.log_every = 20
    c.checkpoint_every = 300
    c.eval_every = 100
    c.preview.update({"every": 300, "num": 25, "gammas": (1.0, 2.0), "solver": "ab2"})
    return c
