from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from hypernets.generator.process import Prediction, Process
from hypernets.generator.sampling import SAMPLERS, Sampler, guided, noise_of, sample, scheduled, trailing
from metainit.errors import RecipeError

PREDICTIONS = get_args(Prediction)
PAIRS = [(p, s) for p in PREDICTIONS for s, (_, flow) in SAMPLERS.items() if flow == (p == "flow")]
ODD = [("sample", "ddim", 61), ("velocity", "dpm_solver++", 61), ("velocity", "dpm_solver++", 103)]
"""Numbers of steps for which a spacing in floats gives one time more, below zero."""
MEAN = torch.tensor([1.0, -2.0, 0.5])
FACTOR = torch.tensor([[1.5, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.3, 0.2, 0.1]])
COVARIANCE = FACTOR @ FACTOR.T


def exact(process: Process, values: Tensor, time: Tensor) -> Tensor:
    """The best prediction for a Gaussian: E[x | x_t] = mu + a C (a^2 C + s^2 I)^-1 (x_t - a mu)."""
    alpha, sigma = (c[0] for c in process.coefficients(time))
    gain = alpha * COVARIANCE @ torch.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * torch.eye(3))
    clean = MEAN + (values - alpha * MEAN) @ gain.T
    return process.target(clean, (values - alpha * clean) / sigma, time)


def zero(values: Tensor, time: Tensor, condition: Tensor) -> Tensor:
    return torch.zeros_like(values)


def one(values: Tensor, time: Tensor, condition: Tensor) -> Tensor:
    return torch.ones_like(values)


@pytest.mark.parametrize(("prediction", "sampler", "steps"), [(*p, 60) for p in PAIRS] + ODD)
def test_the_exact_denoiser_of_a_gaussian_gives_its_mean_and_covariance(
    prediction: Prediction, sampler: Sampler, steps: int
) -> None:
    process, noise = Process(prediction), noise_of(range(500), 3)
    # The map from noise to samples of a Gaussian is linear: compare what it does, not what was drawn.
    noise = (noise - noise.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(noise.T.cov())).T
    drawn = sample(process, lambda x, t: exact(process, x, t), noise, steps, sampler)
    torch.testing.assert_close(drawn.mean(0), MEAN, atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), COVARIANCE, atol=0.08, rtol=0.05)


def test_every_number_of_steps_has_as_many_times_from_noise_down_to_no_less_than_zero() -> None:
    for steps in range(1, 1001):
        times = trailing(steps)
        assert len(times) == steps and times[0] == 999 and times[-1] >= 0
        assert all(later < earlier for earlier, later in zip(times, times[1:], strict=False))
    assert trailing(1000) == list(range(999, -1, -1))


@pytest.mark.parametrize(("prediction", "sampler"), PAIRS)
def test_schedulers_take_as_many_times(prediction: Prediction, sampler: Sampler) -> None:
    for steps in (1, 2, 61, 103, 121, 667, 1000):
        assert len(scheduled(Process(prediction), sampler, steps).timesteps) == steps


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_an_untrained_denoiser_gives_unit_variance(prediction: Prediction) -> None:
    process, noise, nothing = Process(prediction), noise_of(range(8), 5), torch.zeros(8, 4)
    drawn = sample(process, lambda x, t: process.predict(zero, x, t, nothing), noise, 100)
    torch.testing.assert_close(drawn, noise, rtol=0.03, atol=1e-3)
    assert torch.equal(process.from_noise(zero, noise, nothing), noise)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_zero_is_the_best_that_a_network_can_give_for_unit_variance(prediction: Prediction) -> None:
    """What the skip leaves of the target has nothing of the noisy value, and the gain's variance."""
    process, generator = Process(prediction), torch.Generator().manual_seed(0)
    values, noise = (torch.randn(200_000, 1, generator=generator) for _ in range(2))
    for moment in (50.0, 400.0, 900.0):
        time = torch.full((len(values),), moment)
        noisy = process.noisy(values, noise, time)
        skip = process.predict(zero, noisy, time, noisy)
        left = process.target(values, noise, time) - skip
        gain = (process.predict(one, noisy, time, noisy) - skip)[0]
        assert abs(float((left * noisy).mean())) < 0.01
        assert float(left.std() / gain) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("sampler", ["ddim", "dpm_solver++"])
def test_one_step_gives_the_mean(sampler: Sampler) -> None:
    process, noise = Process("sample"), noise_of(range(16), 3)
    drawn = sample(process, lambda x, t: exact(process, x, t), noise, 1, sampler)
    torch.testing.assert_close(drawn, MEAN.expand(16, 3), atol=1e-2, rtol=0)


def test_noise_follows_from_each_seed_alone() -> None:
    assert torch.equal(noise_of([5, 9, 5], 7), noise_of([9, 5, 9], 7)[[1, 0, 1]])
    assert noise_of(range(2000), 4).T.cov().sub(torch.eye(4)).abs().max() < 0.1


def test_guidance_goes_from_no_condition_to_more_than_it() -> None:
    process = Process("sample")
    condition, nothing = torch.ones(2, 3), torch.zeros(2, 3)
    values, time = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)), torch.full((2,), 300.0)

    def network(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return x * 0.1 + c

    found = {w: guided(process, network, condition, nothing, w)(values, time) for w in (0.0, 1.0, 2.0)}
    torch.testing.assert_close(found[0.0], process.predict(network, values, time, nothing))
    torch.testing.assert_close(found[1.0], process.predict(network, values, time, condition))
    torch.testing.assert_close(found[2.0] - found[1.0], found[1.0] - found[0.0])


def test_times_cover_the_range_evenly() -> None:
    for prediction in PREDICTIONS:
        times = Process(prediction).draw(500, torch.Generator().manual_seed(1))
        assert times.min() >= 0 and times.max() <= 1000
        assert torch.equal((times.sort().values / 2).floor(), torch.arange(500.0))


def test_what_does_not_go_together_is_refused() -> None:
    noise = torch.zeros(1, 2)
    with pytest.raises(RecipeError, match=r"'euler' is none for the prediction 'sample': use ddim or dpm"):
        sample(Process("sample"), lambda x, t: x, noise, 5, "euler")
    with pytest.raises(RecipeError, match="1 to 1000 steps, got 0"):
        sample(Process("flow"), lambda x, t: x, noise, 0)
