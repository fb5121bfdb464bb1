"""SiT-XL/2 on the latents of ImageNet, 256 x 256 (Ma et al. 2024, arXiv 2401.08740).

The first two commands prepare the data:

pip install "flowguide[data]" && python -m flowguide data prepare imagenet2012 --files=DIR
flowguide data encode imagenet2012 --vae=FILE --image_size=256 --scale=0.18215 --test_split=validation --out=imagenet256_latents
python train.py --config=configs/sit_xl2_imagenet256.py --workdir=runs/sit_xl2_imagenet256
flowguide sample --workdir=runs/sit_xl2_imagenet256 --recipe=sit-sde --cond=207

DIR holds ImageNet's two tar files. FILE is diffusion_pytorch_model.safetensors of stabilityai/sd-vae-ft-ema.

Published numbers, not measured here, after 7,000,000 steps: FID 8.3 by the SDE and 9.35 by the ODE without guidance;
2.06 by the SDE and 2.15 by the ODE at γ = 1.5. It is for many accelerators: at 712 GFLOP an image, these steps take
112 hours on eight H100 at 40 % of their peak.
"""  # noqa: E501

from flowguide import config
from flowguide.networks import SIZES


def get_config():
    c = config.default()
    c.data.update({"name": "imagenet256_latents"})
    c.network = {"name": "dit", "patch": 2, **SIZES["XL"], "remat": True, "dtype": "bfloat16"}
    c.network.update({"time_scale": 1.0, "time_features": 256, "positions": "dit"})
    c.times = {"name": "uniform"}
    c.optimizer = {"name": "adamw", "b2": 0.999}
    c.steps = 7_000_000
    c.batch_size = 256
    c.lr = 1e-4
    c.warmup = 0
    c.decay = "none"
    c.clip = 0.0
    c.ema.decay = 0.9999
    c.flip = True
    c.checkpoint_every = c.eval_every = 50_000
    c.eval_examples = 4096
    c.preview.every = 50_000
    return c
