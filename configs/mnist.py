"""MNIST at its native 28x28. Prepare it once, from your four files or by download:

python -m flowguide data prepare mnist [--files=DIR]
python train.py --config=configs/mnist.py --workdir=runs/mnist

For one GPU; not run here yet. `flowguide plan` estimates 1 min on an H100 and 4 min on a TPU v5e at 40 % of their peak
in bfloat16; this network computes in float32, which takes longer. 2 CPU cores would take days.
"""

from flowguide import config


def get_config():
    c = config.default()
    c.data.name = "mnist"
    c.network = {
        "name": "unet",
        "width": 64,
        "multipliers": (1, 2, 2),
        "blocks": 2,
        "attention": (7,),
        "dtype": "float32",
    }
    c.steps = 20_000
    c.lr = 5e-4
    c.warmup = 500
    c.ema.decay = 0.999
    c.stratified = True
    return c
