"""EfficientLab: an EfficientNet encoder cut at stride 16, and residual skip decoders."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metainit.networks.normalization import Norm, normalization
from metainit.networks.unet import centred, resized

DIVISOR = 8
"""Scaled numbers of channels are multiples of it."""
SQUEEZE = 0.25
"""Channels inside a squeeze-and-excitation, relative to the block's input."""


class Stage(NamedTuple):
    """A row of EfficientNet's block table: `repeats` blocks, the first of them with the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels: int


STEM_CHANNELS = 32
STAGES = (
    Stage(1, 3, 1, 1, 16),
    Stage(2, 3, 2, 6, 24),
    Stage(2, 5, 2, 6, 40),
    Stage(3, 3, 2, 6, 80),
    Stage(3, 5, 1, 6, 112),
    Stage(4, 5, 2, 6, 192),
    Stage(1, 3, 1, 6, 320),
)
"""EfficientNet-B0 (Tan & Le 2019, table 1)."""
CUT = 5
"""Stages up to reduction 4, that is stride 16: the first 11 blocks of B0."""


def scaled_channels(channels: int, width: float) -> int:
    """Return a number of channels times `width`, to the nearest multiple of 8, at most 10 % below.

    Source: the authors' EfficientNet code, `round_filters`.

    Example:
        >>> [scaled_channels(c, 0.25) for c in (32, 40, 112)], scaled_channels(112, 1.2)
        ([8, 16, 32], 136)
    """
    wanted = channels * width
    found = max(DIVISOR, int(wanted + DIVISOR / 2) // DIVISOR * DIVISOR)
    return found + DIVISOR if found < 0.9 * wanted else found


class SqueezeExcitation(nn.Module):
    """Scale each channel by a number between 0 and 1 that the image's channel means decide.

    Shapes: ``(N, channels, H, W)`` -> the same.

    Source: Hu et al. 2018, "Squeeze-and-Excitation Networks", with swish as in EfficientNet.
    """

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scale the channels."""
        means = inputs.mean((2, 3), keepdim=True)
        return inputs * torch.sigmoid(self.expand(F.silu(self.reduce(means))))


class InvertedBottleneck(nn.Module):
    """MBConv: expand by a 1x1 convolution, convolve each channel alone, excite, project; skip where it fits.

    Shapes: ``(N, in_channels, H, W)`` -> ``(N, out_channels, ceil(H / stride), ceil(W / stride))``.

    Source: Tan & Le 2019, "EfficientNet", section 4; Sandler et al. 2018, "MobileNetV2". Padding is the same
    on both sides, where TensorFlow's is one pixel less on the upper left for a stride of 2.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, expansion: int, norm: Norm
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(in_channels, inner, 1, bias=False), normalization(norm, inner), nn.SiLU()]
        layers += [
            nn.Conv2d(inner, inner, kernel, stride, kernel // 2, groups=inner, bias=False),
            normalization(norm, inner),
            nn.SiLU(),
            SqueezeExcitation(inner, max(1, int(in_channels * SQUEEZE))),
            nn.Conv2d(inner, out_channels, 1, bias=False),
            normalization(norm, out_channels),
        ]
        self.layers = nn.Sequential(*layers)
        self.skips = stride == 1 and in_channels == out_channels

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the block."""
        outputs: Tensor = self.layers(inputs)
        return inputs + outputs if self.skips else outputs


class Encoder(nn.Module):
    """EfficientNet's stem and stages, whose outputs at each reduction are returned, finest first.

    Shapes: ``(N, in_channels, H, W)`` -> one tensor for each stride 2, 4, ... that the stages reach.

    Example:
        >>> encoder = Encoder(3, 1.0, 1.0, 'group', STAGES[:CUT])
        >>> [tuple(h.shape[1:]) for h in encoder(torch.zeros(1, 3, 64, 64))]
        [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4)]
    """

    def __init__(
        self, in_channels: int, width: float, depth: float, norm: Norm, stages: Sequence[Stage]
    ) -> None:
        super().__init__()
        channels = scaled_channels(STEM_CHANNELS, width)
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, 2, 1, bias=False), normalization(norm, channels), nn.SiLU()
        )
        self.stages = nn.ModuleList()
        self.strides = [stage.stride for stage in stages]
        self.channels: list[int] = []
        for stage in stages:
            blocks: list[nn.Module] = []
            for index in range(math.ceil(depth * stage.repeats)):
                out, stride = scaled_channels(stage.channels, width), stage.stride if index == 0 else 1
                blocks.append(InvertedBottleneck(channels, out, stage.kernel, stride, stage.expansion, norm))
                channels = out
            self.stages.append(nn.Sequential(*blocks))
            self.channels.append(channels)

    @property
    def reductions(self) -> list[int]:
        """The stages after which the resolution is done with: the next one has a stride, or there is none."""
        following = [*self.strides[1:], 2]
        return [index for index, stride in enumerate(following) if stride != 1]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images to features at each reduction."""
        hidden = self.stem(images)
        found: list[Tensor] = []
        for stage in self.stages:
            hidden = stage(hidden)
            found.append(hidden)
        return [found[index] for index in self.reductions]


class ConvolvedBranch(nn.Sequential):
    """A convolution with a bias, swish and, after it as in the authors' code, a normalization."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, norm: Norm, dilation: int = 1
    ) -> None:
        padding = dilation * (kernel // 2)
        convolution = nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation)
        super().__init__(convolution, nn.SiLU(), normalization(norm, out_channels))


