r"""The noise process, what a denoiser is trained to give, and what it starts from.

A noisy value is :math:`x_t = \alpha_t x + \sigma_t \epsilon`, with time t in [0, 1000]. Letters: `B` samples,
`D` numbers of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

from hypernets.generator.denoiser import Denoiser

TIMES = 1000
Prediction = Literal["sample", "velocity", "flow"]


def ddpm_settings(prediction: Prediction) -> dict[str, Any]:
    """Return what the schedulers of `diffusers` are made with, other than their own defaults."""
    kind = {"sample": "sample", "velocity": "v_prediction", "flow": "flow_prediction"}[prediction]
    return {"num_train_timesteps": TIMES, "beta_schedule": "squaredcos_cap_v2", "prediction_type": kind}


@cache
def _signal() -> Tensor:
    r"""Return :math:`\alpha_t^2` of the cosine schedule at each time (1000)."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    kept: Tensor = DDPMScheduler(**ddpm_settings("sample")).alphas_cumprod
    return kept


@dataclass(frozen=True)
class Process:
    r"""A noise process and a prediction.

    ``sample`` (:math:`x`) and ``velocity`` (:math:`\alpha_t \epsilon - \sigma_t x`) with the cosine schedule,
    :math:`\alpha_t^2 + \sigma_t^2 = 1`; ``flow`` (:math:`\epsilon - x`) on the straight line
    :math:`\sigma_t = t / 1000 = 1 - \alpha_t`.

    The prediction is :math:`s_t x_t + g_t F(x_t, t, c)`, where F is the network and s, g are such that F = 0
    is exact for independent values of unit variance, as standardized values are apart from what ties them to
    each other: an untrained sampler has the right spread in every coordinate, and training only adds what the
    coordinates have to do with one another.

    Source: Ho et al. 2020, arXiv:2006.11239; cosine schedule: Nichol & Dhariwal 2021, arXiv:2102.09672;
    velocity: Salimans & Ho 2022, arXiv:2202.00512; flow: Lipman et al. 2023, arXiv:2210.02747; the
    preconditioning: Karras et al. 2022, arXiv:2206.00364, table 1, at unit data variance.

    Example:
        >>> process = Process('velocity')
        >>> x, noise = torch.ones(1, 2), torch.zeros(1, 2)
        >>> bool(torch.allclose(process.noisy(x, noise, torch.tensor([0])), x, atol=1e-3))
        True
    """

    prediction: Prediction

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return times to train at, (count); one in each of as many equal parts of the range."""
        even = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        times = even[torch.randperm(count, generator=generator)] * TIMES
        # The cosine schedule is known at whole times alone.
        return times if self.prediction == "flow" else times.floor().clamp_max(TIMES - 1)

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return :math:`\alpha_t` and :math:`\sigma_t`, (B, 1) each."""
        if self.prediction == "flow":
            noise = (time.float() / TIMES)[:, None]
            return 1 - noise, noise
        kept = _signal().to(time.device)[time.long()][:, None]
        return kept.sqrt(), (1 - kept).sqrt()

    def noisy(self, values: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return noisy values (B, D)."""
        alpha, sigma = self.coefficients(time)
        return alpha * values + sigma * noise

    def target(self, values: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """Return what the prediction should be, (B, D)."""
        alpha, sigma = self.coefficients(time)
        if self.prediction == "sample":
            return values
        if self.prediction == "flow":
            return noise - values
        return alpha * noise - sigma * values

    def predict(self, denoiser: Denoiser, noisy: Tensor, time: Tensor, condition: Tensor) -> Tensor:
        """Return the prediction (B, D)."""
        skip, gain = self._preconditioning(time)
        return skip * noisy + gain * denoiser(noisy, time, condition)

    def _preconditioning(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return the least-squares factor of the noisy value, and the deviation of what it leaves."""
        alpha, sigma = self.coefficients(time)
        if self.prediction == "sample":
            return alpha, sigma
        if self.prediction == "velocity":
            return torch.zeros_like(alpha), torch.ones_like(alpha)
        power = alpha.square() + sigma.square()
        return (sigma - alpha) / power, power.rsqrt()

    @property
    def last(self) -> float:
        """The time at which there is noise alone."""
        return float(TIMES if self.prediction == "flow" else TIMES - 1)

    def from_noise(self, student: Denoiser, noise: Tensor, condition: Tensor) -> Tensor:
        """Return samples (B, D) of a one-step student: its estimate of the clean values, plus the noise.

        With the teacher's own weights this has the mean that the teacher sees in pure noise, and unit
        variance: for independent values of unit variance the teacher's map from noise to samples is the
        identity.
        """
        time = torch.full((len(noise),), self.last, device=noise.device)
        sign = 1.0 if self.prediction == "sample" else -1.0
        return noise + sign * student(noise, time, condition)
