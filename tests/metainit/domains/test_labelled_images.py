"""Labelled images: the three sources, their parts, and what is said where they cannot be used."""

import numpy as np
import pytest
import skimage.io
import torch

from metainit.domains.labelled_images import LabelledImagesConfig, read_labelled_images
from metainit.errors import DataError


def read(data="digits", **options):
    return read_labelled_images(LabelledImagesConfig(data=str(data), **options))


@pytest.fixture(scope="module")
def digits():
    return read()


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "x": rng.integers(0, 256, (60, 8, 8), dtype=np.uint8),
        "y": (np.arange(60) % 3).astype(np.uint8),
        "split": (np.arange(60) // 40).astype(np.uint8),
    }


@pytest.fixture
def npz(tmp_path, arrays):
    np.savez(tmp_path / "set.npz", **arrays)
    return tmp_path / "set.npz"


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            skimage.io.imsave(tmp_path / "pets" / name / f"{i}.png", pixels, check_contrast=False)
    return tmp_path / "pets"


def test_digits_are_whole_and_standardized_by_the_training_part(digits):
    from sklearn.datasets import load_digits

    assert sum(len(part.labels) for part in digits.parts.values()) == 1797
    images = digits.parts["train"].images
    assert abs(float(images.mean())) < 1e-5 and float(images.std()) == pytest.approx(1, abs=1e-4)
    pixels = digits.parts["test"].images * digits.std + digits.mean
    expected = torch.from_numpy(load_digits().images[-360:] / 16).float()
    torch.testing.assert_close(pixels[:, 0], expected, atol=1e-6, rtol=0)


def test_validation_is_a_fixed_tenth_of_each_class(digits):
    validation, train = digits.parts["validation"].labels, digits.parts["train"].labels
    for label in range(10):
        own = int((validation == label).sum())
        assert own == pytest.approx((own + int((train == label).sum())) / 10, abs=1)
    again = read()
    assert torch.equal(again.parts["validation"].images, digits.parts["validation"].images)
    assert again.fingerprint() == digits.fingerprint()


def test_batches_are_pure_and_without_repetition(digits):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    a, b = digits.batch(1, 2, 64), digits.batch(1, 2, 64)
    assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(a.images, digits.batch(1, 3, 64).images)
    everything = digits.batch(0, 0, 360, "test")
    assert torch.equal(everything.labels.sort().values, digits.parts["test"].labels.sort().values)
    with pytest.raises(DataError, match="a batch of 361 was asked of the 360 images for test"):
        digits.batch(0, 0, 361, "test")


def test_images_lie_in_memory_as_torch_lays_them_out(digits, npz):
    for found in (digits, read(npz, size=4), read(npz, channels=3)):
        for split in ("train", "validation", "test"):
            images = found.batch(0, 0, 2, split).images
            assert images.stride() == torch.empty(images.shape).stride()


def test_pooling_is_the_mean_of_blocks(npz, arrays):
    found = read(npz, size=4)
    pixels = found.parts["test"].images * found.std + found.mean
    expected = arrays["x"][40:].reshape(20, 4, 2, 4, 2).mean((2, 4)) / 255
    np.testing.assert_allclose(pixels[:, 0].numpy(), expected, atol=1e-5)
    assert found.parts["test"].labels.tolist() == arrays["y"][40:].tolist()


def test_both_layouts_of_an_npz_are_the_same_data(tmp_path, npz, arrays):
    x, y = arrays["x"], arrays["y"]
    np.savez(tmp_path / "other.npz", x_train=x[:40], y_train=y[:40], x_val=x[40:], y_val=y[40:])
    a, b = read(npz), read(tmp_path / "other.npz")
    assert a.fingerprint() == b.fingerprint()
    assert torch.equal(a.parts["test"].images, b.parts["test"].images)


def test_equal_images_stay_together(tmp_path, arrays):
    x, y = np.repeat(arrays["x"][:30], 4, axis=0), np.repeat(arrays["y"][:30], 4)
    np.savez(tmp_path / "twice.npz", x=x, y=y)
    found = read(tmp_path / "twice.npz", validation=0.3, test=0.3)
    seen = [{image.numpy().round(4).tobytes() for image in p.images} for p in found.parts.values()]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


def test_the_fingerprint_follows_the_data_not_the_place(tmp_path, npz, arrays):
    np.savez(tmp_path / "copy.npz", **arrays)
    assert read(tmp_path / "copy.npz").fingerprint() == read(npz).fingerprint()
    changed = {**arrays, "y": (arrays["y"] + 1) % 3}
    np.savez(tmp_path / "changed.npz", **changed)
    others = [read(tmp_path / "changed.npz"), read(npz, size=4), read(npz, validation=0.2)]
    assert len({read(npz).fingerprint(), *(o.fingerprint() for o in others)}) == 4


def test_a_folder_for_each_class(folder):
    found = read(folder, channels=3)
    assert found.class_names == ("cat", "dog") and found.shape == (3, 8, 8)
    assert {len(p.labels) for p in found.parts.values()} <= {0, 2, 8}
    assert read(folder, channels=1).shape == (1, 8, 8)
    assert read(folder, size=5, pool="resize").shape == (1, 5, 5)


def test_damaged_files_are_refused_or_skipped(folder):
    (folder / "cat" / "9.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="9.png: cannot be read as an image"):
        read(folder)
    found = read(folder, unreadable="skip")
    assert list(found.skipped) == [str(folder / "cat" / "9.png")]
    (folder / "cat" / "9.png").unlink()
    skimage.io.imsave(folder / "dog" / "8.png", np.zeros((6, 7), np.uint8), check_contrast=False)
    with pytest.raises(DataError, match="8.png"):
        read(folder)
    assert len(read(folder, unreadable="skip").skipped) == 1


def test_errors_name_what_is_wrong(tmp_path, npz, arrays, folder):
    with pytest.raises(DataError, match="do not divide into 3x3 equal blocks"):
        read(npz, size=3)
    with pytest.raises(DataError, match="no such folder, npz file or bundled set"):
        read(tmp_path / "nothing")
    with pytest.raises(DataError, match="expected one for each class"):
        read(folder / "cat")
    (folder / "empty").mkdir()
    with pytest.raises(DataError, match="empty: it has no image"):
        read(folder)
    for change, message in (
        ({"y": arrays["y"][:5]}, r"shape \(5,\).*expected \(60,\)"),
        ({"y": arrays["y"] + 0.5}, "float64, expected"),
        ({"y": arrays["y"].astype(int) - 1}, "smallest label is -1"),
        ({"x": arrays["x"][0]}, "array 'x' has shape"),
        ({"y": np.where(arrays["split"] == 0, 0, 1)}, "no image for training shows the class 1"),
        ({"y": np.zeros(60, int)}, "expected two or more"),
        ({"class_names": np.array(["a", "b"])}, "class_names has 2 names"),
    ):
        np.savez(tmp_path / "bad.npz", **{**arrays, **change})
        with pytest.raises(DataError, match=message):
            read(tmp_path / "bad.npz")
    np.savez(tmp_path / "bad.npz", x=arrays["x"])
    with pytest.raises(DataError, match="has no array 'y'"):
        read(tmp_path / "bad.npz")
