"""Computed tomography: reconstruct a slice from few parallel-beam projections.

A task is one slice. Its support is a sinogram (the projections at some angles), its query the slice
itself, or projections at other angles where the slice is not to be used for learning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from metainit.card import canonical_json
from metainit.domains import signal
from metainit.domains.base import Predict, Split, TaskBatch, Tensors
from metainit.domains.grid import pixel_grid
from metainit.domains.phantoms import phantoms
from metainit.domains.radon import radon
from metainit.domains.seeding import generator_of, seed_of
from metainit.domains.slices import SliceRules, Slices, load_slices
from metainit.errors import DataError
from metainit.evidence.metrics import METRICS

MAX_VIEWS = 180
"""Parallel rays repeat after half a turn: 180 whole degrees."""


class CTConfig(SliceRules):
    """Where the slices come from and how they are measured, beside the fields of `SliceRules`.

    Attributes:
        data: an npz file or a folder of slices; None draws phantoms without end.
        held_out: number of phantoms in validation and in test; `seed` draws them.
        field_of_view: `circle` sets what lies outside the inscribed circle to zero, as scanners do,
            and the detector is as wide as the slice; `square` keeps the corners, with a detector as
            wide as the diagonal.
        views: projections in the support of a validation or test task.
        train_views: projections in the support of a training task, at random angles; of several numbers,
            each batch draws one, so that one prior serves all of them.
        angles: of validation and test tasks: `even` from 0 to 180 degrees, or `random`, new for
            each task.
        detectors: number of detector bins; None for one a pixel.
        noise: standard deviation of Gaussian noise, relative to the mean of each sinogram.
        query: what the outer loss compares: the `image`, or `projections` at as many other angles.

    Example:
        >>> CTConfig(views=200)
        Traceback (most recent call last):
        ...
        metainit.errors.DataError: ct: views is 200, expected 1 to 180: parallel projections \
