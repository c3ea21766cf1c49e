"""The domain `segmentation`: mark a new class in images, after a few images in which it is marked."""

from __future__ import annotations

import hashlib
from collections.abc import Collection as Names
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Generator, Tensor

from metainit.domains.augmentation import AugmentationConfig, augmented, recoloured
from metainit.domains.base import Predict, Split, TaskBatch, Tensors
from metainit.domains.coco import read_coco
from metainit.domains.labelled_folder import FolderRules, read_labelled_folder
from metainit.domains.labelled_npz import ArrayNames, listed_classes, read_labelled_npz, read_strokes
from metainit.domains.masks import Fit, LabelledImage, Unusable
from metainit.domains.seeding import generator_of
from metainit.domains.segmentation_data import SPLITS, Collection, Members, SplitRules, collect, split
from metainit.domains.segmentation_loss import IGNORE, segmentation_loss
from metainit.domains.structures import KINDS
from metainit.domains.synthesis import synthesise
from metainit.errors import DataError, suggestion
from metainit.evidence.overlap import OVERLAP_METRICS

SYNTHESIS_VERSION = 2
"""Part of the fingerprint: raised whenever synthesised tasks change."""
COLOURS = ((0.90, 0.17, 0.15), (0.10, 0.65, 0.25), (0.15, 0.35, 0.90), (0.95, 0.75, 0.10), (0.65, 0.20, 0.75))
UNKNOWN = (0.5, 0.5, 0.5)


class SegmentationConfig(ArrayNames):
    """Where labelled images come from, and how they become tasks.

    `source`: ``data`` reads what `data` names: a folder of images and masks, a COCO file (``.json``; its
    images lie in `coco_images`, relative to it, unless beside it), or an npz file, of which `ArrayNames`
    says what is where. ``strokes`` takes characters from an npz file and writes them on clutter.
    ``synthesised`` needs no data and draws from `structures`.

    A task has `shots` labelled images and `queries` to judge the result on, and is about `ways` classes
    beside the background. `split`: ``classes`` keeps the classes of training, validation and test apart, as
    `train_classes`, `validation_classes` and `test_classes` (or arrays) say, or by `validation_share` and
    `test_share`; ``images`` keeps the images apart. `held_out`: number of validation and of test tasks.

    All images are brought to `height` x `width` by `fit`: ``resize`` squashes, ``crop`` cuts the centre out,
    ``pad`` adds a border whose label is unknown. `ignore` is the label of unknown pixels in label maps.
    `augment`: share of the images in a training task's support that are changed. `recolour`: share of the
    training tasks whose colours are changed as a whole. `unusable`: what to do with files, classes and
    images that cannot be used.
    """

    source: Literal["data", "strokes", "synthesised"] = "data"
    data: Path | None = None
    coco_images: Path | None = None
    structures: tuple[str, ...] = Field(default=tuple(KINDS), min_length=1)
    ignore: int = Field(default=IGNORE, ge=1, le=65535)
    height: int = Field(default=64, ge=8, le=4096)
    width: int = Field(default=64, ge=8, le=4096)
    channels: int = Field(default=3, ge=1, le=16)
    fit: Fit = "resize"
    shots: int = Field(default=5, ge=1, le=1000)
    queries: int = Field(default=5, ge=1, le=1000)
    ways: int = Field(default=1, ge=1, le=100)
    split: Literal["classes", "images"] = "classes"
    train_classes: tuple[str, ...] | None = None
    validation_classes: tuple[str, ...] | None = None
    test_classes: tuple[str, ...] | None = None
    validation_share: float = Field(default=0.2, gt=0, lt=1)
    test_share: float = Field(default=0.2, ge=0, lt=1)
    held_out: int = Field(default=64, ge=1, le=1_000_000)
    augment: float = Field(default=0.0, ge=0, le=1)
    augmentation: AugmentationConfig = AugmentationConfig()
    recolour: float = Field(default=0.0, ge=0, le=1)
    max_pixels: int = Field(default=50_000_000, ge=1)
    unusable: Literal["refuse", "skip"] = "refuse"

    @field_validator("structures")
    @classmethod
    def _known(cls, structures: tuple[str, ...]) -> tuple[str, ...]:
        for name in structures:
            if name not in KINDS:
                raise ValueError(f"no structure is called {name!r}; {suggestion(name, KINDS)}")
        return structures

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.source == "synthesised" and self.data is not None:
            raise ValueError("synthesised tasks need no data: leave data out, or set source to data")
        if self.shots < self.ways:
            raise ValueError(
                f"shots={self.shots} images cannot show ways={self.ways} classes: give as many shots, or more"
            )
        for lists in ("train", "test"):
            if getattr(self, f"{lists}_classes") and getattr(self, f"{lists}_classes_array"):
                raise ValueError(f"give {lists}_classes or {lists}_classes_array, not both")
        return self

    @property
    def split_rules(self) -> SplitRules:
        """How classes or images are divided."""
        return SplitRules(
            self.split,
            self.train_classes,
            self.validation_classes,
            self.test_classes,
            self.validation_share,
            self.test_share,
            self.shots + self.queries,
        )


