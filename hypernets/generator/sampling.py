"""From noise to samples in some steps, with the schedulers of `diffusers`, and guidance.

Letters: `B` samples, `D` numbers of each, `E` width of a condition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from hypernets.generator.denoiser import Denoiser
from hypernets.generator.process import TIMES, Process, ddpm_settings
from metainit.domains.seeding import generator_of
from metainit.errors import RecipeError

Sampler = Literal["ddim", "dpm_solver++", "euler"]
Predict = Callable[[Tensor, Tensor], Tensor]
"""Noisy values (B, D) and times (B) -> prediction (B, D)."""


def noise_of(seeds: Sequence[int], size: int) -> Tensor:
    """Return noise (seeds, size): each row follows from its seed alone, on every device.

    Example:
        >>> bool((noise_of([3, 4], 5)[1] == noise_of([4], 5)[0]).all())
        True
    """
    return torch.stack([torch.randn(size, generator=generator_of(seed, "noise")) for seed in seeds])


def guided(
    process: Process,
    denoiser: Denoiser,
    condition: Tensor,
    unconditional: Tensor,
    guidance: float,
    shift: Tensor | float = 0.0,
) -> Predict:
    r"""Return the prediction under a condition: :math:`p_\emptyset + w (p_c - p_\emptyset)`.

    Guidance w = 1 is the conditional model, 0 the unconditional one; beyond 1 what the condition changes is
    overdone.

    Args:
        process: what the prediction is.
        denoiser: the trained network.
        condition: (B, E).
        unconditional: the embedding of no condition, (B, E).
        guidance: w.
        shift: what samples under the condition lack to be ones without it (B, D), where the two are measured
            from different means.

    Source: Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", arXiv:2207.12598, equation 6.
    """

    def predict(values: Tensor, time: Tensor) -> Tensor:
        if guidance == 1.0:
            return process.predict(denoiser, values, time, condition)
        # The prediction is linear in the clean value: that of the shift is added.
        moved = torch.zeros_like(values) + shift
        alpha, _ = process.coefficients(time)
        inputs = torch.cat([values, values + alpha * moved])
        both = process.predict(denoiser, inputs, time.repeat(2), torch.cat([condition, unconditional]))
        with_condition, without = both.chunk(2)
        without = without - process.target(moved, torch.zeros_like(values), time)
        return without + guidance * (with_condition - without)

    return predict


def sample(
    process: Process, predict: Predict, noise: Tensor, steps: int, sampler: Sampler | None = None
) -> Tensor:
    """Return samples (B, D) that noise (B, D) turns into; the same noise gives the same samples.

    Args:
        process: what was trained.
        predict: the trained prediction.
        noise: of unit variance.
        steps: how often `predict` is asked.
        sampler: ``ddim`` or ``dpm_solver++`` for the cosine schedule, ``euler`` for ``flow``; the second, and
            the third, where it is None.

    Raises:
        RecipeError: the sampler is none of the process, or the steps are not between 1 and 1000.

    Source: ddim: Song et al. 2021, arXiv:2010.02502; dpm_solver++: Lu et al. 2022, arXiv:2211.01095; euler:
    Lipman et al. 2023, arXiv:2210.02747.
    """
    fitting: list[Sampler] = [
        name for name, (_, kind) in SAMPLERS.items() if kind == (process.prediction == "flow")
    ]
    chosen = sampler or fitting[-1]
    if chosen not in fitting:
        raise RecipeError(
            f"the sampler {chosen!r} is none for the prediction {process.prediction!r}: use "
            f"{' or '.join(fitting)}"
        )
    if not 1 <= steps <= TIMES:
        raise RecipeError(f"a sampler takes 1 to {TIMES} steps, got {steps}")
    scheduler = scheduled(process, chosen, steps)
    values = noise
    for time in scheduler.timesteps:
        prediction = predict(values, time.to(values.device).expand(len(values)))
        values = scheduler.step(prediction, time, values, return_dict=False)[0]
    return values


def scheduled(process: Process, sampler: Sampler, steps: int) -> Any:
    """Return the scheduler of a sampler with its times set: as many as there are steps, none below zero."""
    scheduler = SAMPLERS[sampler][0](process)
    if process.prediction == "flow":
        scheduler.set_timesteps(steps)
    else:
        scheduler.set_timesteps(timesteps=trailing(steps))
    times = scheduler.timesteps
    assert len(times) == steps and float(times.min()) >= 0, (sampler, steps, times)
    return scheduler


def trailing(steps: int) -> list[int]:
    r"""Return the times :math:`\mathrm{round}(T (n - i) / n) - 1` of n steps; the first is the last time.

    There is noise alone, as what sampling starts from. In whole numbers: with the spacing as a float, as
    `diffusers` has it, some n (61, 103, 121, ...) have one time more, and that is -1.

    Source: Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", arXiv:2305.08891,
    table 2.

    Example:
        >>> trailing(4), trailing(1)
        ([999, 749, 499, 249], [999])
    """
    return [round(Fraction(TIMES * (steps - i), steps)) - 1 for i in range(steps)]


def _ddim(process: Process) -> Any:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    # DDIM without noise is DPM-Solver of the first order (Lu et al. 2022, section 4.1); the scheduler of
    # `diffusers` that has its name takes no times of one's own.
    settings = ddpm_settings(process.prediction)
    return DPMSolverMultistepScheduler(**settings, solver_order=1, final_sigmas_type="zero")


def _dpm_solver(process: Process) -> Any:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler(**ddpm_settings(process.prediction), final_sigmas_type="zero")


def _euler(process: Process) -> Any:
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=TIMES)


SAMPLERS: Mapping[Sampler, tuple[Callable[[Process], Any], bool]] = MappingProxyType(
    {"ddim": (_ddim, False), "dpm_solver++": (_dpm_solver, False), "euler": (_euler, True)}
)
"""Name -> the scheduler for a process, and whether it is one for flows."""
