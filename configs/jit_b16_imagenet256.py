"""JiT-B/16 on the pixels of ImageNet, 256 x 256 (Li & He 2025, arXiv 2511.13720).

pip install "flowguide[data]" && python -m flowguide data prepare imagenet2012 --files=DIR
python train.py --config=configs/jit_b16_imagenet256.py --workdir=runs/jit_b16_imagenet256
flowguide sample --workdir=runs/jit_b16_imagenet256 --recipe=jit-heun --cond=207

DIR holds ImageNet's two tar files.

Published number, not measured here: FID 3.66 at γ = 3.0 after 600 epochs. It is for many accelerators: at 151 GFLOP an
image, these epochs take 10 hours on eight H100 at 40 % of their peak.
"""

from flowguide import config
from flowguide.networks import SIZES

EPOCH = 1_281_167 // 1024  # steps


def get_config():
    c = config.default()
    c.data.update({"name": "imagenet2012", "test_split": "validation", "image_size": 256})
    c.network = {"name": "dit", "patch": 16, **SIZES["B"], "dtype": "bfloat16"}
    c.network.update({"time_scale": 1.0, "time_features": 256, "positions": "dit"})
    c.network.update({"rope": True, "norm": "rms", "qk_norm": True, "mlp": "swiglu"})
    c.network.update({"bottleneck": 128, "class_tokens": 32, "class_tokens_from": 4})
    c.output = {"name": "x1", "floor": 0.05}
    c.times = {"name": "logit_normal", "mean": -0.8, "std": 0.8}
    c.optimizer = {"name": "adamw", "b2": 0.95}
    c.steps = 600 * EPOCH
    c.batch_size = 1024
    c.lr = 2e-4
    c.warmup = 5 * EPOCH
    c.decay = "none"
    c.clip = 0.0
    c.ema.decay = 0.9999
    c.flip = True
    c.checkpoint_every = c.eval_every = 10 * EPOCH
    c.eval_examples = 4096
    c.preview.every = 10 * EPOCH
    return c
