"""Augmentation: pure, the same for image and label, exact where it is a symmetry of the grid."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from metainit.domains.augmentation import AugmentationConfig, augmented, recoloured

STILL: dict[str, Any] = {
    "flips": (), "angle": 0, "scale": 1, "shift": 0, "brightness": 0, "contrast": 0, "gamma": 1, "noise": 0,
}  # fmt: skip


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def task(height: int = 16, width: int = 12, lead: tuple[int, ...] = (5,)) -> dict[str, Tensor]:
    """Images that show their own labels."""
    labels = torch.zeros(*lead, height, width, dtype=torch.long)
    labels[..., 3:9, 2:7] = 1
    labels[..., 10:, 8:] = 2
    return {"images": (labels / 2).unsqueeze(-3).expand(*lead, 3, height, width).clone(), "labels": labels}


def test_is_a_pure_function_of_the_generator() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (augmented(task(), seeded(s)) for s in (1, 1, 2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not torch.equal(first["images"], other["images"])
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("lead", [(2,), (3, 2)])
def test_keeps_shapes_types_range_and_the_given_tensors(lead: tuple[int, ...]) -> None:
    given = task(lead=lead)
    kept = {k: v.clone() for k, v in given.items()}
    found = augmented(given, seeded(), 1.0)
    for name, value in found.items():
        assert value.shape == given[name].shape and value.dtype == given[name].dtype
        assert torch.equal(given[name], kept[name])
    assert 0 <= found["images"].min() and found["images"].max() <= 1
    assert found["labels"].min() >= 0 and found["labels"].max() <= 2


def test_probability_is_the_share_of_changed_images() -> None:
    given = task(lead=(400,))
    found = augmented(given, seeded(), 0.3)
    changed = (found["images"] != given["images"]).flatten(1).any(1)
    assert 0.2 < float(changed.float().mean()) < 0.4
    assert torch.equal(augmented(given, seeded(), 0.0)["images"], given["images"])


def test_without_any_change_images_stay() -> None:
    found = augmented(task(), seeded(), 1.0, AugmentationConfig(**STILL))
    torch.testing.assert_close(found["images"], task()["images"], atol=1e-6, rtol=0)
    assert torch.equal(found["labels"], task()["labels"])


@pytest.mark.parametrize(("axis", "dim"), [("horizontal", -1), ("vertical", -2)])
def test_a_mirror_image_is_exact(axis: str, dim: int) -> None:
    config = AugmentationConfig(**{**STILL, "flips": (axis,)})
    found = augmented(task(lead=(40,)), seeded(), 1.0, config)
    same = (found["labels"] == task()["labels"][0]).flatten(1).all(1)
    mirrored = (found["labels"] == task()["labels"][0].flip(dim)).flatten(1).all(1)
    assert bool((same ^ mirrored).all()) and 8 < int(mirrored.sum()) < 32


def test_labels_move_with_their_images() -> None:
    """Images that show their labels still do, but for the pixels between two of them."""
    config = AugmentationConfig(brightness=0, contrast=0, gamma=1, noise=0, angle=40, scale=1.4, shift=0.2)
    found = augmented(task(48, 36, lead=(30,)), seeded(), 1.0, config)
    agree = (found["images"][:, 0] * 2 - found["labels"]).abs() < 0.5
    assert float(agree.float().mean()) > 0.98
    assert not torch.equal(found["labels"], task(48, 36, lead=(30,))["labels"])


def test_turning_keeps_the_shape_of_things_in_a_frame_that_is_no_square() -> None:
    rows, columns = torch.meshgrid(torch.arange(40) - 19.5, torch.arange(80) - 39.5, indexing="ij")
    disc = (rows.square() + columns.square() < 15**2).long().expand(20, -1, -1)
    given = {"images": disc[:, None].float(), "labels": disc}
    found = augmented(given, seeded(), 1.0, AugmentationConfig(**{**STILL, "angle": 90}))
    inside = rows.square() + columns.square() < 19**2  # further out the frame shows its own mirror image
    assert float((found["labels"] == disc)[:, inside].float().mean()) > 0.97


def test_ignored_pixels_stay_ignored() -> None:
    given = task()
    given["labels"][:] = 255
    assert bool((augmented(given, seeded(), 1.0)["labels"] == 255).all())


def test_a_task_is_recoloured_as_a_whole() -> None:
    given = task()
    given["images"] = torch.rand(5, 3, 16, 12, generator=seeded(3))
    given["images"][1] = given["images"][0]
    found = recoloured(given, seeded())
    assert torch.equal(found["images"][0], found["images"][1]) and torch.equal(
        found["labels"], given["labels"]
    )
    assert len({recoloured(given, seeded(s))["images"].numpy().tobytes() for s in range(5)}) == 5
    assert 0 <= found["images"].min() and found["images"].max() <= 1
