"""ImageNet, cropped and resized to 64x64, with a DiT-B/4. Preparing the data needs TensorFlow and the two tar files:

pip install "flowguide[data]" && python -m flowguide data prepare imagenet2012 --files=DIR
python train.py --config=configs/imagenet64.py --workdir=runs/imagenet64

For a machine with eight accelerators; not run here yet. `flowguide plan` estimates 7 hours on eight H100, or 1.4 days
on eight TPU v5e, at 40 % of their peak.
"""

from flowguide import config
from flowguide.networks import SIZES


def get_config():
    c = config.default()
    c.data.update({"name": "imagenet2012", "test_split": "validation", "image_size": 64})
    c.network = {"name": "dit", "patch": 4, **SIZES["B"], "remat": True, "dtype": "bfloat16"}
    c.steps = 400_000
    c.batch_size = 1024
    c.lr = 3e-4
    c.warmup = 10_000
    c.decay = "none"
    c.ema = {"name": "power", "std": 0.1}
    c.flip = True
    c.stratified = True
    c.checkpoint_every = c.eval_every = 10_000
    c.eval_examples = 4096
    c.preview.every = 20_000
    return c
