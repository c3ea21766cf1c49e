"""A shelf as a visitor of the page would like it: priors that can be tried, evidence, and pictures."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from metainit import init_
from metainit.card import AdaptationRoutine, Card, Continuation, DataSource, Method, Provenance, Spec
from metainit.domains.grid import pixel_grid
from metainit.domains.image import ImageConfig
from metainit.evidence.record import Series, Subject, assembled
from metainit.networks import build
from serving.image_files import read_pixels
from serving.tries import sample_file
from tests.serving.shelf import Shelf, Version

NETWORK = Spec(name="siren", arguments={"in_features": 2, "out_features": 3, "width": 24, "depth": 3})
SIDE = 16
STEPS = (0, 1, 2, 5)


class WebShelf(Shelf):
    """A shelf whose versions have the headline that their evidence has."""

    def add_prior(self, name: str, *aliases: str, gain: float = 6.0, domain: str = "image") -> str:
        """Register a prior that has seen the sample called chelsea, and return its SHA-256."""
        frame = ImageConfig(height=SIDE, width=SIDE)
        truth = torch.from_numpy(read_pixels(sample_file("chelsea").read_bytes(), frame, 10**8)).reshape(
            -1, 3
        )
        network = init_(build(NETWORK), "siren", seed=1)
        optimizer = torch.optim.Adam(network.parameters(), 1e-2)
        grid = pixel_grid(SIDE, SIDE)
        for _ in range(60):
            optimizer.zero_grad()
            (network(grid) - truth).square().mean().backward()
            optimizer.step()
        card = Card(
            kind="prior",
            name=name,
            method=Method(name="meta_sgd", paper="Li et al. 2017, arXiv:1707.09835"),
            network=NETWORK,
            domain=Spec(name=domain, arguments={"height": SIDE, "width": SIDE, "channels": 3}),
            routine=AdaptationRoutine(steps=2, step_size=1e-3, continuation=Continuation(step_size=1e-3)),
            provenance=Provenance(
                seeds=[0], data=DataSource(description="photographs", fingerprint="ab" * 32, licence="CC0")
            ),
        )
        number = len(self.files.setdefault(name, {})) + 1
        digest = self._put(name, number, dict(network.state_dict()), card, aliases)
        folder = self.files[name][number].parent
        (folder / "evidence.json").write_text(json.dumps(evidence(gain)))
        (folder / "pictures" / "steps.png").unlink()
        (folder / "pictures" / "reconstructions.png").write_bytes(strip())
        return digest

    def _version(self, name: str, number: int) -> Version:
        found = super()._version(name, number)
        kept = json.loads((self.files[name][number].parent / "evidence.json").read_text())
        network = self.cards[self.files[name][number]].network
        return dataclasses.replace(
            found, headline=kept.get("headline"), network=network.name if network else None
        )


def evidence(gain: float) -> dict[str, Any]:
    """Return the evidence of a prior that is `gain` dB better than its best control."""
    rng = np.random.default_rng(0)

    def series(source: str, role: Any, level: float, routine: dict[str, Any]) -> Series:
        values = level + 3 * np.log1p(np.asarray(STEPS)) + rng.normal(0, 0.4, (3, 8, len(STEPS)))
        return Series(source, role, routine, {"psnr": values})

    tuned = {"5": AdaptationRoutine(optimizer="adam", steps=5, step_size=3e-3).model_dump(mode="json")}
    subject = Subject("psnr", "ab" * 32, [f"task-{i}" for i in range(8)], STEPS, [0, 1, 2], network=NETWORK)
    measured = [
        series("prior", "candidate", 20 + gain, {"steps": 2}),
        series("siren", "control", 20.0, tuned),
        series("lsuv", "control", 14.0, tuned),
    ]
    return assembled(measured, subject).model_dump(mode="json")


def strip() -> bytes:
    """Return a picture of steps: from noise to a gradient."""
    noise = np.random.default_rng(0).integers(0, 255, (48, 48, 3))
    ramp = np.broadcast_to(np.linspace(0, 255, 48)[None, :, None], (48, 48, 3))
    parts = [noise * (1 - share) + ramp * share for share in (0, 0.5, 1)]
    stream = io.BytesIO()
    Image.fromarray(np.concatenate(parts, 1).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def stocked(folder: Path) -> WebShelf:
    """Return a shelf with priors of two domains, one without evidence, and a hypernetwork."""
    shelf = WebShelf(folder)
    shelf.add_prior("faces")
    shelf.add_prior("faces", "champion", gain=8.0)
    shelf.add_prior("slices", "champion", gain=-1.0, domain="ct")
    shelf.add("bare", 0)
    shelf.add_hypernetwork("hyper", 0, "champion")
    return shelf