class SegmentationDomain:
    """Few-shot segmentation: support and query are images of one class, or of a few.

    Shapes of a batch of T tasks: support and query ``images (T, n, channels, height, width)`` float32 in [0,
    1] and ``labels (T, n, height, width)`` int64, 0 for the background, 1 to `ways` for the classes of the
    task, 255 where nobody knows; shared is empty. A network maps images ``(n, channels, height, width)`` to
    logits ``(n, ways + 1, height, width)``.

    Raises:
        DataError: the data cannot be used; the text names the file or class and the way out.

    Source:
        Hendryx et al. 2019, Meta-Learning Initializations for Image Segmentation, arXiv:1912.06290.

    Example:
        >>> config = SegmentationConfig(source='synthesised', height=16, width=16, shots=2)
        >>> batch = SegmentationDomain(config).tasks(seed=0, index=0, count=3)
        >>> batch.support['images'].shape, batch.query['labels'].shape
        (torch.Size([3, 2, 3, 16, 16]), torch.Size([3, 5, 16, 16]))
    """

    metric = "iou"
    controls = ("default", "kaiming", "orthogonal", "lsuv", "shuffled", "joint")

    def __init__(self, config: SegmentationConfig, images: Iterable[LabelledImage] | None = None) -> None:
        """Read the labelled images, unless they are given or synthesised."""
        self.config = config
        self._unusable = Unusable(config.unusable)
        self._collection: Collection | None = None
        self._members: dict[Split, Members] = {}
        digest = f"synthesis {SYNTHESIS_VERSION}"
        if images is not None or config.source != "synthesised":
            found, rules = self._read() if images is None else (images, config.split_rules)
            self._collection = collect(
                found, config.height, config.width, config.channels, config.fit, self._unusable
            )
            self._members = split(self._collection, rules, self._unusable)
            self._place = {
                key: number
                for number, key in enumerate(
                    zip(self._collection.owners, self._collection.classes, strict=True)
                )
            }
            digest = self._collection.digest()
            for part, members in self._members.items():
                if 0 < len(members) < config.ways:
                    raise DataError(
                        f"the split {part!r} has {len(members)} classes, a task needs ways={config.ways}: "
                        "give more classes, or set split to images"
                    )
            if not any(self._members.values()):
                raise DataError("no class is left in any split; see unusable, shots and queries")
        described = config.model_dump_json(exclude={"data", "coco_images", "unusable"})
        self._fingerprint = hashlib.sha256(f"{described}\x1f{digest}".encode()).hexdigest()

    @property
    def network_arguments(self) -> Mapping[str, int]:
        """The number of channels, and of classes with the background."""
        return {"in_channels": self.config.channels, "classes": self.config.ways + 1}

    @property
    def skipped(self) -> Mapping[str, str]:
        """What could not be used, and why."""
        return self._unusable.skipped

    def classes(self, split: Split) -> tuple[str, ...]:
        """Return the names of the classes of a split; none where tasks are synthesised."""
        return tuple(self._members.get(split, ()))

    def size(self, split: Split) -> int | None:
        """Return the number of tasks: endless in training, else `held_out`, or 0 without classes."""
        if self._collection is not None and not self._members[split]:
            return 0
        return None if split == "train" else self.config.held_out

    def tasks(self, seed: int, index: int, count: int, split: Split = "train") -> TaskBatch:
        """Return tasks number ``index * count`` to ``(index + 1) * count - 1`` of a split.

        In training the seed and the task's number choose class, images and augmentation. A held-out task
        depends on its number alone; classes take turns, and with more `shots` the same queries stay and
        the support grows (of synthesised tasks it is another, larger one).

        Raises:
            DataError: the split has no classes, or fewer tasks than asked for.
        """
        size = self.size(split)
        numbers = range(index * count, (index + 1) * count)
        if size is not None:
            numbers = range(numbers.start, min(numbers.stop, size))
            if not numbers:
                reason = "; name some, or give more data" if size == 0 else ""
                raise DataError(
                    f"the split {split!r} has {size} tasks, there is none at {index * count}{reason}"
                )
        elif not numbers:
            raise DataError(f"expected a count of 1 or more, got {count}")
        drawn = [self._task(seed, number, split) for number in numbers]
        support, query = (_stacked([parts[side] for parts, *_ in drawn]) for side in (0, 1))
        return TaskBatch(
            support, query, {}, tuple(name for _, name, _ in drawn), tuple(group for *_, group in drawn)
        )

    def measured(
        self,
        images: Tensor,
        labels: Tensor,
        queries: Tensor | None = None,
        ids: Sequence[str] | None = None,
    ) -> TaskBatch:
        """Return tasks of a user's own images, of any size.

        Args:
            images: ``(T, n, channels, height, width)`` in [0, 1].
            labels: ``(T, n, height, width)``, 255 where not known.
            queries: images to be segmented; without them, those of the support.
            ids: names of the tasks.

        Raises:
            DataError: the shapes do not fit each other or the number of channels, or a label is none.
        """
        if images.ndim != 5 or images.shape[2] != self.config.channels or labels.shape != (
            *images.shape[:2], *images.shape[3:]
        ):  # fmt: skip
            raise DataError(
                f"expected images (tasks, n, {self.config.channels}, height, width) and labels (tasks, n, "
                f"height, width), got {tuple(images.shape)} and {tuple(labels.shape)}"
            )
        strange = labels[(labels != IGNORE) & ((labels < 0) | (labels > self.config.ways))]
        if strange.numel():
            raise DataError(
                f"labels hold {int(strange[0])}, expected 0 to {self.config.ways}, or {IGNORE} where not "
                "known"
            )
        names = tuple(ids) if ids is not None else tuple(f"measured-{i}" for i in range(len(images)))
        query = {"images": images if queries is None else queries}
        if queries is None:
            query["labels"] = labels.long()
        return TaskBatch({"images": images, "labels": labels.long()}, query, {}, names)

    def support_loss(self, predict: Predict, support: Tensors, shared: Tensors) -> Tensor:
        """Return cross-entropy minus log soft Dice over the support."""
        return segmentation_loss(predict(support["images"]), support["labels"])

    def query_loss(self, predict: Predict, query: Tensors, shared: Tensors) -> Tensor:
        """Return cross-entropy minus log soft Dice over the query."""
        return segmentation_loss(predict(query["images"]), query["labels"])

    def augmented(self, support: Tensors, generator: Generator, probability: float) -> Tensors:
        """Return a support of which each image was changed with some probability, its labels with it."""
        return augmented(support, generator, probability, self.config.augmentation)

    def example_inputs(self) -> Tensor:
        """Return the images of the first task's support, ``(shots, channels, height, width)``."""
        part = next(part for part in SPLITS if self.size(part) != 0)
        return self.tasks(0, 0, 1, part).support["images"][0]

    def render(self, predict: Predict, query: Tensors, shared: Tensors) -> Tensor:
        """Return the probabilities of the classes, ``(queries, ways + 1, height, width)``."""
        return predict(query["images"]).softmax(1)

    def picture(self, rendered: Tensor, query: Tensors) -> Tensor:
        """Return the query's images side by side with the classes laid over them, ``(height, width, 3)``."""
        return _overlay(query["images"], rendered.argmax(1))

    def target(self, query: Tensors) -> Tensor:
        """Return the query's images with their true classes laid over them."""
        return _overlay(query["images"], query["labels"])

    def metrics(
        self, rendered: Tensor, query: Tensors, names: Names[str] | None = None
    ) -> Mapping[str, float]:
        """Return `iou`, `dice` and `boundary_f` of probabilities, or some of them."""
        wanted = {k: v for k, v in OVERLAP_METRICS.items() if names is None or k in names}
        return {name: metric(rendered, query["labels"]) for name, metric in wanted.items()}

    def fingerprint(self) -> str:
        """Return the SHA-256 of the images, their masks, and the rules that make tasks of them."""
        return self._fingerprint

    def _read(self) -> tuple[Iterator[LabelledImage], SplitRules]:
        config, rules = self.config, self.config.split_rules
        if config.data is None:
            raise DataError(
                "no labelled images: set data to a folder of images and masks, a COCO file or an npz file, "
                "or set source to synthesised"
            )
        path = config.data.expanduser()
        if config.source == "strokes" or path.suffix == ".npz":
            train, test = listed_classes(path, config)
            rules = _listed(rules, train, test)
            if config.source == "strokes":
                size = (config.height, config.width, config.channels)
                return read_strokes(path, config, *size, self._unusable), rules
            return read_labelled_npz(path, config, config.ignore, self._unusable), rules
        reading = FolderRules(config.ignore, config.max_pixels)
        if path.suffix == ".json":
            return read_coco(path, config.coco_images, reading, self._unusable), rules
        return read_labelled_folder(path, reading, self._unusable), rules

    def _task(self, seed: int, number: int, split: Split) -> tuple[tuple[Tensors, Tensors], str, str]:
        """Return support and query of one task, its name, and its group."""
        config = self.config
        parts: tuple[int | str, ...] = (split, number) if split != "train" else (split, seed, number)
        generator = generator_of("segmentation", *parts)
        if self._collection is None:
            task = synthesise(
                parts,
                config.queries,
                (config.height, config.width),
                config.channels,
                config.ways,
                config.structures,
                further=config.shots,
            )
            everything, name = {"images": task.images, "labels": task.labels}, f"{task.kind}-{split}-{number}"
            group = name
        else:
            everything, own = self._drawn(generator, self._collection, number, split)
            name = f"{'+'.join(own)}-{split}-{number}"
            # Of held-out classes, tasks of one class are alike; the first class is the one that takes turns.
            # Of held-out images of the same classes, each task has its own draw.
            group = own[0] if config.split == "classes" else name
        if split == "train" and torch.rand((), generator=generator) < config.recolour:
            everything = recoloured(everything, generator)
        query = {k: v[: config.queries] for k, v in everything.items()}
        support = {k: v[config.queries :] for k, v in everything.items()}
        if split == "train" and config.augment:
            support = augmented(support, generator, config.augment, config.augmentation)
        return (support, query), name, group

    def _drawn(
        self, generator: Generator, collection: Collection, number: int, split: Split
    ) -> tuple[Tensors, list[str]]:
        """Return the images of one task, the queries first, and its classes."""
        config, members = self.config, self._members[split]
        names = list(members)
        order = torch.randperm(len(names), generator=generator).tolist()
        if split != "train":
            first = number % len(names)
            order = [first, *(place for place in order if place != first)]
        own = [names[place] for place in order[: config.ways]]
        chosen: list[int] = []
        shuffled = [
            [
                collection.owners[members[c][i]]
                for i in torch.randperm(len(members[c]), generator=generator).tolist()
            ]
            for c in own
        ]
        for turns in (config.queries, config.shots):
            for turn in range(turns):
                candidates = shuffled[turn % config.ways]
                chosen.append(next(image for image in candidates if image not in chosen))
        labels = torch.zeros(len(chosen), config.height, config.width, dtype=torch.long)
        for row, image in enumerate(chosen):
            for label, name in enumerate(own, 1):
                place = self._place.get((image, name))
                if place is None:
                    continue
                mask = collection.masks[place]
                # Where two classes overlap, the later one lies on top.
                labels[row][mask == 1] = label
                labels[row][(mask == IGNORE) & (labels[row] == 0)] = IGNORE
        return {"images": collection.images[chosen].float(), "labels": labels}, own


def _listed(rules: SplitRules, train: tuple[str, ...] | None, test: tuple[str, ...] | None) -> SplitRules:
    """Fill in the classes that arrays list."""
    return SplitRules(
        rules.by,
        rules.train if train is None else train,
        rules.validation,
        rules.test if test is None else test,
        rules.validation_share,
        rules.test_share,
        rules.least,
    )


def _stacked(tasks: Sequence[Tensors]) -> Tensors:
    return {name: torch.stack([task[name] for task in tasks]) for name in tasks[0]}


def _overlay(images: Tensor, labels: Tensor) -> Tensor:
    shown = images if images.shape[1] == 3 else images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    shown = shown.clamp(0, 1).clone()
    colours = {label: COLOURS[(label - 1) % len(COLOURS)] for label in set(labels.flatten().tolist())}
    for label, colour in (colours | {IGNORE: UNKNOWN}).items():
        if label == 0:
            continue
        tinted = (shown + torch.tensor(colour, device=shown.device, dtype=shown.dtype)[:, None, None]) / 2
        shown = torch.where((labels == label)[:, None], tinted, shown)
    return torch.cat(list(shown.permute(0, 2, 3, 1)), dim=1)
