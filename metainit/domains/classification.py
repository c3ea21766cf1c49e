"""The domain `classification`: tell a few classes of images apart, after a few examples of each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from metainit.domains.base import Predict, Split, TaskBatch, Tensors
from metainit.domains.labelled_images import (
    LabelledImages,
    LabelledImagesConfig,
    read_classes_apart,
    read_labelled_images,
)
from metainit.domains.seeding import generator_of
from metainit.errors import DataError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MAX_SUBSETS = 100_000
"""Subsets of classes that are listed; where there are more, the classes themselves can be held out."""


class ClassificationConfig(LabelledImagesConfig):
    """Where labelled images come from, beside the fields of `LabelledImagesConfig`, and what a task is.

    A task tells `ways` classes apart, in an order that is drawn: the first is 0. Its support has `shots`
    images of each, its query `queries` others.

    `held_out`: what training does not see. ``subsets``: of few classes, the unordered subsets of `ways` are
    divided, and so are the images of each class. ``classes``: of many, the classes themselves are divided.
    `validation` and `test` are shares of either; a source that marks images or whole classes as not for
    training says itself which are for test. `held_out_tasks`: number of validation and of test tasks.

    Example:
        >>> ClassificationConfig(held_out='classes').ways
        5
    """

    ways: int = Field(default=5, ge=2, le=1000)
    shots: int = Field(default=5, ge=1, le=1000)
    queries: int = Field(default=15, ge=1, le=1000)
    held_out: Literal["subsets", "classes"] = "subsets"
    held_out_tasks: int = Field(default=64, ge=1, le=1_000_000)
    validation: float = Field(default=0.2, ge=0, lt=1)

    @model_validator(mode="after")
    def _something_to_choose_on(self) -> Self:
        if self.validation == 0:
            raise ValueError("validation is 0, but tuning needs validation tasks: give it a share")
        return self


class ClassificationDomain:
    """Few-shot classification: support and query are standardized images of a few classes.

    Shapes of a batch of T tasks: support ``images (T, ways * shots, channels, size, size)`` float32 and
    ``labels (T, ways * shots)`` int64 from 0, in their order; query the same with `queries`; conditions
    ``classes (T, ways)``, the place of each label's class in `class_names`. A network maps images ``(n,
    channels, size, size)`` to logits ``(n, ways)``. Tasks of one subset of classes are one group where
    subsets are held out.

    Raises:
        DataError: the data cannot be used, or hold too few classes or images for such tasks.

    Source: Vinyals et al. 2016, "Matching Networks for One Shot Learning", section 2.2.

    Example:
        >>> domain = ClassificationDomain(ClassificationConfig(data='digits', ways=3, shots=2, queries=4))
        >>> batch = domain.tasks(seed=0, index=0, count=5)
        >>> batch.support['images'].shape, batch.query['labels'][0].tolist()
        (torch.Size([5, 6, 1, 8, 8]), [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])
    """

    metric = "accuracy"
    controls = ("default", "kaiming", "orthogonal", "lsuv", "shuffled")

    def __init__(self, config: ClassificationConfig) -> None:
        """Read the images and divide what is held out."""
        self.config = config
        apart = config.held_out == "classes"
        self.images: LabelledImages = (read_classes_apart if apart else read_labelled_images)(config)
        self._members = {split: _by_class(self.images, split) for split in SPLITS}
        self._subsets = None if apart else _subsets(config, len(self.images.class_names))
        self._require_enough()
        rules = config.model_dump_json(exclude={"data", "unreadable"})
        self._fingerprint = hashlib.sha256(f"{rules}\x1f{self.images.fingerprint()}".encode()).hexdigest()

    @property
    def network_arguments(self) -> Mapping[str, int]:
        """The number of channels, the side of the images, and the number of classes of a task."""
        channels, size, _ = self.images.shape
        return {"in_channels": channels, "size": size, "classes": self.config.ways}

    @property
    def standardization(self) -> tuple[Tensor, Tensor]:
        """The mean and the deviation of each channel of the training part's pixels in [0, 1]."""
        return self.images.mean, self.images.std

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of all classes."""
        return self.images.class_names

    @property
    def skipped(self) -> Mapping[str, str]:
        """What could not be used, and why."""
        return self.images.skipped

    def subsets(self, split: Split) -> tuple[tuple[int, ...], ...]:
        """Return the subsets of classes that tasks of a split are about; none where classes are held out."""
        return () if self._subsets is None else self._subsets[split]

    def classes(self, split: Split) -> tuple[int, ...]:
        """Return the classes that tasks of a split are about."""
        if self._subsets is None:
            return tuple(self._members[split])
        return tuple(sorted({number for subset in self._subsets[split] for number in subset}))

    def size(self, split: Split) -> int | None:
        """Return the number of tasks: endless in training, else `held_out_tasks`, or 0 without classes."""
        if not self.classes(split):
            return 0
        return None if split == "train" else self.config.held_out_tasks

    def tasks(self, seed: int, index: int, count: int, split: Split = "train") -> TaskBatch:
        """Return tasks number ``index * count`` to ``(index + 1) * count - 1`` of a split.

        In training the seed and the task's number choose classes and images. A held-out task depends on its
        number alone; held-out subsets take turns.

        Raises:
            DataError: the split has fewer tasks than asked for.
        """
        return self._numbered(seed, split, index * count, count)

    def enumerated(self, split: Split, start: int, count: int) -> TaskBatch:
        """Return tasks number `start` to ``start + count - 1`` of a split; of training, those of seed 0.

        Raises:
            DataError: the split has fewer tasks than asked for.
        """
        return self._numbered(0, split, start, count)

    def measured(
        self,
        images: Tensor,
        labels: Tensor,
        queries: Tensor | None = None,
        ids: Sequence[str] | None = None,
    ) -> TaskBatch:
        """Return tasks of a user's own examples, which are standardized as those of the domain.

        Args:
            images: ``(T, n, channels, size, size)`` in [0, 1].
            labels: ``(T, n)``, from 0 to ``ways - 1``.
            queries: images to be told apart; without them, those of the support.
            ids: names of the tasks.

        Raises:
            DataError: the shapes do not fit each other or the domain, or a label is none.
        """
        for given in (images,) if queries is None else (images, queries):
            if given.ndim != 5 or tuple(given.shape[2:]) != self.images.shape or len(given) != len(labels):
                raise DataError(
                    f"expected images (tasks, n, {', '.join(map(str, self.images.shape))}) and labels "
                    f"(tasks, n), got {tuple(given.shape)} and {tuple(labels.shape)}"
                )
        if labels.shape != images.shape[:2] or bool(((labels < 0) | (labels >= self.config.ways)).any()):
            raise DataError(
                f"expected a label from 0 to {self.config.ways - 1} for each of {tuple(images.shape[:2])} "
                f"images, got labels {tuple(labels.shape)}: {sorted(set(labels.flatten().tolist()))[:9]}"
            )
        mean, std = (v[:, None, None].to(images) for v in (self.images.mean, self.images.std))
        support = {"images": (images - mean) / std, "labels": labels.long()}
        query = support if queries is None else {"images": (queries - mean) / std}
        names = tuple(ids) if ids is not None else tuple(f"measured-{i}" for i in range(len(images)))
        return TaskBatch(support, query, {}, names)

    def support_loss(self, predict: Predict, support: Tensors, shared: Tensors) -> Tensor:
        """Return the cross-entropy over the support."""
        return F.cross_entropy(predict(support["images"]), support["labels"])

    def query_loss(self, predict: Predict, query: Tensors, shared: Tensors) -> Tensor:
        """Return the cross-entropy over the query."""
        return F.cross_entropy(predict(query["images"]), query["labels"])

    def example_inputs(self) -> Tensor:
        """Return the first training task's support, ``(ways * shots, channels, size, size)``."""
        return self.tasks(0, 0, 1).support["images"][0]

    def observed(self, support: Tensors, shared: Tensors) -> Tensor:
        """Return the support's images by label, ``(T, ways, shots, channels, size, size)``.

        Raises:
            DataError: a task has not `shots` images of each label.
        """
        labels, images = support["labels"], support["images"]
        order = labels.argsort(dim=1, stable=True)
        expected = torch.arange(self.config.ways, device=labels.device).repeat_interleave(self.config.shots)
        if labels.shape[1] != len(expected) or bool((labels.gather(1, order) != expected).any()):
            raise DataError(
                f"expected {self.config.shots} examples of each of {self.config.ways} labels in every task, "
                "got other numbers of them: give as many, or set shots to what there are"
            )
        ranked = torch.stack([own[places] for own, places in zip(images, order, strict=True)])
        return ranked.reshape(len(images), self.config.ways, self.config.shots, *images.shape[2:])

    def render(self, predict: Predict, query: Tensors, shared: Tensors) -> Tensor:
        """Return the probabilities of the classes, ``(queries, ways)``."""
        return predict(query["images"]).softmax(1)

    def picture(self, rendered: Tensor, query: Tensors) -> Tensor:
        """Return the probabilities as a grey matrix, a row a class: ``(ways, queries, 1)``."""
        return rendered.T[..., None]

    def target(self, query: Tensors) -> Tensor:
        """Return the true classes as such a matrix."""
        return F.one_hot(query["labels"], self.config.ways).float().T[..., None]

    def metrics(
        self, rendered: Tensor, query: Tensors, names: Collection[str] | None = None
    ) -> Mapping[str, float]:
        """Return `accuracy`, the share of the queries whose likeliest class is the true one."""
        if names is not None and self.metric not in names:
            return {}
        if not bool(torch.isfinite(rendered).all()):
            return {self.metric: math.nan}
        return {self.metric: float((rendered.argmax(1) == query["labels"]).double().mean())}

    def fingerprint(self) -> str:
        """Return the SHA-256 of images, labels, and the rules that make tasks of them."""
        return self._fingerprint

    def _numbered(self, seed: int, split: Split, start: int, count: int) -> TaskBatch:
        size = self.size(split)
        stop = start + count if size is None else min(start + count, size)
        if start >= stop:
            raise DataError(
                f"the split {split!r} has {'endless' if size is None else size} tasks, {count} were asked "
                f"for from {start} on; ask for other ones, or raise held_out_tasks, validation or test"
            )
        drawn = [self._task(seed, number, split) for number in range(start, stop)]
        support = _stacked([own for own, _, _ in drawn])
        query = _stacked([own for _, own, _ in drawn])
        chosen = [order for _, _, order in drawn]
        said = [", ".join(self.class_names[n] for n in order) for order in chosen]
        ids = tuple(f"{split}-{start + i}: {names}" for i, names in enumerate(said))
        groups = ids
        if self._subsets is not None:
            groups = tuple(", ".join(self.class_names[n] for n in sorted(order)) for order in chosen)
        return TaskBatch(support, query, {}, ids, groups, {"classes": torch.tensor(chosen)})

    def _task(self, seed: int, number: int, split: Split) -> tuple[Tensors, Tensors, list[int]]:
        """Return support, query and classes of one task."""
        config = self.config
        generator = generator_of("classification", split, seed if split == "train" else 0, number)
        chosen = self._classes_of(generator, number, split)
        images = self.images.parts[split].images
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for own in chosen:
            members = self._members[split][own]
            order = torch.randperm(len(members), generator=generator)[: config.shots + config.queries]
            taken = members[order]
            parts[0].append(images[taken[: config.shots]])
            parts[1].append(images[taken[config.shots :]])
        labels = torch.arange(config.ways)
        support, query = (
            {"images": torch.cat(part), "labels": labels.repeat_interleave(each)}
            for part, each in zip(parts, (config.shots, config.queries), strict=True)
        )
        return support, query, chosen

    def _classes_of(self, generator: torch.Generator, number: int, split: Split) -> list[int]:
        """Return the classes of a task in the order of their labels."""
        if self._subsets is None:
            among = self.classes(split)
        else:
            own = self._subsets[split]
            drawn = int(torch.randint(len(own), (), generator=generator))
            among = own[drawn if split == "train" else number % len(own)]
        return [
            among[i] for i in torch.randperm(len(among), generator=generator)[: self.config.ways].tolist()
        ]

    def _require_enough(self) -> None:
        """Raise unless every split that has tasks has classes and images enough for them."""
        config = self.config
        for split in SPLITS:
            classes = self.classes(split)
            if (classes or split == "train") and len(classes) < config.ways:
                raise DataError(
                    f"{config.data}: the split {split!r} has {len(classes)} classes, a task needs "
                    f"ways={config.ways}: give more classes, or set held_out to subsets, or fewer ways"
                )
            for number in classes:
                have, name = len(self._members[split].get(number, ())), self.class_names[number]
                if have < config.shots + config.queries:
                    raise DataError(
                        f"{config.data}: the class {name!r} has {have} images for {split}, a task needs "
                        f"shots={config.shots} and queries={config.queries} more: lower these, or give "
                        f"{split} a larger share"
                    )