class ResidualSkipDecoder(nn.Module):
    """Refine coarse features with finer ones of the encoder.

    The coarse ones are brought to the finer size and joined with them; a 1x1 convolution, a 3x3 convolution
    of dilation 2 and the mean over the image look at both; a 3x3 convolution joins the three, and the coarse
    features are added.

    Shapes: ``(N, channels, h, w)`` and ``(N, skip_channels, H, W)`` -> ``(N, channels, H, W)``.

    Source: Hendryx et al. 2019, section on EfficientLab; `residual_skip_decoder` of the authors' code.
    """

    def __init__(self, channels: int, skip_channels: int, norm: Norm) -> None:
        super().__init__()
        joined = channels + skip_channels
        self.pointwise = ConvolvedBranch(joined, channels, 1, norm)
        self.dilated = ConvolvedBranch(joined, channels, 3, norm, dilation=2)
        self.join = ConvolvedBranch(2 * channels + joined, channels, 3, norm)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        """Refine the coarse features."""
        upsampled = resized(coarse, skip)
        both = torch.cat([upsampled, skip], dim=1)
        means = both.mean((2, 3), keepdim=True).expand_as(both)
        branches = torch.cat([self.pointwise(both), self.dilated(both), means], dim=1)
        joined: Tensor = self.join(branches)
        return joined + upsampled


class EfficientLab(nn.Module):
    """An EfficientNet encoder up to stride 16, residual skip decoders at reductions 4 and 2, and a 1x1 head.

    `width` and `depth` are EfficientNet's coefficients of channels and repeats: 1 and 1 are B0 (its first 11
    blocks), 1.2 and 1.4 are B3; 0.25 and 0.3 train on a laptop. The decoders have as many channels as the
    last stage (112 for B0). At reduction 4 the decoder joins the encoder's output with itself, as the
    authors' does.

    Shapes: images ``(N, in_channels, H, W)`` in [0, 1] -> logits ``(N, classes, H, W)``, any H and W. The
    last layer, a 1x1 convolution, is the submodule ``head``; its logits at stride 4 are brought to the size
    of the images bilinearly.

    Raises:
        ValueError: a size is not positive, or `norm` is unknown.

    Source: Hendryx et al. 2019, "Meta-Learning Initializations for Image Segmentation", arXiv:1912.06290,
    EfficientLab-6-3 of the authors' code. Departures: no dropout and no drop-connect, so that a network is a
    function of its weights alone; group normalization unless ``batch`` is asked for; pixels are centred by
    0.5 and 0.25, not by the moments of ImageNet, for any number of channels.

    Example:
        >>> network = EfficientLab(classes=3, width=0.25, depth=0.3)
        >>> network(torch.zeros(2, 3, 50, 37)).shape
        torch.Size([2, 3, 50, 37])
    """

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 2,
        width: float = 1.0,
        depth: float = 1.0,
        norm: Norm = "group",
    ) -> None:
        super().__init__()
        if min(in_channels, classes) < 1 or not (width > 0 and depth > 0):
            raise ValueError(
                f"sizes must be positive, got in_channels={in_channels}, classes={classes}, width={width}, "
                f"depth={depth}"
            )
        self.encoder = Encoder(in_channels, width, depth, norm, STAGES[:CUT])
        _, second, _, fourth = (self.encoder.channels[index] for index in self.encoder.reductions)
        self.decoder = nn.ModuleList(
            [ResidualSkipDecoder(fourth, fourth, norm), ResidualSkipDecoder(fourth, second, norm)]
        )
        self.head = nn.Conv2d(fourth, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, in_channels, H, W)`` to logits ``(N, classes, H, W)``."""
        _, second, _, fourth = self.encoder(centred(images))
        hidden = fourth
        for decode, skip in zip(self.decoder, (fourth, second), strict=True):
            hidden = decode(hidden, skip)
        return resized(self.head(hidden), images)
