"""CIFAR-10. Preparing the data needs TensorFlow, training does not.

For one GPU or more; not run here yet. `flowguide plan` estimates 1.3 hours on one H100, or 50 min on eight TPU v5e, at
40 % of their peak.

pip install "flowguide[data]" && python -m flowguide data prepare cifar10
python train.py --config=configs/cifar10.py --workdir=runs/cifar10
"""

from flowguide import config


def get_config():
    c = config.default()
    c.data.name = "cifar10"
    c.network = {
        "name": "unet",
        "width": 128,
        "multipliers": (1, 2, 2, 2),
        "blocks": 2,
        "attention": (16,),
        "dtype": "bfloat16",
    }
    c.steps = 200_000
    c.batch_size = 256
    c.lr = 4e-4
    c.warmup = 5000
    c.ema.decay = 0.9999
    c.flip = True
    c.stratified = True
    c.checkpoint_every = c.eval_every = 5000
    c.preview.every = 10_000
    return c
