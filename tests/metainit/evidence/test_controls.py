"""Controls: they are what their names say."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from metainit.card import Spec
from metainit.domains.ct import CTConfig, CTDomain
from metainit.errors import MismatchError
from metainit.evidence.controls import (
    ANALYTIC,
    MATCHED_DECIBELS,
    analytic_starts,
    rendering,
    shuffled,
    signal_controls,
)
from metainit.evidence.curves import Start, weights_of
from metainit.evidence.metrics import psnr
from metainit.initialization import Analytic
from metainit.networks import build, function_of
from tests.metainit.evidence.toys import NETWORK, Bowls, Level, blob_domain


def rendered(domain: object, start: Start, network: nn.Module | None = None) -> Tensor:
    blobs = blob_domain() if domain is None else domain
    assert hasattr(blobs, "tasks") and hasattr(blobs, "render")
    shared = blobs.tasks(0, 0, 1, "test").shared
    with torch.no_grad():
        image = blobs.render(function_of(network or build(NETWORK))(start.weights), {}, shared)
    assert isinstance(image, Tensor)
    return image


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def prior() -> Start:
    """Weights that render something: fitted to one of the blobs."""
    domain = blob_domain()
    task = domain.tasks(0, 0, 1, "train")
    begin = weights_of(Analytic("siren").init_(build(NETWORK), seed=11))
    return rendering("prior", build(NETWORK), domain, task, domain.target(task.query)[:, :, :], begin)


def test_matched_renders_the_priors_output_with_other_weights(prior: Start) -> None:
    (matched,) = signal_controls(build(NETWORK), blob_domain(), prior, 0, ["matched"])
    assert matched.name == "matched" and matched.routine is None
    assert psnr(rendered(None, matched), rendered(None, prior)) >= MATCHED_DECIBELS
    for name, value in matched.weights.items():
        if value.dim() == 2:
            # Not near the prior's weights, of which it knows the output alone.
            assert float((value - prior.weights[name]).norm() / prior.weights[name].norm()) > 0.5


def test_mean_signal_renders_the_mean_training_signal() -> None:
    domain = blob_domain()
    (start,) = signal_controls(build(NETWORK), domain, None, 0, ["mean_signal"])
    everything = domain.tasks(0, 0, 1, "train")  # the mean needs no task; only its size is taken from one
    assert domain.mean_signal().shape == domain.target({k: v[0] for k, v in everything.query.items()}).shape
    assert psnr(rendered(domain, start), domain.mean_signal()) >= MATCHED_DECIBELS


def test_mean_signal_of_slices() -> None:
    domain = CTDomain(CTConfig(size=8, held_out=2))
    network = build(
        Spec(name="fourier_mlp", arguments={"width": 32, "depth": 3, "frequencies": 16, "scale": 2})
    )
    (start,) = signal_controls(network, domain, None, 0, ["mean_signal"])
    assert psnr(rendered(domain, start, network), domain.mean_signal()) >= MATCHED_DECIBELS


def test_shuffled_keeps_the_values_of_each_tensor_and_nothing_else(prior: Start) -> None:
    mixed = shuffled(prior, seed=0)
    assert mixed.weights.keys() == prior.weights.keys()
    for name, value in mixed.weights.items():
        original = prior.weights[name]
        assert value.shape == original.shape
        assert torch.equal(value.flatten().sort().values, original.flatten().sort().values)
        if value.numel() > 8:
            assert not torch.equal(value, original)
    assert same(shuffled(prior, seed=0).weights, mixed.weights)
    assert not same(shuffled(prior, seed=1).weights, mixed.weights)


def test_every_analytic_start_is_the_one_that_load_gives() -> None:
    network = build(NETWORK)
    before = weights_of(network)
    coordinates = blob_domain().tasks(0, 0, 1, "test").shared["support_coordinates"]
    starts = analytic_starts(network, 5, coordinates)
    assert [s.name for s in starts] == list(ANALYTIC)
    for start in starts:
        alone = Analytic(start.name).init_(build(NETWORK, seed=77), seed=5, example_inputs=coordinates)
        assert same(start.weights, weights_of(alone))
        assert start.routine is None
    assert same(weights_of(network), before)
    assert not same(starts[0].weights, analytic_starts(network, 6, coordinates)[0].weights)


def test_a_rule_that_does_not_cover_the_network_has_no_row() -> None:
    network = build(Spec(name="fourier_mlp", arguments={"width": 8, "depth": 3, "frequencies": 4}))
    names = [s.name for s in analytic_starts(network, 0, torch.rand(32, 2))]
    assert "siren" not in names and "siren_scaled" not in names
    assert {"default", "kaiming", "orthogonal"} <= set(names)


def test_without_a_prior_there_is_nothing_to_match_or_to_shuffle() -> None:
    names = ("kaiming", "matched", "shuffled")
    found = signal_controls(build(NETWORK), blob_domain(), None, 0, names)
    assert [s.name for s in found] == ["kaiming"]


def test_a_domain_without_a_mean_has_no_such_control() -> None:
    domain = Bowls([1.0], [0.5])
    found = signal_controls(Level(), domain, None, 0, ["mean_signal"])
    assert found == []


def test_a_network_that_cannot_render_its_target_says_how_near_it_came() -> None:
    domain = blob_domain()
    network = build(NETWORK.model_copy(update={"arguments": {**NETWORK.arguments, "width": 1, "depth": 2}}))
    task = domain.tasks(0, 0, 1, "validation")
    with pytest.raises(MismatchError, match=r"control 'x': .* to \d+\.\d dB after 2000 steps, expected 40"):
        rendering("x", network, domain, task, torch.rand(8, 8, 1), weights_of(network))
