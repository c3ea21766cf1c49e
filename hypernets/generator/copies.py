"""Samples that are all but a member of the zoo: how they are found, and a test of whether there are many.

Distances are between sketches: random projections, which keep the distance of any two vectors up to a small
relative error, at a hundredth of the members' size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metainit.domains.seeding import generator_of

LOW = 0.01
"""Which quantile of the distances of held-out fits the threshold is a part of."""
CHUNK = 65_536


class Sketch(nn.Module):
    r"""Sketches of standardized members, and how near to one a sample may be.

    .. math:: s = R x / \sqrt{k}, \quad R_{ij} \sim N(0, 1), \quad R \in \mathbb{R}^{k \times D}

    Two buffers are stored: `members` (n, k) float32, the sketches, and `threshold`, the least distance. R
    follows from a seed.

    Source: Johnson & Lindenstrauss 1984; Dasgupta & Gupta 2003, doi:10.1002/rsa.10073, theorem 2.1.

    Example:
        >>> sketch = Sketch(size=20, width=8, members=3)
        >>> members = torch.randn(3, 20, generator=torch.Generator().manual_seed(0))
        >>> sketch.fit(members, members + 1.0, closeness=0.5)
        >>> sketch.is_copy(torch.cat([members[:1], members[:1] + 2.0])).tolist()
        [True, False]
    """

    members: Tensor
    threshold: Tensor

    def __init__(self, size: int, width: int, members: int) -> None:
        super().__init__()
        self.size, self.width = size, width
        self.register_buffer("members", torch.zeros(members, width))
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, values: Tensor) -> Tensor:
        """Return sketches (B, k) of standardized values (B, D)."""
        total = values.new_zeros(len(values), self.width)
        for number, part in enumerate(torch.split(values, CHUNK, -1)):
            drawn = generator_of("sketch", self.size, number)
            projection = torch.randn(part.shape[-1], self.width, generator=drawn).to(values.device)
            total = total + part @ projection
        sketched: Tensor = total / self.width**0.5
        return sketched

    def fit(self, members: Tensor, held_out: Tensor, closeness: float) -> None:
        """Keep members (n, D); the threshold is a part of how near the nearest held-out fits (m, D) are."""
        self.members.copy_(self(members))
        if len(held_out):
            self.threshold.copy_(closeness * torch.quantile(self.distances(held_out), LOW))

    def distances(self, values: Tensor) -> Tensor:
        """Return the distance of values (B, D) to the nearest member, (B)."""
        # Not through the matrix product, which loses small distances between large numbers.
        apart = torch.cdist(self(values), self.members, compute_mode="donot_use_mm_for_euclid_dist")
        nearest: Tensor = apart.amin(-1)
        return nearest

    def is_copy(self, values: Tensor) -> Tensor:
        """Return whether values (B, D) are nearer to a member than they may be, (B) bool."""
        return self.distances(values) < self.threshold


@dataclass(frozen=True)
class CopyTest:
    """Whether samples are nearer to the members than fits that nobody learned from.

    `closer`: the probability that a sample is nearer to its nearest member than a held-out fit is to its own,
    a half where there is no difference. `p_closer`: of the one-sided Mann-Whitney test against "not closer".
    `p_differs`: of the two-sided Kolmogorov-Smirnov test. `samples`, `held_out`: median distances.
    """

    closer: float
    p_closer: float
    p_differs: float
    samples: float
    held_out: float


def copy_test(samples: Tensor, held_out: Tensor, members: Tensor) -> CopyTest:
    """Compare how near samples (B, D) and held-out fits (m, D) are to members (n, D), all standardized.

    Source: Meehan et al. 2020, "A Non-Parametric Test to Detect Data-Copying in Generative Models",
    arXiv:2004.05675, section 3, without its cells.

    Example:
        >>> values = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        >>> copy_test(values[:20] + 1e-3, values[20:40], values[:20]).closer
        1.0
    """
    from scipy.stats import ks_2samp, mannwhitneyu

    near, apart = (
        torch.cdist(v, members, compute_mode="donot_use_mm_for_euclid_dist").amin(-1).double().numpy()
        for v in (samples, held_out)
    )
    ranked = mannwhitneyu(near, apart, alternative="less")
    return CopyTest(
        closer=1.0 - float(ranked.statistic) / (len(near) * len(apart)),
        p_closer=float(ranked.pvalue),
        p_differs=float(ks_2samp(near, apart).pvalue),
        samples=float(torch.from_numpy(near).median()),
        held_out=float(torch.from_numpy(apart).median()),
    )
