"""Segment the images of a folder after a few of them in which somebody has marked what is meant."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from metainit import checkpoint
from metainit.adaptation import require_finite, trajectory
from metainit.card import AdaptationRoutine, Card, Method, Provenance, Spec
from metainit.checkpoint import write_atomically
from metainit.domains.images import Array
from metainit.domains.masks import Mask
from metainit.domains.registry import without_places
from metainit.domains.segmentation import SegmentationConfig, SegmentationDomain
from metainit.domains.segmentation_loss import IGNORE
from metainit.errors import CheckpointError, DataError, SourceError
from metainit.fitting.base import REPORT_FILE, WEIGHTS_FILE, Prepared, Request, prepare_start, write_report
from metainit.fitting.pairs import Pairs, content_of, find_pairs, read_image_of, read_mask_of, truth_of
from metainit.fitting.segmenter import Segmenter, support_tiles
from metainit.meta.state import Parameters, TaskLosses
from metainit.networks import function_of
from metainit.networks.registry import complete

MASKS, UNCERTAINTY, OVERLAYS, RECORDS = "masks", "uncertainty", "overlays", "records"
ADAPTATION = "adaptation.json"
CARRIED = ("height", "width", "augmentation", "max_pixels", "ignore")
"""Settings of the start's domain that hold for a user's images as well."""
RULE = (
    "the image whose pixels have the highest mean uncertainty: the entropy of the probabilities, averaged "
    "over the mirrored images, relative to that of a guess"
)


def fit_masks(request: Request) -> dict[str, Any]:
    """Adapt to the labelled images of a folder and segment the others.

    Written for each unlabelled image, under its name: ``masks/`` (of the image's size: 255 where the class
    is, or the numbers of the classes where there are several), ``uncertainty/`` (white where the network
    guesses), ``overlays/``; for the folder, the adapted weights and ``report.json`` with the image worth
    labelling next, and under ``unjudged`` what is wrong with a file of the truth, whose image is segmented
    all the same. What is finished is kept while images, masks and settings are the same; the user's files are
    only read.

    Raises:
        DataError: files do not belong together or cannot be read, no mask marks anything, or results would
            lie where the images, the truth or somebody else's masks are.
        SourceError: the start has no routine, or its network is none for segmentation, or has one class only.
        DivergenceError: adaptation left the finite numbers.
    """
    prepared = prepare_start(
        request.start, request.steps, request.routine, request.network, request.seed, request.device
    )
    config = _config(prepared.spec, request.start.card.domain)
    _require_free(request)
    pairs = find_pairs(request.path, request.truth, [request.out])
    job = _Job(request, prepared, SegmentationDomain(config), config, pairs)
    return job.run()


def _require_free(request: Request) -> None:
    """Refuse to write where the user's own files are, and where the truth would be taken for results."""
    out, root = request.out.resolve(), request.path.resolve()
    if out in (root, *root.parents):
        raise DataError(
            f"--out {request.out}: results must not be written over the images; choose another folder"
        )
    truth = truth_of(request.path, request.truth)
    if truth is not None:
        place = truth.resolve()
        if out in (place, *place.parents) or place in out.parents:
            raise DataError(
                f"--out {request.out}: results must not be written where the truth lies ({truth}); choose a "
                "folder that is neither it, nor in it, nor around it"
            )
    if _of_an_earlier_run(out):
        return
    for folder in (MASKS, UNCERTAINTY, OVERLAYS):
        if (out / folder).exists():
            raise DataError(
                f"--out {request.out}: {folder}/ is there already and is of no earlier run; choose another "
                "folder, or move it away"
            )


def _of_an_earlier_run(out: Path) -> bool:
    """Return whether a run, be it one that was interrupted, has left its records in a folder."""
    report = _read(out / REPORT_FILE)
    reported = isinstance(report, dict) and "label_next" in report
    return reported or isinstance(_read(out / ADAPTATION), dict) or (out / RECORDS).is_dir()


def _config(network: Spec, domain: Spec | None) -> SegmentationConfig:
    """Return the domain's settings without its data: channels and classes are the network's."""
    arguments = complete(network).arguments
    missing = [name for name in ("in_channels", "classes") if name not in arguments]
    if missing:
        raise SourceError(
            f"network {network.name!r} has no {' and no '.join(missing)}: segmentation needs a network of "
            "images, such as unet or efficientlab"
        )
    if arguments["classes"] < 2:
        raise SourceError(
            f"network {network.name!r} has classes={arguments['classes']}: segmentation needs 2 or more "
            "classes, the background and what is marked; choose a network with classes: 2"
        )
    carried = {} if domain is None else {k: v for k, v in domain.arguments.items() if k in CARRIED}
    channels, ways = arguments["in_channels"], arguments["classes"] - 1
    # No data are read for a domain of synthesised tasks, and none are drawn here.
    fixed = {"source": "synthesised", "channels": channels, "ways": ways, "shots": ways}
    return SegmentationConfig.model_validate({**carried, **fixed})


