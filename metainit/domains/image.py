"""The domain `image`: fit one network to each image, from all of its pixels or from some."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from metainit.card import Record
from metainit.domains import images as reading
from metainit.domains import signal
from metainit.domains.base import Predict, Split, TaskBatch, Tensors
from metainit.domains.grid import pixel_grid, pixels_at, stratified_pixels
from metainit.domains.image_classes import ImageClasses, digit_classes, named_digits, npz_classes
from metainit.domains.images import Array, NamedImage
from metainit.domains.seeding import generator_of
from metainit.domains.splits import SPLITS, as_marked, from_the_end
from metainit.errors import DataError
from metainit.evidence.metrics import MAX_PSNR, METRICS

MAX_PYRAMID_LEVELS = 4
BUNDLED: Mapping[str, Callable[[], Iterable[NamedImage]]] = MappingProxyType(
    {"photographs": reading.bundled_photographs, "digits": named_digits}
)
_UNSAID = {"folder", "npz"}
T = TypeVar("T")


class ImageConfig(Record):
    """Where images come from and how they become tasks.

    Exactly one of `folder`, `npz` and `bundled` names the source (none where arrays are given in Python).
    `fit`: ``resize`` squashes, ``crop`` keeps the aspect ratio and cuts the centre out, ``average`` takes
    the mean of each of equal blocks of pixels, ``random_crop`` cuts windows at random places of a pyramid of
    halved sizes. `label_array` (npz only): the number of each image's class, a condition of its tasks; the
    bundled ``digits`` have theirs. `points`: train on about that many pixels of
    each image, drawn anew for each batch and spread evenly (None: all). `observed`: the share of these that
    the support shows; the query has all of them. `mask_array` (npz only): pixels that are 0 there are
    unknown, to support and query alike.
    """

    folder: Path | None = None
    npz: Path | None = None
    array: str = "x"
    split_array: str | None = None
    mask_array: str | None = None
    label_array: str | None = None
    bundled: Literal["photographs", "digits"] | None = None
    height: int = Field(default=64, ge=4, le=8192)
    width: int = Field(default=64, ge=4, le=8192)
    channels: int = Field(default=3, ge=1, le=16)
    fit: Literal["resize", "crop", "average", "random_crop"] = "crop"
    flip: bool = True
    points: int | None = Field(default=None, ge=16)
    observed: float = Field(default=1.0, gt=0, le=1)
    validation_share: float = Field(default=0.1, gt=0, lt=0.5)
    test_share: float = Field(default=0.1, ge=0, lt=0.5)
    held_out_crops: int = Field(default=64, ge=1)
    unreadable: Literal["refuse", "skip"] = "refuse"

    @model_validator(mode="after")
    def _check(self) -> ImageConfig:
        given = [k for k in ("folder", "npz", "bundled") if getattr(self, k) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of folder, npz and bundled, got {' and '.join(given)}")
        if self.mask_array and (self.npz is None or self.fit == "random_crop"):
            raise ValueError("mask_array needs npz and a fit of resize, crop or average")
        if self.label_array and self.npz is None:
            raise ValueError("label_array needs npz")
        if self.points is not None and self.points > self.height * self.width:
            raise ValueError(
                f"points={self.points} is more than the {self.height * self.width} pixels of an image"
            )
        return self


@dataclass(frozen=True)
class _Kept:
    """What stays in memory of an image: the sizes that tasks are cut from, as uint8 or float32."""

    name: str
    split: int | None
    levels: list[Tensor]


class ImageDomain:
    """Images as tasks: support and query are pixels of one image.

    Shapes of a batch: support and query ``values (T, N, channels)`` and ``known (T, N, 1)``; shared
    ``support_coordinates`` and ``query_coordinates`` ``(N, 2)``, from `metainit.domains.grid.pixel_grid`;
    conditions ``class (T,)``, the place of each one's class in `class_names`, where images have classes. The
    crops of one image are one group.

    Raises:
        DataError: the source cannot be read, is empty, or leaves a split without images.

    Example:
        >>> config = ImageConfig(height=8, width=8, fit='resize')
        >>> domain = ImageDomain.from_arrays(np.random.default_rng(0).random((20, 16, 16, 3)), config)
        >>> domain.tasks(seed=0, index=0, count=4).support['values'].shape
        torch.Size([4, 64, 3])
    """

    metric = signal.METRIC
    controls = signal.CONTROLS

    def __init__(self, config: ImageConfig, images: Iterable[NamedImage] | None = None) -> None:
        self.config = config
        self.skipped: dict[str, str] = {}
        self.network_arguments = {"in_features": 2, "out_features": config.channels}
        masks = self._read_masks()
        classes = self._read_classes(given=images is not None)
        self.class_names: tuple[str, ...] = () if classes is None else classes.names
        rules = config.model_dump_json(exclude=_UNSAID | (set() if config.label_array else {"label_array"}))
        unseen = [] if masks is None else [hashlib.sha256(np.stack(masks).tobytes()).hexdigest()]
        unseen += [] if classes is None else [classes.digest()]
        fingerprint = reading.Fingerprint(rules, *unseen)
        found: list[_Kept] = []
        for image in images if images is not None else self._read():
            # One after the other: at full size, the images of a folder can be more than the memory holds.
            fingerprint.add(image)
            found.append(_Kept(image.name, image.split, self._levels(image)))
        self._fingerprint = fingerprint.hexdigest()
        self._known = None if masks is None else self._by_name(config.mask_array, masks, found)
        labels = None if classes is None else classes.labels.tolist()
        self._labels = None if labels is None else self._by_name(config.label_array, labels, found)
        kept = self._divided(found)
        self._names = {s: [image.name for image in kept[s]] for s in SPLITS}
        self._pyramids: dict[Split, list[list[Tensor]]] = {}
        self._stacks: dict[Split, Tensor] = {}
        if config.fit == "random_crop":
            self._pyramids = {s: [image.levels for image in kept[s]] for s in SPLITS}
        else:
            self._stacks = {s: torch.stack([i.levels[0] for i in kept[s]]) for s in SPLITS if kept[s]}

    @classmethod
    def from_arrays(
        cls, values: np.ndarray | Sequence[np.ndarray], config: ImageConfig | None = None
    ) -> ImageDomain:
        """Make the domain from arrays ``(height, width[, channels])``, of one size or of many."""
        named = (
            NamedImage(f"array[{i}]", reading.as_pixels(np.asarray(v), f"array[{i}]"))
            for i, v in enumerate(values)
        )
        return cls(config or ImageConfig(), named)

    def size(self, split: Split) -> int | None:
        """Return the number of tasks: endless random crops in training, else one for each image."""
        if self.config.fit == "random_crop":
            return None if split == "train" else self.config.held_out_crops
        return len(self._names[split])

    def tasks(self, seed: int, index: int, count: int, split: Split = "train") -> TaskBatch:
        """Return `count` tasks: random ones in training, else the next ones in their fixed order.

        Raises:
            DataError: `index` lies behind the last held-out task.
        """
        if split != "train":
            return self._numbered(seed, split, index * count, count)
        config = self.config
        generator = generator_of(seed, index, split)
        pixels, known, ids, origins = self._training_pixels(generator, count)
        drawn = None
        if config.observed < 1:
            drawn = torch.rand((len(ids), config.height * config.width), generator=generator)
        chosen = None
        if config.points is not None:
            # The same for support and query, as where all pixels are used.
            chosen = stratified_pixels(config.height, config.width, config.points, generator)
        return self._batch(pixels, known, ids, origins, drawn, chosen)

    def enumerated(self, split: Split, start: int, count: int) -> TaskBatch:
        """Return tasks number `start` to ``start + count - 1`` of a split, whole and as they are.

        Raises:
            DataError: `start` lies behind the last task, or there is no end of them.
        """
        return self._numbered(0, split, start, count)

    def _numbered(self, seed: int, split: Split, start: int, count: int) -> TaskBatch:
        pixels, ids, origins = self._enumerate(start, count, split)
        drawn = None
        if self.config.observed < 1:
            # By task, so that one is the same however it is batched.
            own = [generator_of(seed, "observed", start + i, split) for i in range(len(ids))]
            drawn = torch.stack([torch.rand(pixels[0, ..., 0].numel(), generator=g) for g in own])
        return self._batch(pixels, self._known_pixels(ids), ids, origins, drawn, None)

    def _batch(
        self,
        pixels: Tensor,
        known: Tensor | None,
        ids: Sequence[str],
        origins: Sequence[str],
        drawn: Tensor | None,
        chosen: Tensor | None,
    ) -> TaskBatch:
        """Return images as tasks: `drawn` in [0, 1] says which pixels are shown, `chosen` which are used."""
        config = self.config
        values = pixels.flatten(1, 2)
        known = known if known is None else known.flatten(1, 2)
        seen = known
        if drawn is not None:
            shown = (drawn < config.observed)[..., None].to(values)
            seen = shown if known is None else known * shown
        grid = pixel_grid(config.height, config.width)
        chosen = torch.arange(len(grid)) if chosen is None else chosen
        support = {"values": values[:, chosen]}
        query = {"values": values[:, chosen]}
        if seen is not None:
            support["known"] = seen[:, chosen]
        if known is not None:
            query["known"] = known[:, chosen]
        shared = {"support_coordinates": grid[chosen], "query_coordinates": grid[chosen]}
        conditions = {}
        if self._labels is not None:
            conditions["class"] = torch.tensor([self._labels[name] for name in origins])
        return TaskBatch(support, query, shared, tuple(ids), tuple(origins), conditions)

    def measured(
        self, images: Tensor, known: Tensor | None = None, ids: Sequence[str] | None = None
    ) -> TaskBatch:
        """Return tasks of a user's own images, of the domain's size.

        Args:
            images: ``(T, height, width, channels)`` in [0, 1].
            known: ``(T, height, width)``, 0 where a pixel is not known to the support; None: all are known.
            ids: names of the tasks.

        Raises:
            DataError: the images are not of the domain's size.
        """
        expected = (self.config.height, self.config.width, self.config.channels)
        if images.dim() != 4 or tuple(images.shape[1:]) != expected:
            raise DataError(
                f"expected images (tasks, {', '.join(map(str, expected))}), got {tuple(images.shape)}"
            )
        grid = pixel_grid(self.config.height, self.config.width)
        support = {"values": images.flatten(1, 2)}
        if known is not None:
            support["known"] = known.reshape(len(images), -1, 1).to(images)
        names = tuple(ids) if ids is not None else tuple(f"measured-{i}" for i in range(len(images)))
        shared = {"support_coordinates": grid, "query_coordinates": grid}
        return TaskBatch(support, {"values": images.flatten(1, 2)}, shared, names)

    def support_loss(self, predict: Predict, support: Tensors, shared: Tensors) -> Tensor:
        """Return the mean squared error over the pixels that the support shows."""
        return _masked_mse(predict(shared["support_coordinates"]), support)

    def query_loss(self, predict: Predict, query: Tensors, shared: Tensors) -> Tensor:
        """Return the mean squared error over the query's pixels."""
        return _masked_mse(predict(shared["query_coordinates"]), query)

    def example_inputs(self) -> Tensor:
        """Return the coordinates of all pixels, ``(height * width, 2)``."""
        return pixel_grid(self.config.height, self.config.width)

    def observation(self, count: int) -> Tensor:
        """Return some training images at `example_inputs`, ``(count, height * width, channels)``."""
        return self._training_pixels(generator_of(0, 0, "train"), count)[0].flatten(1, 2)

    def observed(self, support: Tensors, shared: Tensors) -> Tensor:
        """Return the pixels that the support shows ``(T, channels, height, width)``, 0 for the others."""
        config, values = self.config, support["values"]
        seen = values * support["known"] if "known" in support else values
        at = pixels_at(shared["support_coordinates"], config.height, config.width)
        canvas = values.new_zeros(len(values), config.height * config.width, config.channels)
        whole = canvas.index_copy(1, at, seen).movedim(-1, 1)
        return whole.reshape(-1, config.channels, config.height, config.width)

    def render(self, predict: Predict, query: Tensors, shared: Tensors) -> Tensor:
        """Return the image ``(height, width, channels)``, clamped to [0, 1]."""
        rendered = predict(shared["query_coordinates"])
        return rendered.reshape(self.config.height, self.config.width, -1).clamp(0, 1)

    def picture(self, rendered: Tensor, query: Tensors) -> Tensor:
        """Return the image with 1 or 3 channels."""
        return signal.as_picture(rendered)

    def target(self, query: Tensors) -> Tensor:
        """Return the true image of one task with 1 or 3 channels."""
        return signal.as_picture(self._truth(query))

    def metrics(
        self, rendered: Tensor, query: Tensors, names: Collection[str] | None = None
    ) -> Mapping[str, float]:
        """Return PSNR (dB) and SSIM against the image, over its known pixels where some are not known.

        `names`: which of them; all unless given.
        """
        truth = self._truth(query)
        wanted = METRICS if names is None else {k: v for k, v in METRICS.items() if k in names}
        if "known" not in query:
            return {name: metric(rendered, truth) for name, metric in wanted.items()}
        known = query["known"].reshape(*truth.shape[:2], 1)
        judged = torch.where(known > 0.5, rendered, truth)
        # Unknown pixels agree by construction: the mean over the known ones is larger by their share.
        share = max(float(known.mean()), 1 / known.numel())
        found = {name: metric(judged, truth) for name, metric in wanted.items()}
        if "psnr" in found:
            found["psnr"] = round(min(MAX_PSNR, found["psnr"] + 10 * math.log10(share)), 6)
        return found

    def mean_signal(self) -> Tensor:
        """Return the mean training image ``(height, width, channels)``, over at most 256 tasks."""
        if "train" in self._stacks:
            pixels = self._stacks["train"][:256]
            known = self._known_pixels(self._names["train"][:256])
            if known is None:
                return pixels.mean(0)
            seen = known.reshape(*pixels.shape[:3], 1)
            return (pixels * seen).sum(0) / seen.sum(0).clamp(min=1)
        pixels, *_ = self._draw(generator_of("mean"), 256, "train")
        return pixels.mean(0)

    def fingerprint(self) -> str:
        """Return the SHA-256 of the pixels and of the rules that make tasks of them."""
        return self._fingerprint

    def _read(self) -> Iterable[NamedImage]:
        config = self.config
        if config.folder is not None:
            skip = self.skipped.__setitem__ if config.unreadable == "skip" else None
            return reading.read_folder(config.folder, skip)
        if config.npz is not None:
            return reading.read_npz(config.npz, config.array, config.split_array)
        if config.bundled is not None:
            return BUNDLED[config.bundled]()
        raise DataError("no images: set data to a folder of images or an npz file, or give arrays in Python")

    def _divided(self, found: list[_Kept]) -> dict[Split, list[_Kept]]:
        config, marks = self.config, [image.split for image in found]
        own = as_marked(marks) if config.bundled == "photographs" else None
        splits = own or from_the_end(marks, config.validation_share, config.test_share)
        return {s: [i for i, split in zip(found, splits, strict=True) if split == s] for s in SPLITS}

    def _read_masks(self) -> list[Array] | None:
        config = self.config
        if config.mask_array is None or config.npz is None:
            return None
        masks = reading.load_npz(config.npz, [config.mask_array])[config.mask_array]
        if masks.ndim != 3 or 0 in masks.shape:
            raise DataError(
                f"{config.npz}: array {config.mask_array!r} has shape {masks.shape}, expected "
                "(images, height, width)"
            )
        fitted = (self._fitted(reading.as_pixels(m != 0, "mask"), "a mask") for m in masks)
        return [(mask > 0.5).astype(np.float32) for mask in fitted]

    def _read_classes(self, given: bool) -> ImageClasses | None:
        """Return the classes of the images; those of the bundled ones, unless other images are given."""
        config = self.config
        if config.npz is not None and config.label_array is not None:
            return npz_classes(config.npz, config.label_array)
        return digit_classes() if config.bundled == "digits" and not given else None

    def _by_name(self, key: str | None, values: Sequence[T], found: list[_Kept]) -> dict[str, T]:
        if len(values) != len(found):
            raise DataError(
                f"{self.config.npz}: array {key!r} is of {len(values)} "
                f"images, expected one entry for each of the {len(found)} images"
            )
        return dict(zip((image.name for image in found), values, strict=True))

    def _fitted(self, pixels: Array, name: str) -> Array:
        height, width = self.config.height, self.config.width
        if self.config.fit == "average":
            return reading.block_averaged(pixels, height, width, name)
        fit = reading.resized if self.config.fit == "resize" else reading.centre_cropped
        return fit(pixels, height, width)

    def _levels(self, image: NamedImage) -> list[Tensor]:
        """Return the image at the sizes that tasks are cut from."""
        config = self.config
        pixels = reading.with_channels(image.pixels, config.channels, image.name)
        if config.fit != "random_crop":
            return [torch.from_numpy(self._fitted(pixels, image.name))]
        if pixels.shape[0] < config.height or pixels.shape[1] < config.width:
            pixels = self._fitted(pixels, image.name)
        levels = [pixels]
        while len(levels) < MAX_PYRAMID_LEVELS:
            rows, columns = levels[-1].shape[0] // 2, levels[-1].shape[1] // 2
            if rows < config.height or columns < config.width:
                break
            levels.append(reading.resized(levels[-1], rows, columns))
        return [torch.from_numpy(np.ascontiguousarray(reading.compact(level))) for level in levels]

    def _truth(self, query: Tensors) -> Tensor:
        return query["values"].reshape(self.config.height, self.config.width, -1)

    def _training_pixels(
        self, generator: torch.Generator, count: int
    ) -> tuple[Tensor, Tensor | None, list[str], list[str]]:
        """Return random training images, which of their pixels are known, their names and origins."""
        pixels, ids, origins = self._draw(generator, count, "train")
        known = self._known_pixels(ids)
        if self.config.flip:
            mirrored = (torch.rand(len(ids), generator=generator) < 0.5)[:, None, None, None]
            pixels = torch.where(mirrored, pixels.flip(2), pixels)
            known = known if known is None else torch.where(mirrored, known.flip(2), known)
        return pixels, known, ids, origins

    def _draw(
        self, generator: torch.Generator, count: int, split: Split
    ) -> tuple[Tensor, list[str], list[str]]:
        """Return random images, their names, and the names of the images that they were cut from."""
        images = self._names[split]
        if not images:
            raise DataError(f"the split {split!r} has no images")
        chosen = torch.randint(len(images), (count,), generator=generator).tolist()
        names = [images[i] for i in chosen]
        if self.config.fit != "random_crop":
            return self._stacks[split][chosen], names, names
        crops = [self._crop(generator, self._pyramids[split][i]) for i in chosen]
        pixels = torch.stack([crop for crop, _ in crops])
        return pixels, [f"{name}@{place}" for name, (_, place) in zip(names, crops, strict=True)], names

    def _crop(self, generator: torch.Generator, levels: list[Tensor]) -> tuple[Tensor, str]:
        level = int(torch.randint(len(levels), (), generator=generator))
        pixels = levels[level]
        rows = pixels.shape[0] - self.config.height
        columns = pixels.shape[1] - self.config.width
        top = int(torch.randint(rows + 1, (), generator=generator))
        left = int(torch.randint(columns + 1, (), generator=generator))
        cut = pixels[top : top + self.config.height, left : left + self.config.width]
        exact = cut if cut.dtype == torch.float32 else cut.to(torch.float32) / 255
        return exact, f"{2**level}x{top},{left}"

    def _enumerate(self, first: int, count: int, split: Split) -> tuple[Tensor, list[str], list[str]]:
        size = self.size(split)
        if size is None:
            raise DataError(
                f"there is no end of the tasks in {split!r} with fit=random_crop: to go through all of "
                "them, set fit to crop, resize or average"
            )
        numbers = range(first, min(first + count, size))
        if not numbers:
            raise DataError(f"the split {split!r} has {size} tasks, there is none at {first}")
        if self.config.fit != "random_crop":
            part = list(numbers)
            names = [self._names[split][i] for i in part]
            return self._stacks[split][part], names, names
        drawn = [self._draw(generator_of("held out", n, split), 1, split) for n in numbers]
        pixels = torch.cat([crop for crop, _, _ in drawn])
        return pixels, [ids[0] for _, ids, _ in drawn], [origins[0] for _, _, origins in drawn]

    def _known_pixels(self, ids: Sequence[str]) -> Tensor | None:
        if self._known is None:
            return None
        return torch.from_numpy(np.stack([self._known[name] for name in ids]))


def _masked_mse(predicted: Tensor, observed: Tensors) -> Tensor:
    squared = (predicted - observed["values"]).square()
    if "known" not in observed:
        return squared.mean()
    known = observed["known"]
    return (squared * known).sum() / (known.sum() * squared.shape[-1]).clamp(min=1)
