"""Tasks of a few classes: what is held out is not seen, no image comes twice, labels are an order."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from metainit.card import Spec
from metainit.domains.base import Enumerable, Observing, Split, TaskBatch
from metainit.domains.classification import ClassificationConfig, ClassificationDomain
from metainit.domains.labelled_images import LabelledImagesConfig, read_classes_apart, read_labelled_images
from metainit.errors import DataError
from metainit.networks import build, fitted_spec

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
CLASSES, EACH = 12, 10


def images_of(classes: int = CLASSES, each: int = EACH) -> dict[str, np.ndarray]:
    """Image i of class c is 20 * c + i everywhere, so that it says what it is."""
    labels = np.arange(classes).repeat(each)
    values = (20 * labels + np.tile(np.arange(each), classes)).astype(np.uint8)
    return {"x": np.tile(values[:, None, None], (1, 4, 4)), "y": labels}


def domain(folder: Path, arrays: dict[str, np.ndarray] | None = None, **changes: Any) -> ClassificationDomain:
    np.savez(folder / "a.npz", **(images_of() if arrays is None else arrays))
    settings = {"ways": 3, "shots": 1, "queries": 1, "held_out_tasks": 20, **changes}
    return ClassificationDomain(ClassificationConfig(data=str(folder / "a.npz"), **settings))


def seen_in(own: ClassificationDomain, batch: TaskBatch) -> list[list[int]]:
    """The numbers of the images of each task, support and query."""
    std, mean = own.images.std, own.images.mean
    both = torch.cat([batch.support["images"], batch.query["images"]], dim=1)
    values = (both.mean((2, 3, 4)) * std + mean) * 255
    assert (values - values.round()).abs().max() < 1e-3
    return [list(map(int, task)) for task in values.round().tolist()]


@pytest.fixture(scope="module")
def digits() -> ClassificationDomain:
    return ClassificationDomain(ClassificationConfig(ways=3))


class TestHeldOutSubsets:
    def test_share_no_subset_and_leave_none_out(self, digits: ClassificationDomain) -> None:
        parts = [digits.subsets(split) for split in SPLITS]
        assert sorted(sum(parts, ())) == list(combinations(range(10), 3))
        assert [len(part) for part in parts] == [77, 19, 24]

    def test_share_no_image(self, tmp_path: Path) -> None:
        own = domain(tmp_path)
        met = [
            {
                number
                for index in range(4)
                for task in seen_in(own, own.tasks(index, 0, 20, split))
                for number in task
            }
            for split in SPLITS
        ]
        assert all(not a & b for a, b in combinations(met, 2)) and all(met)

    @pytest.mark.parametrize("split", SPLITS)
    def test_tasks_are_of_their_subsets(self, digits: ClassificationDomain, split: Split) -> None:
        batch = digits.tasks(0, 0, 30, split)
        found = [tuple(sorted(order)) for order in batch.conditions["classes"].tolist()]
        assert set(found) <= set(digits.subsets(split))
        assert batch.groups == tuple(", ".join(map(str, subset)) for subset in found)
        if split != "train":
            assert set(found) == set(digits.subsets(split))  # they take turns

    def test_depend_on_the_split_seed_alone(self, digits: ClassificationDomain) -> None:
        again = ClassificationDomain(ClassificationConfig(ways=3, shots=2))
        other = ClassificationDomain(ClassificationConfig(ways=3, split_seed=1))
        assert again.subsets("test") == digits.subsets("test") != other.subsets("test")

    def test_too_many_or_too_few_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="40 classes have 658008 subsets of 5.*set held_out to classes"):
            domain(tmp_path, images_of(40), ways=5)
        with pytest.raises(DataError, match="3 classes have 1 subsets of 3, which leave none to train on"):
            domain(tmp_path, images_of(3))


class TestHeldOutClasses:
    def test_share_no_class_and_keep_all_images(self, tmp_path: Path) -> None:
        own = domain(tmp_path, held_out="classes", validation=0.34, test=0.25)
        parts = [own.classes(split) for split in SPLITS]
        assert sorted(sum(parts, ())) == list(range(CLASSES)) and [len(p) for p in parts] == [6, 3, 3]
        assert [len(own.images.parts[s].labels) for s in SPLITS] == [60, 30, 30]
        for split in SPLITS:
            classes = own.tasks(0, 0, 20, split).conditions["classes"]
            assert set(classes.flatten().tolist()) == set(own.classes(split))

    def test_are_those_that_the_source_marks(self, tmp_path: Path) -> None:
        arrays = images_of()
        marked = {**arrays, "split": np.isin(arrays["y"], [0, 5, 7]).astype(np.uint8)}
        assert domain(tmp_path, marked, held_out="classes", validation=0.34).classes("test") == (0, 5, 7)
        np.savez(tmp_path / "b.npz", **{**arrays, "split": np.ones(CLASSES * EACH, dtype=np.uint8)})
        with pytest.raises(DataError, match="all classes are marked as for test"):
            read_classes_apart(LabelledImagesConfig(data=str(tmp_path / "b.npz")))

    def test_may_have_names_without_images(self, tmp_path: Path) -> None:
        """As where a list of classes goes with a part of the data; the others keep their numbers."""
        arrays = images_of()
        kept = arrays["y"] != 4
        some = {**{k: v[kept] for k, v in arrays.items()}, "class_names": np.arange(CLASSES).astype(str)}
        own = domain(tmp_path, some, ways=2, held_out="classes")
        assert sorted(sum((own.classes(s) for s in SPLITS), ())) == [n for n in range(CLASSES) if n != 4]
        with pytest.raises(DataError, match="no image for training shows the class 4"):
            domain(tmp_path, some, ways=2)

    def test_too_few_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="the split 'validation' has 2 classes, a task needs ways=4"):
            domain(tmp_path, ways=4, held_out="classes", test=0.34)


class TestTasks:
    @pytest.mark.parametrize("held_out", ["subsets", "classes"])
    @pytest.mark.parametrize("split", SPLITS)
    def test_have_the_documented_form(self, tmp_path: Path, split: Split, held_out: Any) -> None:
        own = domain(tmp_path, held_out=held_out, validation=0.34, test=0.25)
        batch = own.tasks(0, 0, 6, split)
        assert batch.support["images"].shape == (6, 3, 1, 4, 4)
        for task, numbers in zip(batch, seen_in(own, batch), strict=True):
            assert len(set(numbers)) == 6  # no image twice, and none in both parts
            classes = task.conditions["classes"][0].tolist()
            assert len(set(classes)) == 3 and [n // 20 for n in numbers] == classes * 2
            assert task.support["labels"].tolist() == task.query["labels"].tolist() == [[0, 1, 2]]

    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("held_out", ["subsets", "classes"])
    def test_are_the_same_however_they_are_batched(self, tmp_path: Path, split: Split, held_out: Any) -> None:
        own = domain(tmp_path, held_out=held_out, validation=0.34, test=0.25)
        assert isinstance(own, Enumerable)
        whole = own.tasks(0, 0, 12, split)
        for parts in (
            [own.tasks(0, index, 4, split) for index in range(3)],
            [own.enumerated(split, at, 5 if at < 10 else 2) for at in (0, 5, 10)],
        ):
            assert sum((part.ids for part in parts), ()) == whole.ids
            for name, values in whole.support.items():
                assert torch.equal(torch.cat([part.support[name] for part in parts]), values)

    def test_come_with_every_order_of_the_labels(self, tmp_path: Path) -> None:
        own = domain(tmp_path, images_of(4), ways=2, validation=0.34)
        orders = {tuple(o) for i in range(3) for o in own.tasks(0, i, 64).conditions["classes"].tolist()}
        assert orders == {o for a, b in own.subsets("train") for o in ((a, b), (b, a))}

    def test_that_are_held_out_end(self, digits: ClassificationDomain) -> None:
        assert digits.size("train") is None and digits.size("test") == 64
        assert len(digits.tasks(0, 1, 40, "test")) == 24
        with pytest.raises(DataError, match="the split 'test' has 64 tasks, 8 were asked for from 64 on"):
            digits.tasks(0, 8, 8, "test")

    def test_need_images_enough(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="the class '0' has 6 images for train, .* shots=5 and queries=9"):
            domain(tmp_path, shots=5, queries=9)
        with pytest.raises(ValidationError, match="validation is 0"):
            ClassificationConfig(validation=0)


class TestMeasures:
    def test_loss_and_accuracy_are_those_of_the_logits(self, digits: ClassificationDomain) -> None:
        task = digits.tasks(0, 0, 1, "test")
        query = {k: v[0] for k, v in task.query.items()}
        labels = query["labels"]
        logits = torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        right = (logits.argmax(1) == labels).sum().item()
        probabilities = digits.render(lambda images: logits, query, {})
        assert digits.metrics(probabilities, query) == {"accuracy": right / 45}
        assert digits.metrics(probabilities, query, ["psnr"]) == {}
        loss = digits.query_loss(lambda images: logits, query, {})
        by_hand = -sum(math.log(float(p[n])) for p, n in zip(probabilities, labels, strict=True)) / 45
        assert float(loss) == pytest.approx(by_hand)
        sure = F.one_hot(labels, 3).double()
        assert digits.metrics(sure, query) == {"accuracy": 1.0}
        assert torch.equal(digits.picture(sure, query).float(), digits.target(query))
        assert math.isnan(digits.metrics(sure * math.nan, query)["accuracy"])

    def test_the_network_fits_the_data(self, tmp_path: Path) -> None:
        own = domain(tmp_path)
        network = build(fitted_spec(Spec(name="classifier", arguments={"width": 4, "depth": 1}), own))
        assert network(own.example_inputs()).shape == (3, 3)
        assert own.network_arguments == {"in_channels": 1, "size": 4, "classes": 3}

    def test_the_fingerprint_is_that_of_data_and_rules(self, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        first, moved = domain(tmp_path), domain(tmp_path / "other")
        found = {first.fingerprint(), domain(tmp_path, held_out_tasks=21).fingerprint()}
        arrays = images_of()
        found.add(domain(tmp_path, {**arrays, "x": arrays["x"][::-1]}).fingerprint())
        assert len(found) == 3 and moved.fingerprint() == first.fingerprint()


class TestObserved:
    def test_is_the_support_by_label_in_whatever_order_it_comes(self, digits: ClassificationDomain) -> None:
        assert isinstance(digits, Observing)
        batch = digits.tasks(0, 0, 2)
        seen = digits.observed(batch.support, batch.shared)
        assert seen.shape == (2, 3, 5, 1, 8, 8)
        assert torch.equal(seen.flatten(1, 2), batch.support["images"])
        by_turns = torch.arange(15).reshape(3, 5).T.flatten()
        turned = {k: v[:, by_turns] for k, v in batch.support.items()}
        assert torch.equal(digits.observed(turned, {}), seen)

    def test_other_numbers_of_examples_are_refused(self, digits: ClassificationDomain) -> None:
        support = digits.tasks(0, 0, 2).support
        with pytest.raises(DataError, match="expected 5 examples of each of 3 labels"):
            digits.observed({k: v[:, :-1] for k, v in support.items()}, {})
        with pytest.raises(DataError, match="expected 5 examples of each of 3 labels"):
            digits.observed({**support, "labels": torch.zeros_like(support["labels"])}, {})


class TestMeasured:
    def test_own_examples_are_standardized_as_the_domains(self, digits: ClassificationDomain) -> None:
        task = digits.tasks(0, 0, 2, "test")
        mean, std = (v[:, None, None] for v in (digits.images.mean, digits.images.std))
        pixels = task.support["images"] * std + mean
        own = digits.measured(pixels, task.support["labels"], task.query["images"] * std + mean, ["a", "b"])
        torch.testing.assert_close(own.support["images"], task.support["images"])
        torch.testing.assert_close(own.query["images"], task.query["images"])
        assert own.ids == ("a", "b") and torch.equal(own.support["labels"], task.support["labels"])

    def test_what_does_not_fit_is_refused(self, digits: ClassificationDomain) -> None:
        with pytest.raises(DataError, match="expected images"):
            digits.measured(torch.zeros(1, 3, 1, 7, 7), torch.zeros(1, 3, dtype=torch.long))
        with pytest.raises(DataError, match=r"a label from 0 to 2 .*\[0, 3\]"):
            digits.measured(torch.zeros(1, 3, 1, 8, 8), torch.tensor([[0, 3, 0]]))


def test_images_in_parts_are_what_they_were() -> None:
    """The digest names the data of runs that were made before there were tasks of classes."""
    known = read_labelled_images(LabelledImagesConfig(size=4)).fingerprint()
    assert known == "e10f45fc75cd7234ec487a6c7c3c9dcac2c6b7139efa9e37143a1c40dc98333b"
