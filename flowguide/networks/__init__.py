"""Velocity networks u(t, x, c) in Flax NNX, and ``as_network``, which turns one into pure functions."""

from collections.abc import Callable

from flax import nnx

from flowguide.networks.autoencoder import AutoencoderKL
from flowguide.networks.check import check_network
from flowguide.networks.classifier import Classifier, log_probability
from flowguide.networks.dit import SIZES, DiT
from flowguide.networks.embed import ConditionEmbedding, TimeEmbedding
from flowguide.networks.mlp import MLP
from flowguide.networks.module import Network, Params, as_network, count_parameters, leaves_by_path
from flowguide.networks.outputs import OUTPUTS, Output, as_velocity
from flowguide.networks.perturbation import Perturbation
from flowguide.networks.unet import UNet

NETWORKS: dict[str, Callable[..., nnx.Module]] = {"mlp": MLP, "unet": UNet, "dit": DiT}
AUTOENCODERS: dict[str, Callable[..., nnx.Module]] = {"kl": AutoencoderKL}
CLASSIFIERS: dict[str, Callable[..., nnx.Module]] = {"mlp": Classifier}

__all__ = [
    "AUTOENCODERS",
    "CLASSIFIERS",
    "MLP",
    "NETWORKS",
    "OUTPUTS",
    "SIZES",
    "AutoencoderKL",
    "Classifier",
    "ConditionEmbedding",
    "DiT",
    "Network",
    "Output",
    "Params",
    "Perturbation",
    "TimeEmbedding",
    "UNet",
    "as_network",
    "as_velocity",
    "check_network",
    "count_parameters",
    "leaves_by_path",
    "log_probability",
]
