"""From a network that knows images of one size to the probabilities of a whole image's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, product

import torch
import torch.nn.functional as F
from torch import Tensor

from metainit.domains.base import Predict
from metainit.domains.images import Array, resized
from metainit.domains.masks import Mask, fitted_mask
from metainit.domains.segmentation_loss import IGNORE
from metainit.networks.tiled import tile_starts, tiled

AXES = {"horizontal": -1, "vertical": -2}
"""What is mirrored, and the axis of images along which it is."""
SUPPORT_OVERLAP = 0.25
MAX_SUPPORT = 64
"""Tiles that are adapted to at once."""
NO_SUPPORT = torch.zeros(0, 1, 1, 1)
MAX_CONTEXT = 16
"""Tiles of the support beside which others are judged."""


def working_size(height: int, width: int, tile: tuple[int, int], native: bool) -> tuple[int, int]:
    """Return the size that an image is segmented at.

    Its shape is kept. Unless its pixels stay as they are (`native`), the image just covers a tile, as large
    as those that the network was trained on; one that is smaller than a tile does so in any case.

    Example:
        >>> working_size(200, 300, (64, 64), native=False), working_size(200, 300, (64, 64), native=True)
        ((64, 96), (200, 300))
    """
    factor = max(tile[0] / height, tile[1] / width)
    if native and factor < 1:
        return height, width
    return max(round(height * factor), tile[0]), max(round(width * factor), tile[1])


def support_tiles(
    labelled: Sequence[tuple[Array, Mask]], tile: tuple[int, int], native: bool = False
) -> tuple[Tensor, Tensor]:
    """Return labelled images of any size as tiles ``(n, C, h, w)`` and ``(n, h, w)``.

    Where there would be more than `MAX_SUPPORT`, each image keeps as many, at least one: those in which most
    is marked.

    Args:
        labelled: images ``(height, width, C)`` and their classes ``(height, width)``.
        tile: height and width of a tile.
        native: whether the images keep their pixels.
    """
    images: list[Tensor] = []
    labels: list[Tensor] = []
    most = max(1, MAX_SUPPORT // len(labelled))
    for pixels, mask in labelled:
        size = working_size(pixels.shape[0], pixels.shape[1], tile, native)
        image = torch.from_numpy(resized(pixels, *size)).movedim(-1, 0)
        marks = torch.from_numpy(fitted_mask(mask, *size, "resize")).long()
        corners = product(*(tile_starts(n, t, SUPPORT_OVERLAP) for n, t in zip(size, tile, strict=True)))
        cuts = [(slice(r, r + tile[0]), slice(c, c + tile[1])) for r, c in corners]
        marked = (marks > 0) & (marks != IGNORE)
        counts = [int(marked[cut].sum()) for cut in cuts]
        chosen = sorted(range(len(cuts)), key=counts.__getitem__, reverse=True)[:most]
        images += [image[(slice(None), *cuts[i])] for i in chosen]
        labels += [marks[cuts[i]] for i in chosen]
    return torch.stack(images), torch.stack(labels)


class Segmenter:
    """Gives the probabilities of the classes of an image's pixels, averaged over its mirrored versions.

    A network that normalizes over the batch would judge an image by itself alone; it is shown the `support`
    beside every tile instead, with whose statistics it was adapted.

    Args:
        predict: the network with its weights filled in.
        tile: height and width of the images that it was trained on.
        flips: what may be mirrored: ``horizontal``, ``vertical``.
        native: whether images keep their pixels; see `working_size`.
        support: tiles of the labelled images ``(n, C, h, w)``, in the network's type and on its device; n may
            be 0.

    Example:
        >>> segment = Segmenter(lambda x: torch.cat([x, 1 - x], 1), (8, 8))
        >>> import numpy as np
        >>> segment(np.zeros((12, 20, 1), dtype=np.float32)).shape
        torch.Size([2, 12, 20])
    """

    def __init__(
        self,
        predict: Predict,
        tile: tuple[int, int],
        flips: Sequence[str] = (),
        native: bool = False,
        support: Tensor = NO_SUPPORT,
    ) -> None:
        self._tile, self._native = tile, native
        chosen = [AXES[name] for name in flips]
        subsets = product((False, True), repeat=len(chosen))
        self._flips = [tuple(compress(chosen, subset)) for subset in subsets]
        self._like = support
        with torch.no_grad():
            context = support[: MAX_CONTEXT if depends_on_the_batch(predict, support) else 0]

        def probabilities(tiles: Tensor) -> Tensor:
            if not len(context):
                return predict(tiles).softmax(1)
            return predict(torch.cat([context, tiles]))[len(context) :].softmax(1)

        self._predict = tiled(probabilities, tile)

    def __call__(self, pixels: Array) -> Tensor:
        """Return the probabilities ``(K, height, width)`` of an image ``(height, width, C)``, on the CPU."""
        height, width = pixels.shape[:2]
        size = working_size(height, width, self._tile, self._native)
        image = torch.from_numpy(resized(pixels, *size)).movedim(-1, 0)[None].to(self._like)
        total = sum(self._predict(image.flip(axes)).flip(axes) for axes in self._flips)
        assert isinstance(total, Tensor)
        mean = total / len(self._flips)
        if size != (height, width):
            mean = F.interpolate(mean, size=(height, width), mode="bilinear", align_corners=False)
        return mean[0].float().cpu()


def depends_on_the_batch(predict: Predict, images: Tensor) -> bool:
    """Return whether a network's answer to an image depends on the images beside it.

    Example:
        >>> images = torch.rand(3, 1, 4, 4)
        >>> [depends_on_the_batch(f, images) for f in (lambda x: x - x.mean(), lambda x: 2 * x)]
        [True, False]
    """
    if len(images) < 2:
        return False
    alone, beside = predict(images[:1])[0], predict(images[:2])[0]
    return not torch.allclose(alone, beside, rtol=1e-3, atol=1e-4)
