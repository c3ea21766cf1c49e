"""The classifiers of the random architecture space: plain modules, and the arguments that rebuild them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from metainit.card import Record
from metainit.networks.normalization import group_norm

Activation = Literal["relu", "gelu", "silu", "tanh", "leaky_relu"]
Normalization = Literal["batch", "layer", "group", "none"]
Block = Literal["plain", "residual", "bottleneck", "grouped", "dense", "separable"]
Pooling = Literal["max", "average", "stride"]
Head = Literal["average", "flatten"]

GROUP_WIDTH = 4
"""Channels of a group of a grouped convolution."""
GATE_RATIO = 4
"""By what a squeeze-and-excitation gate narrows its input."""

ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = MappingProxyType(
    {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "leaky_relu": nn.LeakyReLU}
)
IMAGE_NORMALIZATIONS: Mapping[Normalization, Callable[[int], nn.Module]] = MappingProxyType(
    {
        "batch": nn.BatchNorm2d,
        "layer": lambda channels: nn.GroupNorm(1, channels),
        "group": group_norm,
        "none": lambda channels: nn.Identity(),
    }
)
VECTOR_NORMALIZATIONS: Mapping[Normalization, Callable[[int], nn.Module]] = MappingProxyType(
    {
        "batch": nn.BatchNorm1d,
        "layer": nn.LayerNorm,
        "group": group_norm,
        "none": lambda width: nn.Identity(),
    }
)


class Images(Record):
    """What every classifier of the space takes and gives: square images, and logits."""

    channels: int = Field(ge=1, le=16)
    size: int = Field(ge=2, le=512)
    classes: int = Field(ge=2, le=10_000)


class ConvBlock(Record):
    """One block of a convolutional network; `gate` is a squeeze-and-excitation gate on its result."""

    kind: Block
    width: int = Field(ge=GROUP_WIDTH, multiple_of=GROUP_WIDTH)
    kernel: Literal[1, 3, 5, 7]
    downsample: bool = False
    gate: bool = False


class ConvArguments(Images):
    """A convolutional classifier."""

    norm: Normalization
    activation: Activation
    pooling: Pooling
    head: Head
    blocks: tuple[ConvBlock, ...] = Field(min_length=1, max_length=64)


class MLPArguments(Images):
    """A classifier of fully connected layers on the pixels."""

    block: Literal["plain", "residual"]
    norm: Normalization
    activation: Activation
    widths: tuple[int, ...] = Field(min_length=1, max_length=64)


class TransformerArguments(Images):
    """A vision transformer: `pool` is what the head reads."""

    activation: Activation
    patch: int = Field(ge=1)
    width: int = Field(ge=4)
    depth: int = Field(ge=1, le=64)
    heads: int = Field(ge=1)
    ratio: int = Field(ge=1)
    pool: Literal["class", "mean"]

    @model_validator(mode="after")
    def _parts_fit(self) -> TransformerArguments:
        if self.size % self.patch:
            raise ValueError(f"patch {self.patch} does not divide the side {self.size}")
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} do not divide the width {self.width}")
        return self


class Gate(nn.Module):
    """Squeeze and excitation: scale each channel by what the image's channel means say.

    Source: Hu et al. 2018, arXiv:1709.01507, section 3.
    """

    def __init__(self, channels: int, activation: Activation) -> None:
        super().__init__()
        inner = max(2, channels // GATE_RATIO)
        self.squeeze = nn.Conv2d(channels, inner, 1)
        self.activation = ACTIVATIONS[activation]()
        self.excite = nn.Conv2d(inner, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(N, channels, H, W)`` of the same shape."""
        means = features.mean((2, 3), keepdim=True)
        return features * torch.sigmoid(self.excite(self.activation(self.squeeze(means))))


