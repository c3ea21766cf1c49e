"""A classifier of digits that judges what generated networks render."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from metainit.domains.base import Split
from metainit.domains.image import ImageDomain

EPOCHS, BATCH, STEP_SIZE = 6, 64, 1e-3
REQUIRED = 0.95


@dataclass(frozen=True)
class Judge:
    """A classifier of pictures ``(n, 1, height, width)``, and its accuracy on real ones of the test split."""

    network: nn.Module
    accuracy: float

    @torch.no_grad()
    def share(self, pictures: Tensor, labels: Tensor) -> float:
        """Return the share of pictures that it takes for what they should be."""
        found = self.network(pictures).argmax(1)
        return round(float((found == labels).float().mean()), 4)


def judge_of(domain: ImageDomain) -> Judge:
    """Return a small convolutional classifier, trained on the training split.

    Raises:
        SystemExit: it is right on fewer real digits than `REQUIRED`.
    """
    side = domain.config.height
    images, labels = _split(domain, "train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * (side // 2) ** 2, 10),
        )
        optimizer = torch.optim.Adam(network.parameters(), STEP_SIZE)
        for _ in range(EPOCHS):
            for rows in torch.split(torch.randperm(len(images)), BATCH):
                loss = functional.cross_entropy(network(images[rows]), labels[rows])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
    judge = Judge(network.requires_grad_(False), 0.0)
    judge = Judge(network, judge.share(*_split(domain, "test")))
    if judge.accuracy < REQUIRED:
        raise SystemExit(f"the judge is right on {judge.accuracy:.3f} of real digits, expected {REQUIRED}")
    return judge


def _split(domain: ImageDomain, split: Split) -> tuple[Tensor, Tensor]:
    size = domain.size(split)
    assert size is not None
    tasks = domain.enumerated(split, 0, size)
    return domain.observed(tasks.support, tasks.shared), tasks.conditions["class"]
