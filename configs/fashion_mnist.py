"""Fashion-MNIST at its native 28x28. Prepare it once, from your four files or by download:

python -m flowguide data prepare fashion_mnist [--files=DIR]
python train.py --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

For one GPU, with the network and the times of mnist. On a CPU take fashion_mnist_cpu.
"""

from mnist import get_config as mnist


def get_config():
    c = mnist()
    c.data.name = "fashion_mnist"
    return c
