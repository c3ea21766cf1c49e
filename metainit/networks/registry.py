"""Networks by name, and the function that a network is once its weights are given."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.func import functional_call

from metainit.card import Spec
from metainit.domains.base import Domain, Predict
from metainit.errors import MismatchError, RecipeError, suggestion
from metainit.networks.classifier import Classifier
from metainit.networks.efficientlab import EfficientLab
from metainit.networks.fourier_mlp import FourierMLP
from metainit.networks.siren import Siren
from metainit.networks.unet import UNet

NETWORKS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "siren": Siren,
        "fourier_mlp": FourierMLP,
        "unet": UNet,
        "efficientlab": EfficientLab,
        "classifier": Classifier,
    }
)
"""The networks that a spec can name."""


def build(spec: Spec, seed: int = 0) -> nn.Module:
    """Build the network that a spec names, with its framework-default weights drawn from `seed`.

    Raises:
        RecipeError: the name is not in `NETWORKS`, or the network does not take an argument or its value.

    Example:
        >>> network = build(Spec(name='siren', arguments={'width': 16, 'depth': 3}))
        >>> sum(p.numel() for p in network.parameters())
        371
        >>> build(Spec(name='siren', arguments={'omega': 'fast'}))
        Traceback (most recent call last):
        ...
        metainit.errors.RecipeError: network.omega is 'fast': input should be a valid number
    """
    if spec.name not in NETWORKS:
        raise RecipeError(f"no network is called {spec.name!r}; {suggestion(spec.name, NETWORKS)}")
    _require_arguments(spec)
    with torch.random.fork_rng(devices=[]):
        # The CPU generator alone: fork_rng puts that one back, a GPU's would stay reseeded.
        torch.default_generator.manual_seed(seed)
        try:
            return NETWORKS[spec.name](**spec.arguments)
        except (TypeError, ValueError) as error:
            raise RecipeError(f"network {spec.name!r} cannot be built: {error}") from error


def _require_arguments(spec: Spec) -> None:
    """Raise unless the network takes every argument of the spec, of its annotated type and finite."""
    known = inspect.signature(NETWORKS[spec.name], eval_str=True).parameters
    for argument, value in spec.arguments.items():
        if argument not in known:
            raise RecipeError(
                f"network {spec.name!r} takes no argument {argument!r}; {suggestion(argument, known)}"
            )
        # Strict: a flag is no number, and a text that reads as one is not one.
        config = ConfigDict(strict=True, allow_inf_nan=False)
        try:
            TypeAdapter(known[argument].annotation, config=config).validate_python(value)
        except ValidationError as error:
            said = error.errors()[0]["msg"]
            raise RecipeError(f"network.{argument} is {value!r}: {said[0].lower()}{said[1:]}") from error


def complete(spec: Spec) -> Spec:
    """Return the spec with the defaults of the arguments that it leaves out.

    Example:
        >>> complete(Spec(name='siren')).arguments['omega']
        30.0
    """
    if spec.name not in NETWORKS:
        return spec
    known = inspect.signature(NETWORKS[spec.name]).parameters
    defaults = {k: p.default for k, p in known.items() if p.default is not inspect.Parameter.empty}
    return Spec(name=spec.name, arguments={**defaults, **spec.arguments})


def fitted_spec(spec: Spec, domain: Domain) -> Spec:
    """Return the spec with what the domain's data fix of it (inputs and outputs), where it takes that.

    Raises:
        RecipeError: the spec says other numbers.

    Example:
        >>> from metainit.domains.ct import CTConfig, CTDomain
        >>> fitted_spec(Spec(name='siren'), CTDomain(CTConfig(size=16))).arguments['out_features']
        1
    """
    if spec.name not in NETWORKS:
        return spec
    known = inspect.signature(NETWORKS[spec.name]).parameters
    arguments = dict(spec.arguments)
    for name, value in domain.network_arguments.items():
        if name in known and arguments.setdefault(name, value) != value:
            raise RecipeError(
                f"network.{name} is {arguments[name]}, the domain has {value}: leave it out, and it will fit"
            )
    return Spec(name=spec.name, arguments=arguments)


def require_same(made_for: Spec | None, asked: Spec, source: str) -> None:
    """Raise unless weights that were made for one network may go into another.

    Shapes do not tell: a frequency or an offset is no tensor, and changes what the weights mean.

    Raises:
        MismatchError: the two specs name different networks.

    Example:
        >>> require_same(Spec(name='siren'), Spec(name='siren', arguments={'omega': 30.0}), 'prior')
    """
    if made_for is not None and complete(made_for) != complete(asked):
        raise MismatchError(
            f"{source} was made for the network {made_for.name} {made_for.arguments}, not for {asked.name} "
            f"{asked.arguments}: leave the network out, or use another start"
        )


MemoryFormat = Literal["auto", "channels_last", "contiguous"]


def function_of(
    network: nn.Module, memory_format: MemoryFormat = "auto"
) -> Callable[[Mapping[str, Tensor]], Predict]:
    """Return the map from parameters to the function that the network computes with them.

    Buffers are the network's own; nothing is written to the module, and threads may call it at once.

    `memory_format` is how images and kernels lie in memory while the network runs, which changes the speed
    and no value: ``channels_last`` makes convolutions 1.2 to 1.3 times as fast on a CPU, and is what ``auto``
    takes there, but for tasks batched by `vmap`, under which group normalization knows no such layout.

    Example:
        >>> network = build(Spec(name='siren', arguments={'width': 8, 'depth': 2}))
        >>> parameters = dict(network.named_parameters())
        >>> x = torch.zeros(5, 2)
        >>> bool((function_of(network)(parameters)(x) == network(x)).all())
        True
    """
    # `functional_call` swaps a module's parameters while it runs, so every thread has a module of its own.
    own = threading.local()

    def with_parameters(parameters: Mapping[str, Tensor]) -> Predict:
        laid_out = {k: _laid_out(v, memory_format) for k, v in parameters.items()}
        batched = any(_is_batched(v) for v in parameters.values())

        def predict(inputs: Tensor) -> Tensor:
            if not hasattr(own, "network"):
                own.network = _twin(network, {})
            as_they_are = memory_format == "auto" and (batched or _is_batched(inputs))
            values = dict(parameters) if as_they_are else laid_out
            given = inputs if as_they_are else _laid_out(inputs, memory_format)
            output: Tensor = functional_call(own.network, values, (given,))
            return output

        return predict

    return with_parameters


def _is_batched(tensor: Tensor) -> bool:
    # There is no public way to ask.
    return bool(torch._C._functorch.is_batchedtensor(tensor))


def _laid_out(tensor: Tensor, memory_format: MemoryFormat) -> Tensor:
    """Return images or kernels ``(n, channels, height, width)`` in a memory format, others as they are."""
    if tensor.dim() != 4 or memory_format == "contiguous":
        return tensor
    if memory_format == "auto" and tensor.device.type != "cpu":
        return tensor
    # Not `contiguous(memory_format=...)`, which `vmap` does not batch. What lies so already is not copied.
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1)


def _twin(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """Return a module of the same structure with the same tensors, none of which is copied."""
    if id(module) not in made:
        twin = made[id(module)] = object.__new__(type(module))
        twin.__dict__.update(module.__dict__)
        twin._parameters = dict(module._parameters)
        twin._buffers = dict(module._buffers)
        twin._modules = {k: v if v is None else _twin(v, made) for k, v in module._modules.items()}
    return made[id(module)]
