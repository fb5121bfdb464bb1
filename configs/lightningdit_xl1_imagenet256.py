"""LightningDiT-XL/1 on latents 16 x 16 x 32 of ImageNet, 256 x 256 (Yao et al. 2025, arXiv 2501.01423).

The authors' autoencoder, VA-VAE f16d32, cannot be read here. Prepare latents of your own as the set
imagenet256_latents16: 32 channels, and sides that are a sixteenth of the image's.

python train.py --config=configs/lightningdit_xl1_imagenet256.py --workdir=runs/lightningdit_xl1_imagenet256
flowguide sample --workdir=runs/lightningdit_xl1_imagenet256 --recipe=lightningdit --cond=207

Published numbers, not measured here: FID 2.17 without guidance and 1.35 with it, after 800 epochs. This config trains
for 64 epochs, which took the authors about 10 hours on eight H800. It is for many accelerators: at 712 GFLOP an image,
it takes 5 hours on eight H100 at 40 % of their peak. The authors' loss has one more term, for the direction of the
velocity.
"""

from flowguide import config
from flowguide.networks import SIZES


def get_config():
    c = config.default()
    c.data.update({"name": "imagenet256_latents16"})
    c.network = {"name": "dit", "patch": 1, **SIZES["XL"], "remat": True, "dtype": "bfloat16"}
    c.network.update({"time_scale": 1.0, "time_features": 256, "positions": "dit"})
    c.network.update({"rope": True, "norm": "rms", "mlp": "swiglu"})
    c.optimizer = {"name": "adamw", "b2": 0.95}
    c.steps = 80_000
    c.batch_size = 1024
    c.lr = 2e-4
    c.warmup = 0
    c.decay = "none"
    c.ema.decay = 0.9999
    c.flip = True
    c.checkpoint_every = c.eval_every = 5000
    c.eval_examples = 4096
    c.preview.every = 10_000
    return c
