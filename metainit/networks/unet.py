"""U-Net: an encoder and a decoder of plain convolutions, joined at every resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metainit.networks.normalization import Norm, normalization


def resized(images: Tensor, like: Tensor) -> Tensor:
    """Return images at the height and width of others, bilinearly, corner pixels on corner pixels.

    Shapes: ``(N, C, H, W)``, ``(N, D, H', W')`` -> ``(N, C, H', W')``.

    Example:
        >>> resized(torch.tensor([[[[0.0, 1.0]]]]), torch.zeros(1, 1, 1, 3)).tolist()
        [[[[0.0, 0.5, 1.0]]]]
    """
    if images.shape[-2:] == like.shape[-2:]:
        return images
    return F.interpolate(images, size=like.shape[-2:], mode="bilinear", align_corners=True)


def centred(images: Tensor) -> Tensor:
    """Return pixels of [0, 1] on [-2, 2], about the mean and spread that photographs are centred with."""
    return 4 * images - 2


class DoubleConvolution(nn.Sequential):
    """Two times a 3x3 convolution, a normalization and ReLU.

    Shapes: ``(N, in_channels, H, W)`` -> ``(N, out_channels, H, W)``.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm) -> None:
        layers: list[nn.Module] = []
        for channels in (in_channels, out_channels):
            # The normalization subtracts what a bias would add.
            convolution = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
            layers += [convolution, normalization(norm, out_channels), nn.ReLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """A U-Net: `depth` resolutions, `width` channels at the finest, twice as many at each coarser one.

    Shapes: images ``(N, in_channels, H, W)`` in [0, 1] -> logits ``(N, classes, H, W)``, any H and W. The
    last layer, a 1x1 convolution, is the submodule ``head``.

    Raises:
        ValueError: a size is not positive, or `norm` is unknown.

    Source: Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation". Here
    convolutions are padded and normalized and the way up is bilinear, as is common since; odd sizes are
    rounded up on the way down, so that any image size fits.

    Example:
        >>> UNet(in_channels=1, classes=2, width=4, depth=3)(torch.zeros(2, 1, 21, 30)).shape
        torch.Size([2, 2, 21, 30])
    """

    def __init__(
        self, in_channels: int = 3, classes: int = 2, width: int = 32, depth: int = 4, norm: Norm = "group"
    ) -> None:
        super().__init__()
        if min(in_channels, classes, width, depth) < 1:
            raise ValueError(
                f"sizes must be positive, got in_channels={in_channels}, classes={classes}, width={width}, "
                f"depth={depth}"
            )
        sizes = [width * 2**level for level in range(depth)]
        self.encoder = nn.ModuleList(
            DoubleConvolution(a, b, norm) for a, b in zip([in_channels, *sizes], sizes, strict=False)
        )
        self.decoder = nn.ModuleList(
            DoubleConvolution(fine + coarse, fine, norm)
            for fine, coarse in zip(sizes[-2::-1], sizes[:0:-1], strict=True)
        )
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, in_channels, H, W)`` to logits ``(N, classes, H, W)``."""
        hidden = centred(images)
        seen: list[Tensor] = []
        for level, encode in enumerate(self.encoder):
            # Rounded up, so that a side of one pixel stays one.
            hidden = encode(hidden if level == 0 else F.max_pool2d(hidden, 2, ceil_mode=True))
            seen.append(hidden)
        for decode, fine in zip(self.decoder, seen[-2::-1], strict=True):
            hidden = decode(torch.cat([fine, resized(hidden, fine)], dim=1))
        logits: Tensor = self.head(hidden)
        return logits
