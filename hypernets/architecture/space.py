"""A random space of small image classifiers: a network spec for each seed and index, and what it builds."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import torch
from pydantic import ValidationError
from torch import nn

from hypernets.architecture.space_draws import draw_cnn, draw_mlp, draw_vit, weighted
from hypernets.architecture.space_networks import (
    MLP,
    ConvArguments,
    ConvNet,
    Images,
    MLPArguments,
    TransformerArguments,
    VisionTransformer,
)
from hypernets.architecture.space_ranges import SpaceConfig
from metainit.card import Spec, canonical_json
from metainit.domains.seeding import seed_of
from metainit.errors import RecipeError, suggestion

Split = Literal["train", "validation", "test"]
SHARES: Mapping[Split, range] = MappingProxyType(
    {"train": range(0, 80), "validation": range(80, 90), "test": range(90, 100)}
)
"""The split of an architecture, by its hash modulo 100: whatever seed or space drew it."""
ATTEMPTS = 5000


class Cost(NamedTuple):
    """Parameters of a network, and multiply-accumulate operations of one image's forward pass."""

    parameters: int
    macs: int


@dataclass(frozen=True)
class Maker:
    """A family's arguments, its module, and how its arguments are drawn."""

    arguments: type[Images]
    module: Callable[[Any], nn.Module]
    draw: Callable[[SpaceConfig, random.Random], Images]


def sample(config: SpaceConfig, seed: int, index: int, split: Split = "train") -> Spec:
    """Return the spec of one random architecture: a pure function of its arguments.

    The splits share no architecture, whatever the seeds: its hash says which one it belongs to.

    Raises:
        RecipeError: hardly anything in the space keeps to its limits on parameters and operations.

    Example:
        >>> sample(SpaceConfig(), 0, 3) == sample(SpaceConfig(), 0, 3)
        True
        >>> sample(SpaceConfig(), 0, 0).name in ('cnn', 'mlp', 'vit')
        True
    """
    rng = random.Random(seed_of("architecture", seed, index, split))
    family = weighted(rng, config.families)
    for _ in range(ATTEMPTS):
        arguments = FAMILIES[family].draw(config, rng)
        spec = Spec(name=family, arguments=arguments.model_dump(mode="json"))
        if split_of(spec) != split:
            continue
        cost = cost_of(spec)
        if cost.parameters <= config.max_parameters and cost.macs <= config.max_macs:
            return spec
    raise RecipeError(
        f"none of {ATTEMPTS} draws of {family!r} has at most {config.max_parameters} parameters and "
        f"{config.max_macs} multiply-accumulate operations: raise max_parameters or max_macs, or "
        "narrow the space"
    )


def distinct(config: SpaceConfig, seed: int, count: int, split: Split) -> list[Spec]:
    """Return the first `count` different architectures of a seed's stream.

    Raises:
        RecipeError: the space does not hold that many.

    Example:
        >>> len({identity(spec) for spec in distinct(SpaceConfig(), 0, 5, 'test')})
        5
    """
    found: dict[str, Spec] = {}
    for index in range(10 * count + 100):
        if len(found) == count:
            break
        spec = sample(config, seed, index, split)
        found.setdefault(identity(spec), spec)
    if len(found) < count:
        raise RecipeError(f"the space gave {len(found)} different architectures, expected {count}: widen it")
    return list(found.values())


def identity(spec: Spec) -> str:
    """Return a short name of an architecture that no other one has: family and hash.

    Example:
        >>> identity(Spec(name='mlp'))
        'mlp-0358a04b29c9'
    """
    return f"{spec.name}-{_digest(spec)[:12]}"


def split_of(spec: Spec) -> Split:
    """Return the split that an architecture belongs to."""
    number = int(_digest(spec)[12:28], 16) % 100
    return next(split for split, numbers in SHARES.items() if number in numbers)


def build_architecture(spec: Spec, seed: int = 0) -> nn.Module:
    """Build a network of the space, with its framework-default weights drawn from `seed`.

    Raises:
        RecipeError: the spec names no family of the space, or has other arguments than that takes.

    Example:
        >>> network = build_architecture(sample(SpaceConfig(), 0, 0))
        >>> network(torch.rand(2, 1, 14, 14)).shape
        torch.Size([2, 10])
    """
    if spec.name not in FAMILIES:
        raise RecipeError(f"no family is called {spec.name!r}; {suggestion(spec.name, FAMILIES)}")
    maker = FAMILIES[spec.name]
    try:
        arguments = maker.arguments.model_validate(spec.arguments)
    except ValidationError as error:
        raise RecipeError(f"architecture {spec.name!r} cannot be built: {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return maker.module(arguments)


def cost_of(spec: Spec) -> Cost:
    """Return what a network of the space costs, counted while it runs on one image.

    Example:
        >>> cost_of(Spec(name='mlp', arguments={'channels': 1, 'size': 2, 'classes': 2, 'block': 'plain',
        ...     'norm': 'none', 'activation': 'relu', 'widths': [3]}))
        Cost(parameters=23, macs=18)
    """
    network, macs = build_architecture(spec), 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d | nn.Linear):
            width = output.shape[1] if isinstance(module, nn.Conv2d) else output.shape[-1]
            macs += output.numel() // width * module.weight.numel()

    for module in network.modules():
        module.register_forward_hook(count)
    shape = [spec.arguments[name] for name in ("channels", "size", "size")]
    with torch.inference_mode():
        # In evaluation: batch normalization has no statistics of one value. Not on the meta device, where
        # such small networks take ten times as long.
        network.eval()(torch.zeros(1, *shape))
    return Cost(sum(p.numel() for p in network.parameters()), macs)


def combinations_of(spec: Spec) -> set[tuple[str, str, str]]:
    """Return the (block, normalization, activation) of a network's blocks; a transformer has none."""
    given = spec.arguments
    if spec.name == "cnn":
        return {(block["kind"], given["norm"], given["activation"]) for block in given["blocks"]}
    return {(given["block"], given["norm"], given["activation"])} if spec.name == "mlp" else set()


def _digest(spec: Spec) -> str:
    return hashlib.sha256(canonical_json(spec.model_dump(mode="json")).encode()).hexdigest()


FAMILIES: Mapping[str, Maker] = MappingProxyType(
    {
        "cnn": Maker(ConvArguments, ConvNet, draw_cnn),
        "mlp": Maker(MLPArguments, MLP, draw_mlp),
        "vit": Maker(TransformerArguments, VisionTransformer, draw_vit),
    }
)
"""The families of the space."""
