"""Target networks, one file each, and their registry."""

from metainit.networks.fourier_mlp import FourierMLP
from metainit.networks.registry import NETWORKS, build, fitted_spec, function_of, require_same
from metainit.networks.siren import Siren

__all__ = ["NETWORKS", "FourierMLP", "Siren", "build", "fitted_spec", "function_of", "require_same"]
