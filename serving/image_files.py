"""Image files that users send, as pixels to fit; and pixels, as PNG to look at."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from metainit.domains.image import ImageConfig
from metainit.domains.images import Array, as_pixels
from serving.tries import BadImage

FORMATS = ("PNG", "JPEG", "WEBP")


def read_pixels(content: bytes, frame: ImageConfig, most_pixels: int) -> Array:
    """Return the centre of an image file, of a frame's size: float32 ``(height, width, channels)`` in [0, 1].

    Raises:
        BadImage: the file is no PNG, JPEG or WebP, is damaged, or has more than `most_pixels`.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            across, down = picture.size
            if across * down > most_pixels:
                raise BadImage(
                    f"the image has {across}x{down} pixels, expected at most {most_pixels}: make it smaller"
                )
            picture.draft(picture.mode, (2 * frame.width, 2 * frame.height))
            upright = ImageOps.exif_transpose(picture)
            small = ImageOps.fit(_plain(upright), (frame.width, frame.height))
    except UnidentifiedImageError as error:
        raise BadImage(f"this is no image that can be read: expected {', '.join(FORMATS)}") from error
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise BadImage(f"the image cannot be read: {str(error).splitlines()[0][:200]}") from error
    # What is transparent becomes white, as on a page.
    flat = Image.new("RGBA", small.size, "white")
    flat.alpha_composite(small.convert("RGBA"))
    return as_pixels(np.asarray(flat.convert("L" if frame.channels == 1 else "RGB")), "image")


def _plain(picture: Image.Image) -> Image.Image:
    """Return an image in a mode that can be resized; 16 bits become 8, a palette may hide transparency."""
    if picture.mode.startswith("I"):
        return Image.fromarray((np.asarray(picture).clip(0, 65535) / 257).round().astype(np.uint8))
    return picture if picture.mode in ("L", "RGB", "RGBA") else picture.convert("RGBA")


def thumbnail(path: Path, side: int) -> bytes:
    """Return a square PNG of the centre of an image file."""
    with Image.open(path) as picture:
        small = ImageOps.fit(picture.convert("RGB"), (side, side))
    stream = io.BytesIO()
    small.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def data_url(picture: Tensor) -> str:
    """Return a picture ``(height, width, 1 or 3)`` in [0, 1] as a PNG in a data URL."""
    values = (picture.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    stream = io.BytesIO()
    Image.fromarray(values[..., 0] if values.shape[-1] == 1 else values).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
