"""An autoencoder of the faces, 16x16x3 to 8x8x4. configs/avatars_latent.py trains a model on its latents.

python train.py --config=configs/avatars_vae.py --workdir=runs/avatars_vae
flowguide data encode avatars --vae=runs/avatars_vae --out=avatars_latents

Training takes about 6 minutes of CPU time on 2 shared CPU cores; encoding takes another half minute.
"""

from flowguide import config


def get_config():
    c = config.default()
    c.task = "autoencoder"
    c.data.name = "avatars"
    c.network = {"name": "kl", "widths": (32, 48), "blocks": 1, "latent": 4, "groups": 8, "dtype": "float32"}
    c.autoencoder.kl = 3e-5
    c.autoencoder.l1 = 0.2
    c.steps = 1500
    c.batch_size = 32
    c.lr = 2e-3
    c.warmup = 50
    c.ema.decay = 0.99
    c.log_every = 50
    c.checkpoint_every = 500
    c.eval_every = 500
    c.preview.update({"every": 500, "num": 25})
    return c