class Sum(nn.Module):
    """A residual block: the activation of body(x) + shortcut(x).

    Source: He et al. 2016, arXiv:1512.03385.
    """

    def __init__(self, body: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut, self.activation = body, shortcut, activation

    def forward(self, features: Tensor) -> Tensor:
        """Return the block's features."""
        out: Tensor = self.activation(self.body(features) + self.shortcut(features))
        return out


class Dense(nn.Module):
    """Two layers that each see all features before them, and a transition that mixes the three.

    Source: Huang et al. 2017, arXiv:1608.06993.
    """

    def __init__(self, first: nn.Module, second: nn.Module, transition: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.transition = first, second, transition

    def forward(self, features: Tensor) -> Tensor:
        """Return the transition of all features."""
        seen = torch.cat([features, self.first(features)], 1)
        out: Tensor = self.transition(torch.cat([seen, self.second(seen)], 1))
        return out


class ConvNet(nn.Module):
    """A convolutional classifier from a list of blocks.

    Shapes: ``(N, channels, size, size)`` -> ``(N, classes)``.
    """

    def __init__(self, arguments: ConvArguments) -> None:
        super().__init__()
        self.arguments = arguments
        channels = arguments.channels
        layers: list[nn.Module] = []
        for block in arguments.blocks:
            layers.append(self._block(block, channels))
            if block.downsample and arguments.pooling != "stride":
                layers.append(nn.MaxPool2d(2) if arguments.pooling == "max" else nn.AvgPool2d(2))
            channels = block.width
        self.body = nn.Sequential(*layers)
        flat = arguments.head == "flatten"
        self.pool = nn.Flatten() if flat else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        features = channels * _side_after(arguments) ** 2 if flat else channels
        self.head = nn.Linear(features, arguments.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        out: Tensor = self.head(self.pool(self.body(images)))
        return out

    def _block(self, block: ConvBlock, channels: int) -> nn.Module:
        stride = 2 if block.downsample and self.arguments.pooling == "stride" else 1
        act = ACTIVATIONS[self.arguments.activation]
        width, kernel = block.width, block.kernel
        gate = [Gate(width, self.arguments.activation)] if block.gate else []
        conv = self._conv
        shortcut = nn.Identity() if channels == width and stride == 1 else conv(channels, width, 1, stride)
        match block.kind:
            case "plain":
                return nn.Sequential(conv(channels, width, kernel, stride), act(), *gate)
            case "residual":
                body = nn.Sequential(
                    conv(channels, width, kernel, stride), act(), conv(width, width, kernel), *gate
                )
                return Sum(body, shortcut, act())
            case "bottleneck" | "grouped":
                # ResNet's bottleneck is half as wide; RegNet's X block keeps the width and has groups.
                inner, groups = (
                    (width // 2, 1) if block.kind == "bottleneck" else (width, width // GROUP_WIDTH)
                )
                body = nn.Sequential(
                    conv(channels, inner, 1), act(), conv(inner, inner, kernel, stride, groups), act(),
                    conv(inner, width, 1), *gate,
                )  # fmt: skip
                return Sum(body, shortcut, act())
            case "dense":
                growth = width // 2
                first = nn.Sequential(conv(channels, growth, kernel), act())
                second = nn.Sequential(conv(channels + growth, growth, kernel), act())
                transition = nn.Sequential(conv(channels + 2 * growth, width, 1, stride), act(), *gate)
                return Dense(first, second, transition)
            case "separable":
                depthwise = conv(channels, channels, kernel, stride, channels)
                return nn.Sequential(depthwise, act(), conv(channels, width, 1), act(), *gate)

    def _conv(
        self, channels: int, width: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> nn.Sequential:
        norm = self.arguments.norm
        convolution = nn.Conv2d(
            channels, width, kernel, stride, kernel // 2, groups=groups, bias=norm == "none"
        )
        return nn.Sequential(convolution, IMAGE_NORMALIZATIONS[norm](width))


def _side_after(arguments: ConvArguments) -> int:
    side = arguments.size
    for block in arguments.blocks:
        if block.downsample:
            side = -(-side // 2) if arguments.pooling == "stride" else side // 2
    return side


class MLP(nn.Module):
    """A classifier of fully connected layers.

    Shapes: ``(N, channels, size, size)`` -> ``(N, classes)``.
    """

    def __init__(self, arguments: MLPArguments) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = arguments.channels * arguments.size**2
        activation, norm = ACTIVATIONS[arguments.activation], VECTOR_NORMALIZATIONS[arguments.norm]
        for width in arguments.widths:
            layer = nn.Sequential(nn.Linear(inputs, width), norm(width))
            if arguments.block == "plain":
                layers.append(nn.Sequential(layer, activation()))
            else:
                shortcut = nn.Identity() if inputs == width else nn.Linear(inputs, width)
                layers.append(
                    Sum(nn.Sequential(layer, activation(), nn.Linear(width, width)), shortcut, activation())
                )
            inputs = width
        self.flatten = nn.Flatten()
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(inputs, arguments.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        out: Tensor = self.head(self.body(self.flatten(images)))
        return out


class SelfAttention(nn.Module):
    """Multi-head self-attention. Shapes: ``(N, tokens, width)`` -> the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what each token gathers from all."""
        count, length, width = tokens.shape
        qkv = self.qkv(tokens).reshape(count, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        seen = functional.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.project(seen.transpose(1, 2).reshape(count, length, width))
        return out


class TransformerBlock(nn.Module):
    """Attention and a two-layer perceptron, each on normalized tokens and added to them."""

    def __init__(self, arguments: TransformerArguments) -> None:
        super().__init__()
        width, inner = arguments.width, arguments.width * arguments.ratio
        self.norm_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, arguments.heads)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, inner), ACTIVATIONS[arguments.activation](), nn.Linear(inner, width)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Return ``(N, tokens, width)`` of the same shape."""
        tokens = tokens + self.attention(self.norm_attention(tokens))
        out: Tensor = tokens + self.mlp(self.norm_mlp(tokens))
        return out


class VisionTransformer(nn.Module):
    """A small vision transformer with learned positions.

    Shapes: ``(N, channels, size, size)`` -> ``(N, classes)``.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929.
    """

    def __init__(self, arguments: TransformerArguments) -> None:
        super().__init__()
        width, patch = arguments.width, arguments.patch
        tokens = (arguments.size // patch) ** 2
        self.embed = nn.Conv2d(arguments.channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width)) if arguments.pool == "class" else None
        self.positions = nn.Parameter(torch.empty(1, tokens + (arguments.pool == "class"), width))
        self.blocks = nn.Sequential(*(TransformerBlock(arguments) for _ in range(arguments.depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, arguments.classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the network's own parameters, which belong to no layer: positions and class token."""
        nn.init.trunc_normal_(self.positions, std=0.02)
        if self.class_token is not None:
            nn.init.zeros_(self.class_token)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(tokens + self.positions))
        read = tokens.mean(1) if self.class_token is None else tokens[:, 0]
        out: Tensor = self.head(read)
        return out
