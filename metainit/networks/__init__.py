"""Target networks, one file each, and their registry."""

from metainit.networks.classifier import Classifier
from metainit.networks.efficientlab import EfficientLab
from metainit.networks.fourier_mlp import FourierMLP
from metainit.networks.registry import NETWORKS, build, fitted_spec, function_of, require_same
from metainit.networks.siren import Siren
from metainit.networks.unet import UNet

__all__ = [
    "NETWORKS",
    "Classifier",
    "EfficientLab",
    "FourierMLP",
    "Siren",
    "UNet",
    "build",
    "fitted_spec",
    "function_of",
    "require_same",
]
