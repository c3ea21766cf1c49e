"""The CT domain: pure sampling, disjoint splits, losses with known values, errors that help."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from torch.func import grad, vmap

from metainit.domains.base import Split, TaskBatch
from metainit.domains.ct import CTConfig, CTDomain
from metainit.domains.radon import radon
from metainit.errors import DataError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
SMALL: dict[str, Any] = {"size": 16, "views": 3, "train_views": 5, "held_out": 6}


def domain(**changes: Any) -> CTDomain:
    return CTDomain(CTConfig(**{**SMALL, **changes}))


def tensors(batch: TaskBatch) -> list[Tensor]:
    return [*batch.support.values(), *batch.query.values(), *batch.shared.values()]


def different(images: Tensor) -> int:
    return len({image.numpy().tobytes() for image in images})


def stored(path: Path, **changes: Any) -> Path:
    """Write 12 slices of 6 patients; the pixels of slice i are i / 20."""
    values: dict[str, Any] = {
        "slices": np.full((12, 16, 16), 0.05) * np.arange(12)[:, None, None],
        "patient": np.repeat(np.arange(6), 2),
        "split": np.repeat([0, 0, 0, 0, 1, 2], 2),
    }
    values.update(changes)
    np.savez(path / "ct.npz", **{k: v for k, v in values.items() if v is not None})
    return path / "ct.npz"


def from_npz(path: Path, **changes: Any) -> CTDomain:
    options = {"array": "slices", "split_array": "split", "group_array": "patient", **changes}
    return domain(data=str(path), **options)


class TestTasks:
    @pytest.mark.parametrize("split", SPLITS)
    @pytest.mark.parametrize("options", [{}, {"query": "projections", "angles": "random"}])
    def test_are_a_pure_function_of_their_arguments(self, split: Split, options: dict[str, Any]) -> None:
        first = domain(noise=0.1, **options).tasks(3, 1, 2, split)
        again = domain(noise=0.1, **options).tasks(3, 1, 2, split)
        assert first.ids == again.ids
        pairs = zip(tensors(first), tensors(again), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    @pytest.mark.parametrize("split", SPLITS)
    def test_do_not_depend_on_how_they_are_batched(self, split: Split) -> None:
        ct = domain(noise=0.1, angles="random")
        whole = ct.tasks(3, 0, 4, split)
        halves = [ct.tasks(3, index, 2, split) for index in (0, 1)]
        for name, value in whole.support.items():
            torch.testing.assert_close(value, torch.cat([half.support[name] for half in halves]))
        assert whole.ids == halves[0].ids + halves[1].ids

    def test_have_the_documented_shapes(self) -> None:
        batch = domain(query="projections", detectors=20).tasks(0, 0, 2)
        shapes = {k: tuple(v.shape) for k, v in {**batch.support, **batch.shared}.items()}
        assert shapes == {"sinogram": (2, 5, 20), "angles": (2, 5), "coordinates": (256, 2)}
        assert {k: tuple(v.shape) for k, v in batch.query.items()} == {
            "image": (2, 16, 16, 1),
            "sinogram": (2, 5, 20),
            "angles": (2, 5),
        }
        assert domain().tasks(0, 0, 2, "test").support["sinogram"].shape == (2, 3, 16)
        assert domain(field_of_view="square").tasks(0, 0, 1).support["sinogram"].shape[-1] == 23

    def test_of_training_differ_by_seed_and_number(self) -> None:
        ct = domain()
        images = [ct.tasks(*key, 1).query["image"] for key in ((0, 0), (0, 1), (1, 0))]
        angles = [ct.tasks(*key, 1).support["angles"] for key in ((0, 0), (0, 1), (1, 0))]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert not torch.equal(images[a], images[b])
            assert not torch.equal(angles[a], angles[b])

    @pytest.mark.parametrize("split", ["validation", "test"])
    def test_held_out_enumerate_the_same_slices_whatever_the_seed(self, split: Split) -> None:
        ct = domain(angles="random")
        a, b = ct.tasks(0, 0, 6, split), ct.tasks(1, 0, 6, split)
        assert torch.equal(a.query["image"], b.query["image"]) and a.ids == b.ids
        assert not torch.equal(a.support["angles"], b.support["angles"])
        assert different(a.query["image"]) == 6

    def test_no_phantom_is_in_two_splits(self) -> None:
        every = [domain().tasks(0, 0, 6, split).query["image"] for split in SPLITS]
        assert different(torch.cat(every)) == 18

    def test_angles_are_even_or_random_over_half_a_turn(self) -> None:
        even = domain(query="projections").tasks(0, 0, 1, "test")
        assert even.support["angles"].tolist() == [[0, 60, 120]]
        assert even.query["angles"].tolist() == [[30, 90, 150]]
        drawn = domain(train_views=90).tasks(0, 0, 20).support["angles"]
        assert drawn.min() >= 0 and drawn.max() < 180
        assert abs(float(drawn.mean()) - 90) < 5 and abs(float(drawn.std()) - 52) < 3

    def test_sinograms_are_line_integrals_over_the_unit_square(self) -> None:
        batch = domain().tasks(0, 0, 2)
        image, angles = batch.query["image"][1, ..., 0], batch.support["angles"][1]
        torch.testing.assert_close(batch.support["sinogram"][1], radon(image, angles) / 16)

    def test_noise_has_the_stated_size(self) -> None:
        clean = domain(train_views=90).tasks(0, 0, 8).support["sinogram"]
        noisy = domain(train_views=90, noise=0.2).tasks(0, 0, 8).support["sinogram"]
        measured = (noisy - clean).std(dim=(1, 2)) / clean.mean(dim=(1, 2))
        torch.testing.assert_close(measured, torch.full((8,), 0.2), rtol=0.1, atol=0)

    def test_running_out_of_held_out_slices_is_an_error(self) -> None:
        with pytest.raises(DataError, match="test split has 6 slices, tasks 4 to 7 .* held_out"):
            domain().tasks(0, 1, 4, "test")

    def test_leave_the_global_random_state_alone(self) -> None:
        before = torch.random.get_rng_state()
        domain(noise=0.1).tasks(0, 0, 2)
        assert torch.equal(before, torch.random.get_rng_state())


class TestLosses:
    @staticmethod
    def constant(image: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda coordinates: image.reshape(-1, 1)

    @pytest.mark.parametrize("query", ["image", "projections"])
    @pytest.mark.parametrize("field_of_view", ["circle", "square"])
    def test_vanish_for_the_true_slice_and_not_for_another(self, query: str, field_of_view: str) -> None:
        ct = domain(query=query, field_of_view=field_of_view)
        batch = ct.tasks(0, 0, 2)
        support = {k: v[0] for k, v in batch.support.items()}
        wanted = {k: v[0] for k, v in batch.query.items()}
        truth, other = (self.constant(image) for image in batch.query["image"])
        for loss, part in ((ct.support_loss, support), (ct.query_loss, wanted)):
            assert loss(truth, part, batch.shared) < 1e-12
            assert loss(other, part, batch.shared) > 1e-4

    def test_keep_their_scale_when_the_size_changes(self) -> None:
        losses = []
        for size in (32, 64):
            batch = (ct := domain(size=size, views=8)).tasks(0, 0, 1, "test")
            part = {k: v[0] for k, v in batch.support.items()}
            losses.append(float(ct.support_loss(self.constant(torch.zeros(size, size)), part, batch.shared)))
        assert losses[0] == pytest.approx(losses[1], rel=0.05)

    def test_are_not_clamped_but_the_rendered_slice_is(self) -> None:
        ct = domain()
        batch = ct.tasks(0, 0, 1)
        bright = self.constant(torch.full((16, 16), 3.0))
        wanted = {k: v[0] for k, v in batch.query.items()}
        assert ct.query_loss(bright, wanted, batch.shared) > 4
        assert ct.render(bright, {}, batch.shared).shape == (16, 16, 1)
        assert ct.render(bright, {}, batch.shared).max() == 1

    def test_coordinates_are_y_first_and_rows_run_downwards(self) -> None:
        ct = domain()
        batch = ct.tasks(0, 0, 1)
        rendered = ct.render(lambda c: (c[..., :1] > 0).float(), {}, batch.shared)
        assert rendered[8:].min() == 1 and rendered[:8].max() == 0

    def test_second_derivatives_under_vmap_equal_a_loop(self) -> None:
        ct = domain()
        batch = ct.tasks(0, 0, 3).map(lambda tensor: tensor.double())

        def after_a_step(weight: Tensor, support: dict[str, Tensor]) -> Tensor:
            def loss(w: Tensor) -> Tensor:
                return ct.support_loss(lambda c: torch.sin(c @ w), support, batch.shared)

            return loss(weight - 0.1 * grad(loss)(weight))

        weight = torch.tensor([[0.5], [1.5]], dtype=torch.float64)
        together = vmap(grad(after_a_step), (None, 0))(weight, batch.support)
        step = 1e-5
        for i in range(3):
            support = {k: v[i] for k, v in batch.support.items()}
            for axis in range(2):
                move = torch.zeros(2, 1, dtype=torch.float64)
                move[axis] = step
                slope = after_a_step(weight + move, support) - after_a_step(weight - move, support)
                slope = slope / (2 * step)
                torch.testing.assert_close(together[i, axis, 0], slope, rtol=1e-6, atol=1e-9)

    def test_metrics_have_their_closed_forms(self) -> None:
        ct = domain()
        image = ct.tasks(0, 0, 1).query["image"][0]
        assert ct.metrics(image, {"image": image}) == {"psnr": 100.0, "ssim": pytest.approx(1)}
        shifted = ct.metrics(image + 0.1, {"image": image})
        assert shifted["psnr"] == pytest.approx(20, abs=1e-4) and shifted["ssim"] < 1


class TestMeasured:
    def test_a_sinogram_without_its_slice_makes_a_task(self) -> None:
        ct = domain()
        known = ct.tasks(0, 0, 2, "test")
        batch = ct.measured(known.support["sinogram"], known.support["angles"][0], ["a", "b"])
        assert batch.ids == ("a", "b") and batch.query == {}
        assert torch.equal(batch.support["angles"], known.support["angles"])

    @pytest.mark.parametrize(
        ("sinograms", "angles", "text"),
        [
            (torch.zeros(2, 3, 15), torch.zeros(3), r"\(tasks, views, 16\) .* came \(2, 3, 15\)"),
            (torch.zeros(2, 3, 16), torch.zeros(4), r"as many angles as views, .* \(4,\)"),
            (torch.full((1, 3, 16), math.nan), torch.zeros(3), "NaN or infinity in a sinogram"),
        ],
    )
    def test_what_does_not_fit_is_named(self, sinograms: Tensor, angles: Tensor, text: str) -> None:
        with pytest.raises(DataError, match=text):
            domain().measured(sinograms, angles)


class TestConfig:
    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"views": 181}, "views is 181, expected 1 to 180"),
            ({"train_views": 0}, "train_views is 0, expected 1 to 180"),
            ({"views": 91, "query": "projections"}, "expected 1 to 90: .* as many other angles"),
            (
                {"window": (400.0, -1000.0)},
                r"window is \[400.0, -1000.0\], expected \[lower, upper",
            ),
        ],
    )
    def test_impossible_measurements_are_refused(self, options: dict[str, Any], text: str) -> None:
        with pytest.raises(DataError, match=text):
            domain(**options)

    @pytest.mark.parametrize("options", [{"sise": 3}, {"size": 1}, {"noise": -1}, {"test": 1.0}])
    def test_unknown_keys_and_bad_values_are_refused(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            domain(**options)

    def test_the_fingerprint_follows_the_rules_and_the_data(self, tmp_path: Path) -> None:
        assert domain().fingerprint() == domain().fingerprint() != domain(views=4).fingerprint()
        (tmp_path / "copy").mkdir()
        path, copy = stored(tmp_path), stored(tmp_path / "copy")
        first = from_npz(path).fingerprint()
        assert first == from_npz(copy).fingerprint()
        stored(tmp_path / "copy", slices=np.zeros((12, 16, 16)))
        assert first != from_npz(copy).fingerprint()


class TestSlices:
    def test_a_patient_is_never_in_two_splits(self, tmp_path: Path) -> None:
        path = stored(tmp_path)
        for options in ({}, {"split_array": None}):
            ct = from_npz(path, **options)
            assert ct.size("train") and ct.size("validation") and ct.size("test")
            patients = {}
            for split in SPLITS:
                batch = ct.tasks(0, 0, 40 if split == "train" else ct.size(split) or 0, split)
                patients[split] = {int(name.split("-")[1]) // 2 for name in batch.ids}
            everyone = [patient for own in patients.values() for patient in own]
            assert sorted(everyone) == list(range(6))

    def test_the_split_array_is_followed(self, tmp_path: Path) -> None:
        batch = from_npz(stored(tmp_path)).tasks(0, 0, 4, "test")
        assert batch.ids == ("ct-8", "ct-9", "ct-10", "ct-11")
        torch.testing.assert_close(batch.query["image"].amax((1, 2, 3)), torch.tensor([0.4, 0.45, 0.5, 0.55]))

    def test_slices_of_one_patient_are_one_group(self, tmp_path: Path) -> None:
        ct = from_npz(stored(tmp_path))
        for split in SPLITS:
            batch = ct.tasks(0, 0, 2, split)
            expected = [str(int(name.split("-")[1]) // 2) for name in batch.ids]
            assert list(batch.groups) == expected
            assert batch[1:].groups == batch.map(lambda t: t)[1:].groups == (expected[1],)
        phantoms = CTDomain(CTConfig(size=8, held_out=3)).tasks(0, 0, 3, "test")
        assert phantoms.groups == phantoms.ids

    def test_the_split_by_group_does_not_depend_on_the_order(self, tmp_path: Path) -> None:
        names = np.array(list("abcdef"))
        (tmp_path / "b").mkdir()
        there = from_npz(stored(tmp_path, patient=np.repeat(names, 2)), split_array=None)
        back = from_npz(stored(tmp_path / "b", patient=np.repeat(names[::-1], 2)), split_array=None)
        for split in ("validation", "test"):
            own = {int(i.split("-")[1]) // 2 for i in there.tasks(0, 0, 2, split).ids}
            other = {5 - int(i.split("-")[1]) // 2 for i in back.tasks(0, 0, 2, split).ids}
            assert own == other

    def test_hounsfield_units_are_windowed(self, tmp_path: Path) -> None:
        values = np.full((12, 16, 16), -1000, dtype=np.int16)
        values[:, 8], values[:, 9], values[:, 10] = -300, 400, 3000
        ct = from_npz(stored(tmp_path, slices=values), window=(-1000, 400))
        column = ct.tasks(0, 0, 1).query["image"][0, 7:12, 8, 0]
        torch.testing.assert_close(column, torch.tensor([0, 0.5, 1, 1, 0]))

    def test_slices_are_resized_with_anti_aliasing(self, tmp_path: Path) -> None:
        stripes = np.tile(np.array([0, 1] * 32, dtype=np.float32), (12, 64, 1))
        ct = from_npz(stored(tmp_path, slices=stripes), field_of_view="square")
        inner = ct.tasks(0, 0, 1).query["image"][0, 4:12, 4:12, 0]
        assert (inner - 0.5).abs().max() < 0.1

    def test_corners_outside_the_field_of_view_are_zero(self, tmp_path: Path) -> None:
        path = stored(tmp_path, slices=np.ones((12, 16, 16)))
        circle = from_npz(path).mean_signal()
        assert circle[0, 0] == 0 and circle[8, 8] == 1
        assert from_npz(path, field_of_view="square").mean_signal().min() == 1

    def test_the_mean_signal_is_the_mean_of_the_split(self, tmp_path: Path) -> None:
        ct = from_npz(stored(tmp_path))
        assert float(ct.mean_signal("test")[8, 8]) == pytest.approx((8 + 9 + 10 + 11) / 80)
        phantoms = domain(held_out=3)
        expected = phantoms.tasks(0, 0, 3, "validation").query["image"].mean(0)
        torch.testing.assert_close(phantoms.mean_signal("validation"), expected)
        assert phantoms.mean_signal().shape == (16, 16, 1)

    def test_a_folder_has_one_patient_in_each_subfolder(self, tmp_path: Path) -> None:
        for patient in range(5):
            for i in range(2):
                (tmp_path / f"p{patient}" / f"series{i}").mkdir(parents=True)
                picture = np.full((20, 20), 51 * patient, dtype=np.uint8)
                Image.fromarray(picture).save(tmp_path / f"p{patient}" / f"series{i}" / "0.png")
        ct = domain(data=str(tmp_path))
        assert [ct.size(split) for split in SPLITS] == [6, 2, 2]
        (first, second) = ct.tasks(0, 0, 2, "test").ids
        assert first == second.replace("series1", "series0")
        patient = int(first[1])
        assert float(ct.mean_signal("test")[8, 8]) == pytest.approx(patient / 5, abs=1e-6)

    def test_pictures_of_16_bits_keep_their_depth(self, tmp_path: Path) -> None:
        for i in range(4):
            picture = np.full((16, 16), 13107, dtype=np.uint16)
            Image.fromarray(picture).save(tmp_path / f"{i}.png")
            Image.fromarray(picture).save(tmp_path / f"{i}.tif")
        assert float(domain(data=str(tmp_path)).mean_signal()[8, 8]) == pytest.approx(0.2)

    def test_a_folder_may_hold_arrays(self, tmp_path: Path) -> None:
        for i in range(4):
            np.save(tmp_path / f"{i}.npy", np.full((16, 16), i / 4))
        ct = domain(data=str(tmp_path))
        assert [ct.size(split) for split in SPLITS] == [2, 1, 1]


class TestBadData:
    @pytest.mark.parametrize(
        ("stored_as", "options", "text"),
        [
            ({}, {"array": "slice"}, r"no array 'slice' \(array\); did you mean 'slices'"),
            ({}, {"array": None}, "say which array holds the slices.*patient, slices, split"),
            ({}, {"group_array": "who"}, r"no array 'who' \(group_array\)"),
            ({"slices": np.zeros((12, 16, 15))}, {}, r"square slices .* came \(12, 16, 15\); crop"),
            ({"slices": np.zeros((16, 16))}, {}, r"array 'slices': expected square .* \(16, 16\)"),
            (
                {"slices": np.full((12, 16, 16), np.nan)},
                {},
                "NaN or infinity in 12 .* first slice 0",
            ),
            ({"slices": np.full((12, 16, 16), "a")}, {}, "expected numbers, came <U1"),
            ({"slices": np.full((12, 16, 16), -400)}, {}, r"came \[-400, -400\]; .* give window"),
            ({"slices": np.array([None] * 12)}, {}, "pickled objects, which are never loaded"),
            (
                {"split": np.zeros(3)},
                {},
                r"array 'split' .* each of the 12 slices, .* came \(3,\)",
            ),
            (
                {"split": np.full(12, 7)},
                {},
                r"expected 0 \(train\) and 1 or 2 \(test\), came \[7\]",
            ),
            ({"split": np.arange(12) % 2}, {}, r"groups \['0', .* both in train and in test"),
            ({"patient": np.zeros(12)}, {"split_array": None}, "1 for training and test .* at least 2"),
        ],
    )
    def test_in_an_npz_is_named_with_the_way_out(
        self, tmp_path: Path, stored_as: dict[str, Any], options: dict[str, Any], text: str
    ) -> None:
        path = stored(tmp_path, **stored_as)
        with pytest.raises(DataError, match=text) as caught:
            from_npz(path, **options)
        if "patient" not in stored_as:
            assert str(path) in str(caught.value)

    @pytest.mark.parametrize(
        ("name", "content", "text"),
        [
            ("b.npy", np.zeros((8, 9)), r"b.npy: expected \(16, 16\) pixels .* came \(8, 9\)"),
            ("b.npy", np.zeros((16, 16, 3)), r"b.npy: expected one grey slice .*\(16, 16, 3\)"),
            ("b.npy", np.full((16, 16), np.inf), "NaN or infinity in 1 slices, first .*b.npy"),
            ("b.npy", np.zeros((16, 16), dtype=np.uint8), r"one pixel type, .*'float64', 'uint8'"),
            ("b.png", b"not a picture", "b.png cannot be read"),
            ("b.npy", b"not an array", "b.npy cannot be read"),
            ("b.png", np.zeros((16, 16, 3), np.uint8), "b.png .* grey picture, came .* 'RGB'"),
        ],
    )
    def test_in_a_folder_is_named_with_the_way_out(
        self, tmp_path: Path, name: str, content: Any, text: str
    ) -> None:
        for other in "ac":
            np.save(tmp_path / f"{other}.npy", np.zeros((16, 16)))
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif name.endswith("png"):
            Image.fromarray(content).save(tmp_path / name)
        else:
            np.save(tmp_path / name, content)
        with pytest.raises(DataError, match=text):
            domain(data=str(tmp_path))

    def test_missing_empty_and_damaged_sources_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nowhere does not exist; expected a folder"):
            domain(data=str(tmp_path / "nowhere"))
        with pytest.raises(DataError, match="holds no slices; expected files that end in .npy"):
            domain(data=str(tmp_path))
        (tmp_path / "ct.npz").write_bytes(b"PK\x03\x04 cut short")
        with pytest.raises(DataError, match="ct.npz cannot be read as an .npz file"):
            domain(data=str(tmp_path / "ct.npz"), array="slices")
        np.save(tmp_path / "other.npy", np.zeros(3))
        (tmp_path / "other.npy").rename(tmp_path / "other.npz")
        with pytest.raises(DataError, match="other.npz cannot be read as an .npz file"):
            domain(data=str(tmp_path / "other.npz"), array="slices")
        with pytest.raises(DataError, match="all slices are held out"):
            from_npz(stored(tmp_path, split=np.ones(12)), validation=0)
        (tmp_path / "notes.txt").write_text("no data")
        with pytest.raises(DataError, match="notes.txt is neither a folder nor an .npz file"):
            domain(data=str(tmp_path / "notes.txt"))


@pytest.mark.skipif("METAINIT_DATA" not in os.environ, reason="METAINIT_DATA names no data folder")
def test_real_chest_slices_split_by_patient() -> None:
    path = Path(os.environ["METAINIT_DATA"]) / "ct_chest" / "ct_chest.npz"
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    ct = CTDomain(
        CTConfig(
            data=str(path),
            array="hu128",
            split_array="split",
            group_array="patient",
            window=(-1000, 400),
        )
    )
    with np.load(path) as file:
        patient, split = file["patient"], file["split"]
    sizes = {name: ct.size(name) or 0 for name in SPLITS}
    assert sizes["test"] == int((split > 0).sum())
    assert sizes["train"] + sizes["validation"] == int((split == 0).sum())
    numbers = {
        "train": ct.tasks(0, 0, 60, "train").ids,
        "validation": ct.tasks(0, 0, sizes["validation"], "validation").ids,
        "test": ct.tasks(0, 0, sizes["test"], "test").ids,
    }
    people = [{int(patient[int(i.split("-")[1])]) for i in ids} for ids in numbers.values()]
    assert not (people[0] & people[1] or people[0] & people[2] or people[1] & people[2])
    batch = ct.tasks(0, 0, sizes["test"], "test")
    assert batch.query["image"].shape == (sizes["test"], 64, 64, 1)
    assert 0.05 < batch.query["image"].mean() < 0.5  # air, lung and soft tissue in the window
    rendered = ct.mean_signal()
    assert 8 < ct.metrics(rendered, {"image": batch.query["image"][0]})["psnr"] < 25