@dataclass(frozen=True)
class _Job:
    """A folder on its way through a fit."""

    request: Request
    prepared: Prepared
    domain: SegmentationDomain
    config: SegmentationConfig
    pairs: Pairs

    @property
    def settings(self) -> dict[str, Any]:
        """What every result depends on beside its own image."""
        labelled = {name: content_of(*files) for name, files in sorted(self.pairs.labelled.items())}
        return {**self.prepared.settings, "native": self.request.native, "labelled": labelled}

    def run(self) -> dict[str, Any]:
        settings = self.settings
        support = self._support()
        weights = self._weights(settings, support)
        segmenter = Segmenter(
            function_of(self.prepared.network)(weights),
            (self.config.height, self.config.width),
            self.config.augmentation.flips,
            self.request.native,
            support[0],
        )
        done: dict[str, Any] = {}
        failed: dict[str, str] = {}
        unjudged: dict[str, str] = {}
        for number, (name, path) in enumerate(self.pairs.unlabelled.items(), 1):
            try:
                done[name], reason = self._one(name, path, segmenter, settings)
                if reason is not None:
                    unjudged[name] = reason
            except DataError as error:
                failed[name] = str(error)
            self.request.tell(number, name, done.get(name, {}))
        report = {**settings, "fitted": done, "failed": failed, "unjudged": unjudged}
        report |= {"files": len(self.pairs.unlabelled), "label_next": _most_uncertain(done), "rule": RULE}
        if judged := [values[self.domain.metric] for values in done.values() if self.domain.metric in values]:
            report[self.domain.metric] = round(sum(judged) / len(judged), 4)
        write_report(report, self.request.out / REPORT_FILE)
        return report

    def _support(self) -> tuple[Tensor, Tensor]:
        """Return the labelled images as tiles of the size that the network knows; there may be none."""
        like = next(self.prepared.network.parameters())
        tile = (self.config.height, self.config.width)
        if not self.pairs.labelled:
            if self.prepared.steps == 0:
                return like.new_zeros(0, self.config.channels, *tile), like.new_zeros(0, *tile).long()
            raise DataError(
                f"{self.request.path}: no image has a mask; label a few: NAME_mask.png beside NAME.*, or "
                "masks/NAME.png for images/NAME.*"
            )
        read = []
        for image, mask in self.pairs.labelled.values():
            pixels = self._image(image)
            read.append((pixels, self._labels(mask, pixels)))
        if not any(((labels > 0) & (labels != IGNORE)).any() for _, labels in read):
            files = ", ".join(mask.name for _, mask in self.pairs.labelled.values())
            raise DataError(
                f"{self.request.path}: no mask marks anything ({files}); mark the class in some image"
            )
        images, marks = support_tiles(read, tile, self.request.native)
        return images.to(like), marks.to(like.device)

    def _image(self, path: Path) -> Array:
        return read_image_of(path, self.config.channels, self.config.max_pixels)

    def _labels(self, path: Path, pixels: Array) -> Mask:
        config = self.config
        return read_mask_of(path, pixels.shape[:2], config.ways + 1, config.ignore, config.max_pixels)

    def _weights(self, settings: Mapping[str, Any], support: tuple[Tensor, Tensor]) -> Parameters:
        """Return the adapted weights: those of an earlier run with the same settings, or new ones."""
        like = next(self.prepared.network.parameters())
        out = self.request.out
        if _read(out / ADAPTATION) == settings:
            try:
                kept = checkpoint.load(out / WEIGHTS_FILE).weights
                return {k: kept[k].to(like) for k, _ in self.prepared.network.named_parameters()}
            except (CheckpointError, KeyError):
                pass  # damaged, or of somebody else: adapted again, which takes seconds
        weights = {k: v.detach() for k, v in self.prepared.network.named_parameters()}
        if self.prepared.steps:
            weights = self._adapted(weights, *support)
        card = Card(
            kind="weights",
            name="fit",
            method=Method(name=f"fit from {self.request.start.card.name}"),
            network=self.prepared.spec,
            domain=self._domain_spec(),
            routine=AdaptationRoutine(steps=0, step_size=0),
            provenance=Provenance(seeds=[self.prepared.seed]),
        )
        # Away before the weights change: its presence means that the weights beside it are its own.
        (out / ADAPTATION).unlink(missing_ok=True)
        buffers = dict(self.prepared.network.named_buffers())
        checkpoint.save(out / WEIGHTS_FILE, {**buffers, **weights}, card)
        write_report(settings, out / ADAPTATION)
        return weights

    def _adapted(self, weights: Parameters, images: Tensor, labels: Tensor) -> Parameters:
        prepared = self.prepared
        routine, steps = prepared.routine, prepared.steps
        batch = self.domain.measured(images[None], labels[None])
        losses = TaskLosses(self.domain, function_of(prepared.network), batch, batched=False)
        *_, last = trajectory(losses, weights, routine, prepared.step_sizes, steps, seed=prepared.seed)
        require_finite(last, routine, steps)
        return {k: v.detach() for k, v in last.items()}

    def _domain_spec(self) -> Spec:
        """Return what the adapted weights know of images: the card's domain, else the settings in use."""
        carried = self.request.start.card.domain
        if carried is not None:
            return without_places(carried)
        kept = {"source", "height", "width", "channels", "ways", "shots"}
        return Spec(name="segmentation", arguments=self.config.model_dump(mode="json", include=kept))

    def _one(
        self, name: str, path: Path, segmenter: Segmenter, settings: Mapping[str, Any]
    ) -> tuple[dict[str, float], str | None]:
        """Segment one image, or return what was found for it before, and why it could not be judged."""
        true = self.pairs.truth.get(name)
        key = {"settings": settings, "content": content_of(path, *([true] if true else []))}
        record = self.request.out / RECORDS / f"{name}.json"
        kept = _read(record)
        if isinstance(kept, dict) and {k: kept.get(k) for k in key} == key:
            return kept["metrics"], kept.get("unjudged")
        pixels = self._image(path)
        probabilities = segmenter(pixels)
        uncertainty = entropy(probabilities)
        metrics = {"uncertainty": round(float(uncertainty.mean()), 6)}
        self._draw(name, pixels, probabilities, uncertainty)
        unjudged = None
        if true is not None:
            try:
                metrics = {**self._judged(true, pixels, probabilities), **metrics}
            except DataError as error:
                unjudged = str(error)
        # Last, so that its presence means that all is there.
        write_report({**key, "metrics": metrics, "unjudged": unjudged}, record)
        return metrics, unjudged

    def _judged(self, true: Path, pixels: Array, probabilities: Tensor) -> dict[str, float]:
        query = {"labels": torch.from_numpy(self._labels(true, pixels)).long()[None]}
        found = self.domain.metrics(probabilities[None], query)
        return {k: round(v, 4) for k, v in found.items()}

    def _draw(self, name: str, pixels: Array, probabilities: Tensor, uncertainty: Tensor) -> None:
        image = torch.from_numpy(pixels).movedim(-1, 0)[None]
        numbers = probabilities.argmax(0).to(torch.uint8)
        mask = numbers * 255 if len(probabilities) == 2 else numbers
        overlay = self.domain.picture(probabilities[None], {"images": image})
        for folder, picture in (
            (MASKS, mask), (UNCERTAINTY, _bytes(uncertainty)), (OVERLAYS, _bytes(overlay)),
        ):  # fmt: skip
            write_atomically(self.request.out / folder / f"{name}.png", _png(picture))


def entropy(probabilities: Tensor) -> Tensor:
    r"""Return the entropy of each pixel's class, relative to that of a guess: from 0 for sure to 1.

    .. math:: H = -\sum_k p_k \ln p_k / \ln K

    Shapes: ``(K, height, width)`` -> ``(height, width)``.

    Example:
        >>> entropy(torch.tensor([[[0.5, 1.0]], [[0.5, 0.0]]])).tolist()
        [[1.0, 0.0]]
    """
    found: Tensor = torch.special.entr(probabilities).sum(0) / math.log(len(probabilities))
    return found.clamp(0, 1)


def _most_uncertain(done: Mapping[str, Mapping[str, float]]) -> str | None:
    """Return the image worth labelling next, of equals the first by name."""
    return max(sorted(done), key=lambda name: done[name]["uncertainty"], default=None)


def _bytes(values: Tensor) -> Tensor:
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def _png(picture: Tensor) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture.cpu().numpy()).save(stream, format="PNG")
    return stream.getvalue()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
