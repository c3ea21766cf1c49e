"""Live fits without HTTP: what is read, what is compared, and when a fit ends."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metainit import checkpoint
from metainit.domains.grid import pixel_grid
from metainit.domains.image import ImageConfig
from metainit.initialization import from_file
from metainit.networks import build
from serving.image_files import read_pixels
from serving.tries import BadImage, Stopped, TryLimits, Untriable, sample_file
from serving.trying import Begun, Ended, Frame, Trial, fit_live, frame_of, ordinary_step_size
from tests.serving.web_shelf import NETWORK, SIDE, WebShelf, evidence

FRAME = ImageConfig(height=SIDE, width=SIDE)
LIMITS = TryLimits()


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shelf = WebShelf(tmp_path_factory.mktemp("shelf"))
    shelf.add_prior("faces")
    return shelf.files["faces"][1]


@pytest.fixture(scope="module")
def trial(prior: Path) -> Trial:
    pixels = read_pixels(sample_file("chelsea").read_bytes(), FRAME, LIMITS.pixels)
    return Trial(prior, evidence(6.0), pixels, steps=12)


def encoded(values: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, kind, **options)
    return stream.getvalue()


BLACK = np.zeros((32, 32, 3), np.uint8)


def test_a_fit_shows_both_starts_and_keeps_what_it_ends_with(trial: Trial, tmp_path: Path) -> None:
    begun, *frames, ended = list(fit_live(trial, LIMITS, lambda: True))
    assert isinstance(begun, Begun) and isinstance(ended, Ended)
    assert begun.size == (SIDE, SIDE) and begun.own_steps == 2 and begun.starts["ordinary"] == "siren"
    shown = [f for f in frames if isinstance(f, Frame)]
    steps = [0, 1, 2, 3, 4, 5, 6, 8, 10, 12]
    assert [f.step for f in shown if f.side == "prior"] == steps
    assert [f.step for f in shown if f.side == "ordinary"] == steps
    assert all(f.picture.startswith("data:image/png;base64,") for f in shown)
    values = {side: {f.step: f.psnr for f in shown if f.side == side} for side in ("prior", "ordinary")}
    assert values["prior"][2] > values["ordinary"][2] + 3  # it has seen this very picture
    assert ended.own_psnr == values["prior"][2] and ended.level_at is None
    # The weights say the same as the last frame.
    for side in ("prior", "ordinary"):
        path = tmp_path / f"{side}.safetensors"
        path.write_bytes(ended.weights[side])
        network = from_file(path).init_(build(NETWORK))
        with torch.no_grad():
            drawn = network(pixel_grid(SIDE, SIDE)).clamp(0, 1).reshape(SIDE, SIDE, 3).numpy()
        error = float(np.square(drawn - trial.pixels).mean())
        assert abs(-10 * np.log10(error) - values[side][12]) < 0.02


def test_the_same_fit_gives_the_same_bytes(trial: Trial) -> None:
    first, second = (list(fit_live(trial, LIMITS, lambda: True))[-1] for _ in range(2))
    assert first == second


def test_the_ordinary_start_is_tuned_where_evidence_says_how() -> None:
    assert ordinary_step_size(NETWORK, evidence(1.0)) == (3e-3, True)
    for without in (None, {}, {"metric": "psnr", "steps": [0, 2]}, {"curves": "none"}):
        assert ordinary_step_size(NETWORK, without) == (1e-3, False)


def test_a_fit_that_takes_too_long_ends_with_what_it_has(trial: Trial) -> None:
    *_, ended = fit_live(trial, TryLimits(seconds=0.0), lambda: True)
    assert isinstance(ended, Ended)
    assert ended.steps == 0 and "Stopped after 0 s" in ended.said
    checkpoint.from_bytes(ended.weights["prior"])


def test_a_fit_that_nobody_wants_stops(trial: Trial) -> None:
    answers = iter([True] * 5 + [False])
    with pytest.raises(Stopped, match="nobody"):
        list(fit_live(trial, LIMITS, lambda: next(answers)))


def test_a_side_that_diverges_keeps_its_last_finite_weights(prior: Path, tmp_path: Path) -> None:
    stored = checkpoint.load(prior)
    assert stored.card.routine is not None
    wild = stored.card.routine.model_copy(update={"step_size": 1e30})
    path = tmp_path / "wild.safetensors"
    checkpoint.save(path, stored.tensors, stored.card.model_copy(update={"routine": wild, "digest": ""}))
    pixels = np.full((SIDE, SIDE, 3), 0.5, np.float32)
    *_, ended = fit_live(Trial(path, None, pixels, steps=5), LIMITS, lambda: True)
    assert isinstance(ended, Ended) and ended.said.startswith("prior:")
    assert ended.psnr["ordinary"] > 0
    checkpoint.from_bytes(ended.weights["prior"])


@pytest.mark.parametrize(
    ("kind", "card", "reason"),
    [
        ("ghn", {}, "is a ghn"),
        ("prior", {"domain": {"name": "ct", "arguments": {}}, "network": {}}, "domain 'ct'"),
        (
            "prior",
            {"domain": {"name": "image", "arguments": {"height": 512}}, "network": {}},
            "512x64 pixels",
        ),
        (
            "prior",
            {"domain": {"name": "image", "arguments": {"channels": 5, "mask_array": "m"}}, "network": {}},
            "5 channels",
        ),
    ],
)
def test_what_cannot_be_tried_says_why(kind: str, card: dict[str, object], reason: str) -> None:
    with pytest.raises(Untriable, match=reason):
        frame_of(kind, card, "it/1", LIMITS)


def test_a_network_that_is_too_large_is_refused(trial: Trial) -> None:
    with pytest.raises(Untriable, match="parameters"):
        list(fit_live(trial, TryLimits(parameters=10), lambda: True))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images_are_cut_to_their_centre(kind: str) -> None:
    values = np.zeros((64, 128, 3), np.uint8)
    values[:, 32:96] = (255, 128, 0)
    pixels = read_pixels(encoded(values, kind), FRAME, LIMITS.pixels)
    assert pixels.shape == (SIDE, SIDE, 3) and pixels.dtype == np.float32
    assert np.abs(pixels - np.float32([1, 128 / 255, 0])).mean() < 0.05


def test_grey_transparent_and_deep_images_are_read() -> None:
    grey = ImageConfig(height=4, width=4, channels=1)
    assert read_pixels(encoded(np.full((8, 8), 51, np.uint8)), grey, 100).mean() == pytest.approx(0.2)
    deep = encoded(np.full((8, 8), 65535, np.uint16))
    assert read_pixels(deep, grey, 100).mean() == pytest.approx(1.0)
    clear = encoded(np.zeros((8, 8, 4), np.uint8))
    assert read_pixels(clear, FRAME, 100).min() == 1.0  # white behind it


@pytest.mark.parametrize(
    "content",
    [b"", b"no image", encoded(BLACK)[:60], encoded(BLACK, "GIF")],
    ids=["empty", "text", "cut off", "another format"],
)
def test_what_is_no_image_is_refused(content: bytes) -> None:
    with pytest.raises(BadImage):
        read_pixels(content, FRAME, LIMITS.pixels)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_unpacked() -> None:
    with pytest.raises(BadImage, match="at most 100"):
        read_pixels(encoded(np.zeros((11, 10, 3), np.uint8)), FRAME, 100)