def _by_class(images: LabelledImages, split: Split) -> dict[int, Tensor]:
    labels = images.parts[split].labels
    return {int(n): (labels == n).nonzero()[:, 0] for n in sorted(set(labels.tolist()))}


def _subsets(config: ClassificationConfig, classes: int) -> dict[Split, tuple[tuple[int, ...], ...]]:
    """Divide the unordered subsets of the classes among the splits."""
    count = math.comb(classes, config.ways)
    if count > MAX_SUBSETS:
        raise DataError(
            f"{config.data}: {classes} classes have {count} subsets of {config.ways}, at most {MAX_SUBSETS} "
            "can be divided: set held_out to classes"
        )
    order = torch.randperm(count, generator=generator_of("subsets", config.split_seed)).tolist()
    every = list(combinations(range(classes), config.ways))
    test = max(1, round(config.test * count)) if config.test > 0 else 0
    validation = max(1, round(config.validation * (count - test)))
    if count - test - validation < 1:
        raise DataError(
            f"{config.data}: {classes} classes have {count} subsets of {config.ways}, which leave none to "
            "train on after validation and test are held out: set other ways, or held_out to classes"
        )
    ends = {"test": (0, test), "validation": (test, test + validation), "train": (test + validation, count)}
    return {split: tuple(sorted(every[i] for i in order[slice(*ends[split])])) for split in SPLITS}


def _stacked(tasks: Sequence[Tensors]) -> Tensors:
    return {name: torch.stack([task[name] for task in tasks]) for name in tasks[0]}
