"""Fashion-MNIST at its own 28x28. Prepare it once, from the four files you have or by download:

python -m flowguide.data prepare fashion_mnist [--files=DIR]
python train.py --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist
"""

from configs.mnist import get_config as mnist


def get_config():
    c = mnist()
    c.data.name = "fashion_mnist"
    return c
