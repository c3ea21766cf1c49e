"""A small convolutional classifier: convolutions that halve the image, and a linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from metainit.networks.normalization import Norm, normalization


class Classifier(nn.Module):
    r"""A classifier: `depth` 3x3 convolutions of stride 2 with ReLU, then a linear layer on all that is left.

    Shapes: images ``(N, in_channels, size, size)`` -> logits ``(N, classes)``. Each convolution leaves half
    of the side, rounded up: :math:`\lceil \text{size} / 2^\text{depth} \rceil` at the end. The last layer is
    the submodule ``head``. Normalization, where asked for, lies between a convolution and its ReLU.

    Raises:
        ValueError: a size is not positive, or `norm` is unknown.

    Source: Vinyals et al. 2016, "Matching Networks for One Shot Learning", section 4.1, has the same blocks,
    with max pooling. Strides do the same with a quarter of the work, as in Finn et al. 2017, section 5.2.

    Example:
        >>> import torch
        >>> network = Classifier(in_channels=1, size=8, classes=3)
        >>> network(torch.zeros(5, 1, 8, 8)).shape, sum(p.numel() for p in network.parameters())
        (torch.Size([5, 3]), 4851)
    """

    def __init__(
        self,
        in_channels: int = 1,
        size: int = 28,
        classes: int = 5,
        width: int = 16,
        depth: int = 3,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        if min(in_channels, size, classes, width, depth) < 1:
            raise ValueError(
                f"sizes must be positive, got in_channels={in_channels}, size={size}, classes={classes}, "
                f"width={width}, depth={depth}"
            )
        layers: list[nn.Module] = []
        for channels in [in_channels, *[width] * (depth - 1)]:
            # A normalization subtracts what a bias would add.
            layers.append(nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=norm is None))
            if norm is not None:
                layers.append(normalization(norm, width))
            layers.append(nn.ReLU())
        side = -(-size // 2**depth)
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width * side * side, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, in_channels, size, size)`` to logits ``(N, classes)``."""
        logits: Tensor = self.head(self.features(images).flatten(1))
        return logits