repeat after 180 degrees
    """

    data: str | None = None
    held_out: int = Field(default=64, ge=1)
    field_of_view: Literal["circle", "square"] = "circle"
    views: int = 4
    train_views: int | tuple[int, ...] = 20
    angles: Literal["random", "even"] = "even"
    detectors: int | None = Field(default=None, ge=1, le=16384)
    noise: float = Field(default=0.0, ge=0)
    query: Literal["image", "projections"] = "image"

    @property
    def view_counts(self) -> tuple[int, ...]:
        """The numbers of views that training draws from."""
        return (self.train_views,) if isinstance(self.train_views, int) else self.train_views

    @model_validator(mode="after")
    def _no_more_views_than_angles(self) -> Self:
        if not self.view_counts:
            raise DataError("ct: train_views is empty, expected one number of views or more")
        limit = MAX_VIEWS if self.query == "image" else MAX_VIEWS // 2
        why = "" if self.query == "image" else ", and the query needs as many other angles"
        for name, views in (("views", self.views), *(("train_views", v) for v in self.view_counts)):
            if not 1 <= views <= limit:
                raise DataError(
                    f"ct: {name} is {views}, expected 1 to {limit}: parallel projections repeat "
                    f"after {MAX_VIEWS} degrees{why}"
                )
        return self


class CTDomain:
    r"""Slices (phantoms or real ones) to be reconstructed from their projections.

    Projections are divided by the image width, so a sinogram holds line integrals over the unit
    square (at most 1 in the circle) and losses keep their scale when the size changes. For one
    task, with f the network's slice and R the projection at the support's angles,

    .. math:: L_\text{support} = \operatorname{mean}((R f - p)^2), \quad
        L_\text{query} = \operatorname{mean}((f - f^*)^2).

    Tensors of a batch of T tasks (float32, on the CPU): support ``sinogram (T, views, detectors)``
    and ``angles (T, views)`` in degrees; query ``image (T, size, size, 1)`` in [0, 1], and with
    ``query='projections'`` also ``sinogram`` and ``angles``; shared
    ``coordinates (size * size, 2)`` from `pixel_grid`: y first, row by row.

    Raises:
        DataError: the data cannot be used; the text names the file or array and the way out.

    Source:
        Tancik et al. 2021, Learned Initializations (arXiv 2012.02189), section 4.2: 20 random views
        while learning, evenly spaced ones at test time.

    Example:
        >>> domain = CTDomain(CTConfig(size=16, views=2, held_out=4))
        >>> batch = domain.tasks(seed=0, index=0, count=3, split='test')
        >>> tuple(batch.support['sinogram'].shape), tuple(batch.query['image'].shape)
        ((3, 2, 16), (3, 16, 16, 1))
        >>> task = batch[:1].map(lambda tensor: tensor)
        >>> truth = task.query['image'][0].reshape(-1, 1)
        >>> support = {name: value[0] for name, value in task.support.items()}
        >>> float(domain.support_loss(lambda coordinates: truth, support, task.shared)) < 1e-12
        True
    """

    metric = signal.METRIC
    controls = signal.CONTROLS
    network_arguments: Mapping[str, int] = MappingProxyType({"in_features": 2, "out_features": 1})

    def __init__(self, config: CTConfig) -> None:
        """Load the slices, if there are any to load."""
        self.config = config
        self._slices: Slices | None = None
        if config.data is not None:
            self._slices = load_slices(Path(config.data).expanduser(), config)
            if not self.size("train"):
                raise DataError(f"{config.data}: all slices are held out, none is left for training")

    def size(self, split: Split) -> int | None:
        """Return the number of different slices in a split; None for training phantoms."""
        if self._slices is not None:
            return len(self._slices.positions(split))
        return None if split == "train" else self.config.held_out

    def tasks(self, seed: int, index: int, count: int, split: Split = "train") -> TaskBatch:
        """Return tasks number ``index * count`` to ``(index + 1) * count - 1`` of a split.

        In training the seed and the task's number choose slice, angles and noise. In validation and
        test the number alone names the slice; the seed chooses random angles and noise only.
        Batches of any count cut the same sequence of tasks, except in training with several
        `train_views`: there the batch's index chooses the number of views, one for the whole batch.

        Raises:
            DataError: validation or test has fewer slices than asked for.
        """
        numbers = range(index * count, (index + 1) * count)
        images, ids, groups = self._slices_of(seed, numbers, split)
        views = self.config.views
        if split == "train":
            counts = self.config.view_counts
            views = counts[seed_of("views", seed, index) % len(counts)]
        support_angles, query_angles = self._angles(seed, numbers, split, views)
        support = {
            "sinogram": self._measure(images, support_angles, seed, numbers, split, "support"),
            "angles": support_angles,
        }
        query = {"image": images.unsqueeze(-1)}
        if self.config.query == "projections":
            query["sinogram"] = self._measure(images, query_angles, seed, numbers, split, "query")
            query["angles"] = query_angles
        return TaskBatch(support, query, self._shared(), ids, groups)

    def measured(self, sinograms: Tensor, angles: Tensor, ids: Sequence[str] | None = None) -> TaskBatch:
        """Return tasks whose slice is not known, from a scanner; their query is empty.

        Args:
            sinograms: ``(T, views, detectors)``, line integrals over the unit square.
            angles: ``(T, views)`` or ``(views,)``, degrees.
            ids: names of the tasks.

        Raises:
            DataError: the shapes do not fit each other or the detector.
        """
        detectors = self.project(torch.zeros(self.config.size, self.config.size), torch.zeros(1)).shape[-1]
        if (
            sinograms.ndim != 3
            or sinograms.shape[-1] != detectors
            or angles.shape[-1:] != sinograms.shape[1:2]
        ):
            raise DataError(
                f"ct: expected sinograms (tasks, views, {detectors}) and as many angles as "
                f"views, came {tuple(sinograms.shape)} and {tuple(angles.shape)}; set size or "
                "detectors to fit the data"
            )
        if not bool(torch.isfinite(sinograms).all()):
            raise DataError("ct: expected finite projections, came NaN or infinity in a sinogram")
        names = tuple(ids) if ids is not None else tuple(f"measured-{i}" for i in range(len(sinograms)))
        support = {"sinogram": sinograms, "angles": angles.expand(len(sinograms), -1)}
        return TaskBatch(support, {}, self._shared(), names)

    def project(self, images: Tensor, angles: Tensor) -> Tensor:
        """Return line integrals over the unit square: `radon` divided by the image width.

        Args:
            images: ``(..., size, size)``.
            angles: ``(views,)`` or ``(..., views)``, degrees.

        Returns:
            ``(..., views, detectors)``.
        """
        circle = self.config.field_of_view == "circle"
        return radon(images, angles, circle=circle, detectors=self.config.detectors) / self.config.size

    def support_loss(self, predict: Predict, support: Tensors, shared: Tensors) -> Tensor:
        """Return the mean squared error of the projections, a scalar."""
        image = self._image(predict, shared)[..., 0]
        return (self.project(image, support["angles"]) - support["sinogram"]).square().mean()

    def query_loss(self, predict: Predict, query: Tensors, shared: Tensors) -> Tensor:
        """Return the mean squared error of the slice, or of its projections at other angles."""
        image = self._image(predict, shared)
        if self.config.query == "image":
            return (image - query["image"]).square().mean()
        return (self.project(image[..., 0], query["angles"]) - query["sinogram"]).square().mean()

    def example_inputs(self) -> Tensor:
        """Return the coordinates of all pixels, ``(size * size, 2)``."""
        return self._shared()["coordinates"]

    def observation(self, count: int) -> Tensor:
        """Return some training slices at `example_inputs`, ``(count, size * size, 1)``."""
        return self.tasks(0, 0, count, "train").query["image"].flatten(1, 2)

    def observed(self, support: Tensors, shared: Tensors) -> Tensor:
        """Return the sinograms of the support, ``(T, views, detectors)``."""
        return support["sinogram"]

    def render(self, predict: Predict, query: Tensors, shared: Tensors) -> Tensor:
        """Return the slice that the network stands for, ``(size, size, 1)``, clamped to [0, 1]."""
        return self._image(predict, shared).clamp(0, 1)

    def picture(self, rendered: Tensor, query: Tensors) -> Tensor:
        """Return the slice as it is."""
        return rendered

    def target(self, query: Tensors) -> Tensor:
        """Return the true slice of one task, ``(size, size, 1)``."""
        return query["image"]

    def metrics(
        self, rendered: Tensor, query: Tensors, names: Collection[str] | None = None
    ) -> Mapping[str, float]:
        """Return `psnr` in dB and `ssim` of a rendered slice against the query's image, or some of them."""
        wanted = METRICS if names is None else {k: v for k, v in METRICS.items() if k in names}
        return {name: metric(rendered, query["image"]) for name, metric in wanted.items()}

    def mean_signal(self, split: Split = "train") -> Tensor:
        """Return the mean slice of a split, ``(size, size, 1)``; of 256 phantoms in training.

        Raises:
            DataError: the split is empty.
        """
        if self._slices is None:
            images = self._slices_of(0, range(self.size(split) or 256), split)[0]
        elif positions := self._slices.positions(split):
            images = self._in_view(self._slices.images[list(positions)])
        else:
            raise DataError(f"ct: the {split} split holds no slices")
        return images.mean(dim=0).unsqueeze(-1)

    def fingerprint(self) -> str:
        """Return the sha256 of the slices, their splits, and the configuration without its path."""
        rules = self.config.model_dump(mode="json", exclude={"data"})
        slices = self._slices and [self._slices.digest, self._slices.groups, self._slices.splits]
        return hashlib.sha256(canonical_json([rules, slices]).encode()).hexdigest()

    def _shared(self) -> Tensors:
        return {"coordinates": pixel_grid(self.config.size, self.config.size)}

    def _image(self, predict: Predict, shared: Tensors) -> Tensor:
        return predict(shared["coordinates"]).reshape(self.config.size, self.config.size, 1)

    def _slices_of(
        self, seed: int, numbers: range, split: Split
    ) -> tuple[Tensor, tuple[str, ...], tuple[str, ...]]:
        """Return slices ``(T, size, size)``, their names, and their groups (patients)."""
        available = self.size(split)
        if split != "train" and available is not None and numbers.stop > available:
            raise DataError(
                f"ct: the {split} split has {available} slices, tasks {numbers.start} to "
                f"{numbers.stop - 1} were asked for; ask for fewer, or give more data "
                "(phantoms: raise held_out)"
            )
        if self._slices is None:
            stream = seed_of("phantoms", split, seed if split == "train" else self.config.seed)
            ids = tuple(f"phantom-{split}-{number}" for number in numbers)
            return self._in_view(phantoms(stream, numbers, self.config.size)), ids, ids
        chosen = list(self._slices.positions(split))
        if split == "train":
            chosen = [chosen[seed_of("slice", seed, number) % len(chosen)] for number in numbers]
        else:
            chosen = chosen[numbers.start : numbers.stop]
        ids = tuple(self._slices.names[i] for i in chosen)
        groups = tuple(self._slices.groups[i] for i in chosen)
        return self._in_view(self._slices.images[chosen]), ids, groups

    def _in_view(self, images: Tensor) -> Tensor:
        """Return the images with zeros outside the circle that all projections see."""
        if self.config.field_of_view == "square":
            return images
        size = self.config.size
        offset = torch.arange(size) - size // 2
        return images * (offset[:, None] ** 2 + offset**2 <= (size // 2) ** 2)

    def _angles(self, seed: int, numbers: range, split: Split, views: int) -> tuple[Tensor, Tensor]:
        """Return the angles of support and query, each ``(T, views)``, in degrees."""
        if split == "train" or self.config.angles == "random":
            draws = [
                torch.rand(2, views, generator=generator_of("angles", split, seed, number))
                for number in numbers
            ]
            angles = torch.stack(draws) * MAX_VIEWS if draws else torch.zeros(0, 2, views)
            return angles[:, 0].contiguous(), angles[:, 1].contiguous()
        step = MAX_VIEWS / views
        even = (torch.arange(views) * step).expand(len(numbers), -1)
        return even.contiguous(), even + step / 2

    def _measure(
        self, images: Tensor, angles: Tensor, seed: int, numbers: range, split: Split, part: str
    ) -> Tensor:
        sinograms = self.project(images, angles)
        if self.config.noise == 0 or len(numbers) == 0:
            return sinograms
        noise = torch.stack(
            [
                torch.randn(sinograms.shape[1:], generator=generator_of("noise", part, split, seed, number))
                for number in numbers
            ]
        )
        return sinograms + self.config.noise * sinograms.mean(dim=(1, 2), keepdim=True) * noise
