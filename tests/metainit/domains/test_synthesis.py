"""Synthesised tasks: pure, varied, never without their structure, and the same within a task."""

import numpy as np
import pytest
import torch
from torch import Tensor

from metainit.domains.appearance import palette
from metainit.domains.fields import coordinates, rotations, smooth_noise
from metainit.domains.structures import KINDS, Canvas
from metainit.domains.synthesis import synthesise

every_kind = pytest.mark.parametrize("kind", KINDS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_kind
def test_is_a_pure_function_of_its_arguments(kind: str) -> None:
    before = torch.random.get_rng_state()
    one, two, other = (synthesise((0, n), 3, (24, 20), kinds=(kind,)) for n in (5, 5, 6))
    assert torch.equal(one.images, two.images) and torch.equal(one.labels, two.labels)
    assert not torch.equal(one.images, other.images)
    assert torch.equal(before, torch.random.get_rng_state())


@every_kind
@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (3, 1), (3, 2), (2, 3)])
def test_images_and_labels_are_what_they_say(kind: str, channels: int, classes: int) -> None:
    for n in range(3):
        task = synthesise(("a", n), 4, (24, 32), channels, classes, (kind,))
        assert task.images.shape == (4, channels, 24, 32) and task.labels.shape == (4, 24, 32)
        assert task.images.dtype == torch.float32 and task.labels.dtype == torch.int64
        assert 0 <= task.images.min() and task.images.max() <= 1 and bool(task.images.isfinite().all())
        assert 0 <= task.labels.min() and task.labels.max() <= classes
        assert task.kind == kind


@every_kind
def test_the_structure_is_to_be_seen_in_every_image(kind: str) -> None:
    for n in range(8):
        share = (synthesise((1, n), 6, (32, 32), kinds=(kind,)).labels == 1).float().mean((1, 2))
        assert float(share.min()) > 0.005 and float(share.max()) < 0.76


@every_kind
@pytest.mark.parametrize("classes", [2, 3])
def test_each_of_several_classes_is_to_be_seen_in_its_turn(kind: str, classes: int) -> None:
    for n in range(6):
        task = synthesise((1, n), classes + 1, (24, 24), classes=classes, kinds=(kind,), further=classes)
        turns = [i % classes + 1 for i in (*range(classes + 1), *range(classes))]
        shares = [float((m == label).float().mean()) for m, label in zip(task.labels, turns, strict=True)]
        assert min(shares) > 0.005 and max(shares) < 0.76


def test_further_images_leave_the_first_ones_as_they_are() -> None:
    for n in range(5):
        none, few, many = (synthesise((4, n), 3, (24, 24), further=further) for further in (0, 2, 5))
        assert torch.equal(none.images, few.images[:3]) and torch.equal(few.images[:3], many.images[:3])
        assert torch.equal(none.labels, few.labels[:3]) and torch.equal(few.labels[:3], many.labels[:3])
        assert len(many.images) == 8 and len(many.images.flatten(1).unique(dim=0)) == 8


def test_no_two_images_of_a_task_are_alike() -> None:
    images = synthesise((3, 1), 8, (32, 32)).images.flatten(1)
    distances = torch.cdist(images, images) + torch.eye(8) * 9
    assert float(distances.min()) > 0.1


def foreground_colours(task: int) -> Tensor:
    made = synthesise((7, task), 6, (32, 32))
    mask = (made.labels == 1)[:, None]
    return (made.images * mask).sum((2, 3)) / mask.sum((2, 3))


def test_a_structure_keeps_its_colour_within_a_task_but_not_across() -> None:
    colours = torch.stack([foreground_colours(n) for n in range(30)])
    within = colours.std(1).mean()
    across = colours.mean(1).std(0).mean()
    assert float(across) > 2 * float(within) > 0


def test_the_mean_image_is_a_poor_guess() -> None:
    """Otherwise a network could remember instead of looking."""
    images = torch.cat([synthesise((2, n), 1, (32, 32)).images for n in range(40)])
    assert float((images - images.mean(0)).square().mean()) > 0.03


@pytest.mark.parametrize("size", [(12, 12, 12), (8, 12, 10)])
@every_kind
def test_structures_have_as_many_dimensions_as_asked_for(kind: str, size: tuple[int, ...]) -> None:
    task = synthesise((0, 2), 2, size, channels=1, kinds=(kind,))
    assert task.images.shape == (2, 1, *size) and bool((task.labels == 1).any())


@every_kind
def test_regions_are_boolean_maps(kind: str) -> None:
    size = (16, 16)
    canvas = Canvas(coordinates(size).expand(3, -1, -1), size)
    drawn = KINDS[kind](seeded(), 2)(canvas, seeded(1))
    assert drawn.regions and all(r.shape == (3, 256) and r.dtype == torch.bool for r in drawn.regions)


def test_targets_differ_from_their_ground() -> None:
    for n in range(50):
        look = palette(seeded(n), 5, 3, [3])
        assert float((look.colours[3] - look.colours[0]).abs().mean()) > 0.02


def test_smooth_noise_has_the_correlation_of_a_gaussian_blur() -> None:
    """White noise blurred by s has the autocorrelation exp(-d^2 / 4 s^2) at distance d."""
    fields = smooth_noise((64, 64), torch.full((200,), 4 / 64), seeded()).reshape(200, 64, 64)
    for distance in (2, 4, 8):
        found = float((fields * fields.roll(distance, -1)).mean())
        assert found == pytest.approx(np.exp(-(distance**2) / (4 * 4**2)), abs=0.05)


def test_coordinates_are_centred_and_isotropic() -> None:
    points = coordinates((4, 8)).reshape(4, 8, 2)
    torch.testing.assert_close(points.sum((0, 1)), torch.zeros(2))
    assert float(points[1, 0, 0] - points[0, 0, 0]) == float(points[0, 1, 1] - points[0, 0, 1]) == 0.5


def test_rotations_are_uniform() -> None:
    turns = rotations(seeded(), 3, 4000)
    torch.testing.assert_close(turns.mean(0), torch.zeros(3, 3), atol=0.05, rtol=0)
    torch.testing.assert_close(turns.square().mean(0), torch.full((3, 3), 1 / 3), atol=0.03, rtol=0)
