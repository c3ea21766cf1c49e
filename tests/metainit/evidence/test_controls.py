"""Controls: they are what their names say."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from metainit.card import Spec
from metainit.domains.base import Split, TaskBatch
from metainit.domains.ct import CTConfig, CTDomain
from metainit.errors import MismatchError, RecipeError
from metainit.evidence.controls.base import Setting
from metainit.evidence.controls.registry import ANALYTIC, CONTROLS, make_controls
from metainit.evidence.controls.signal import MATCHED_DECIBELS, rendering, shuffled
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
    (matched,) = make_controls(Setting(build(NETWORK), blob_domain(), prior), ["matched"])
    assert matched.name == "matched" and matched.routine is None
    assert psnr(rendered(None, matched), rendered(None, prior)) >= MATCHED_DECIBELS
    for name, value in matched.weights.items():
        if value.dim() == 2:
            # Not near the prior's weights, of which it knows the output alone.
            assert float((value - prior.weights[name]).norm() / prior.weights[name].norm()) > 0.5


def test_mean_signal_renders_the_mean_training_signal() -> None:
    domain = blob_domain()
    (start,) = make_controls(Setting(build(NETWORK), domain), ["mean_signal"])
    everything = domain.tasks(0, 0, 1, "train")  # the mean needs no task; only its size is taken from one
    assert domain.mean_signal().shape == domain.target({k: v[0] for k, v in everything.query.items()}).shape
    assert psnr(rendered(domain, start), domain.mean_signal()) >= MATCHED_DECIBELS


def test_mean_signal_of_slices() -> None:
    domain = CTDomain(CTConfig(size=8, held_out=2))
    network = build(
        Spec(name="fourier_mlp", arguments={"width": 32, "depth": 3, "frequencies": 16, "scale": 2})
    )
    (start,) = make_controls(Setting(network, domain), ["mean_signal"])
    assert psnr(rendered(domain, start, network), domain.mean_signal()) >= MATCHED_DECIBELS


def test_shuffled_keeps_the_values_of_each_tensor_and_nothing_else(prior: Start) -> None:
    mixed, again, other = (
        shuffled(Setting(build(NETWORK), blob_domain(), prior, seed)) for seed in (0, 0, 1)
    )
    assert mixed is not None and again is not None and other is not None
    assert mixed.weights.keys() == prior.weights.keys()
    for name, value in mixed.weights.items():
        original = prior.weights[name]
        assert value.shape == original.shape
        assert torch.equal(value.flatten().sort().values, original.flatten().sort().values)
        if value.numel() > 8:
            assert not torch.equal(value, original)
    assert same(again.weights, mixed.weights)
    assert not same(other.weights, mixed.weights)


def test_every_analytic_start_is_the_one_that_load_gives() -> None:
    network = build(NETWORK)
    before = weights_of(network)
    coordinates = blob_domain().tasks(0, 0, 1, "test").shared["support_coordinates"]
    starts = make_controls(Setting(network, blob_domain(), seed=5), ANALYTIC)
    assert [s.name for s in starts] == list(ANALYTIC)
    for start in starts:
        alone = Analytic(start.name).init_(build(NETWORK, seed=77), seed=5, example_inputs=coordinates)
        assert same(start.weights, weights_of(alone))
        assert start.routine is None
    assert same(weights_of(network), before)
    assert not same(
        starts[0].weights, make_controls(Setting(network, blob_domain(), seed=6), ANALYTIC)[0].weights
    )


def test_a_rule_that_does_not_cover_the_network_has_no_row() -> None:
    network = build(Spec(name="fourier_mlp", arguments={"width": 8, "depth": 3, "frequencies": 4}))
    reasons: dict[str, str] = {}
    names = [s.name for s in make_controls(Setting(network, blob_domain()), ANALYTIC, reasons)]
    assert set(reasons) == set(ANALYTIC) - set(names)
    assert "siren" not in names and "siren_scaled" not in names
    assert {"default", "kaiming", "orthogonal"} <= set(names)


def test_without_a_prior_there_is_nothing_to_match_or_to_shuffle() -> None:
    names = ("kaiming", "matched", "shuffled")
    found = make_controls(Setting(build(NETWORK), blob_domain()), names)
    assert [s.name for s in found] == ["kaiming"]


def test_a_domain_without_a_mean_has_no_such_control() -> None:
    domain = Bowls([1.0], [0.5])
    found = make_controls(Setting(Level(), domain), ["mean_signal"])
    assert found == []


def test_a_network_that_cannot_render_its_target_says_how_near_it_came() -> None:
    domain = blob_domain()
    network = build(NETWORK.model_copy(update={"arguments": {**NETWORK.arguments, "width": 1, "depth": 2}}))
    task = domain.tasks(0, 0, 1, "validation")
    with pytest.raises(MismatchError, match=r"control 'x': .* to \d+\.\d dB after 2000 steps, expected 40"):
        rendering("x", network, domain, task, torch.rand(8, 8, 1), weights_of(network))


def test_every_domain_names_controls_that_there_are() -> None:
    for domain in (blob_domain(), CTDomain(CTConfig(size=8, held_out=2)), Bowls([1.0], [0.5])):
        assert set(domain.controls) <= set(CONTROLS)
    with pytest.raises(RecipeError, match="no control is called 'mean'; the choices are: default"):
        make_controls(Setting(Level(), Bowls([1.0], [0.5])), ["mean"])


def test_joint_lowers_the_mean_loss_of_all_tasks_within_its_budget() -> None:
    r"""Of bowls it finds :math:`\sum h_t c_t / \sum h_t`, where the gradient of the mean loss is zero."""
    bowls = Bowls([1.0, 3.0], [0.2, 1.0])
    seen: list[str] = []
    setting = Setting(Level(), EveryBowl(bowls), budget=6000, note=seen.append)
    (start,) = make_controls(setting, ["joint"])
    assert float(start.weights["level"]) == pytest.approx((0.2 + 3.0) / 4, abs=0.01)
    assert start.routine is None
    assert seen[-1].endswith(", 1500 steps") and sum(", 1500 steps" in text for text in seen) == 1
    (again,) = make_controls(setting, ["joint"])
    assert same(again.weights, start.weights)


class EveryBowl(Bowls):
    """The bowls over and over again, whichever batch of them is asked for."""

    def __init__(self, bowls: Bowls) -> None:
        super().__init__(bowls.curvatures.tolist(), bowls.centres.tolist())

    def tasks(self, seed: int, index: int, count: int, split: Split = "train") -> TaskBatch:
        whole = super().tasks(0, 0, len(self.centres))
        part = [i % len(whole) for i in range(index * count, (index + 1) * count)]
        observed = {k: v[part] for k, v in whole.support.items()}
        return TaskBatch(observed, observed, whole.shared, tuple(whole.ids[i] for i in part))
