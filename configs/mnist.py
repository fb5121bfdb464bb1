"""MNIST at its native 28x28. Prepare it once, from your four files or by download:

python -m flowguide data prepare mnist [--files=DIR]
python train.py --config=configs/mnist.py --workdir=runs/mnist
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
