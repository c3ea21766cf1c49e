"""The parts of a generator by themselves: conditions, texts, standardization, denoisers, near-copies."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from hypernets.generator.conditions import Conditioner, conditions_of, joined
from hypernets.generator.config import ConditionConfig, GeneratorConfig
from hypernets.generator.copies import Sketch, copy_test
from hypernets.generator.denoiser import MlpDenoiser
from hypernets.generator.standardization import FLOOR, Standardization
from hypernets.generator.text import HashedNgrams
from hypernets.generator.tokens import TokenLayout
from hypernets.generator.transformer import TransformerDenoiser
from metainit.errors import ConditionError, DataError
from tests.hypernets.generator.gaussians import LAYERS, LAYOUT

EVERY = ConditionConfig(
    classes=3, text="ngrams", observation=(2, 3, 1, 8, 8), encoder="examples", thumbnail=2
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditioner(config: ConditionConfig = EVERY) -> Conditioner:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = Conditioner(config, 8)
        for value in found.absent.values():
            nn.init.normal_(value)
    return found


def test_kinds_add_up_and_what_is_absent_has_an_embedding_of_its_own() -> None:
    net, labels, seen = conditioner(), torch.tensor([0, 2]), random(2, 2, 3, 1, 8, 8)
    nothing = net(conditions_of(EVERY, 2))
    torch.testing.assert_close(nothing, torch.stack(list(net.absent.values())).sum(0).expand(2, 8))
    label = net(conditions_of(EVERY, 2, classes=labels))
    observation = net(conditions_of(EVERY, 2, observations=seen))
    text = net(conditions_of(EVERY, 2, texts=["a", "b"]))
    everything = conditions_of(EVERY, 2, classes=labels, texts=["a", "b"], observations=seen)
    torch.testing.assert_close(net(everything) - nothing, label + observation + text - 3 * nothing)
    assert torch.equal(net(everything.none()), nothing)
    keep = {"class": torch.tensor([True, False]), "text": torch.tensor([False, False])}
    keep["observation"] = torch.tensor([False, False])
    assert torch.equal(net(everything.hidden(keep)), torch.stack([label[0], nothing[1]]))


def test_tasks_with_other_kinds_go_into_one_batch() -> None:
    net = conditioner()
    parts = [conditions_of(EVERY, 2, classes=torch.tensor([1, 2])), conditions_of(EVERY, 1, texts=["x"])]
    torch.testing.assert_close(net(joined(parts)), torch.cat([net(p) for p in parts]))
    assert len(joined(parts)[1:]) == 2


def test_the_order_of_shots_does_not_matter_that_of_ways_does() -> None:
    net, seen = conditioner(), random(1, 2, 3, 1, 8, 8)
    first = net(conditions_of(EVERY, 1, observations=seen))
    torch.testing.assert_close(net(conditions_of(EVERY, 1, observations=seen.flip(2))), first)
    assert (net(conditions_of(EVERY, 1, observations=seen.flip(1))) - first).abs().max() > 1e-3


def test_a_thumbnail_is_the_mean_of_each_part() -> None:
    config = ConditionConfig(observation=(1, 4, 4), thumbnail=2)
    images = random(3, 1, 4, 4)
    found = conditions_of(config, 3, observations=images).values["observation"]
    torch.testing.assert_close(found, images.view(3, 1, 2, 2, 2, 2).mean((3, 5)))


def test_conditions_that_are_not_taken_are_refused() -> None:
    for arguments, text in (
        ({"classes": torch.tensor([3, 0])}, r"no class 3: the generator takes class \(0 to 2\); text"),
        ({"observations": torch.zeros(2, 8, 8)}, r"shape \(8, 8\)"),
        ({"texts": ["one"]}, r"conditions of 2 tasks, got \{'text': 1\}"),
    ):
        with pytest.raises(ConditionError, match=text):
            conditions_of(EVERY, 2, **arguments)  # type: ignore[arg-type]
    with pytest.raises(
        ConditionError, match="no class or text can be given: the generator takes no condition. Leave it"
    ):
        conditions_of(ConditionConfig(), 1, classes=torch.tensor([0]), texts=["x"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"classes": 2, "class_names": ("a",)},
        {"classes": 2, "class_names": ("a", "a")},
        {"text": "clip"},
        {"observation": (3, 0)},
        {"observation": (5, 3), "encoder": "examples"},
        {"observation": (5,), "thumbnail": 2},
    ],
)
def test_conditions_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ConditionConfig.model_validate(wrong)


def test_heads_have_to_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="no multiple of 3 heads"):
        GeneratorConfig(denoiser="transformer", width=32, heads=3)


def test_texts_have_the_same_vectors_in_every_process() -> None:
    program = (
        "from hypernets.generator.text import HashedNgrams as H\n"
        "print(H()(['Zwölf rings']).nonzero().tolist())"
    )
    found = HashedNgrams()(["zwölf  RINGS", ""])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(found[:1].nonzero().tolist())
    assert found[0].norm() == pytest.approx(1.0) and found[1].abs().sum() == 0


def test_diffusers_is_imported_when_a_scheduler_is_needed_and_not_before() -> None:
    program = (
        "import sys, hypernets.generator.training, hypernets.generator.kinds\n"
        "print('diffusers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_standardized_values_have_zero_mean_and_unit_deviation() -> None:
    deltas = random(50, 8) * torch.logspace(-3, 0, 8) + torch.arange(8.0)
    unit = Standardization(LAYOUT, LAYERS, "dimension")
    unit.fit(deltas)
    values = unit(deltas)
    torch.testing.assert_close(values.mean(0), torch.zeros(8), atol=1e-4, rtol=0)
    floored = deltas.std(0, correction=0) < FLOOR * deltas.std(0).square().mean().sqrt()
    torch.testing.assert_close(values.std(0, correction=0)[~floored], torch.ones(int((~floored).sum())))
    torch.testing.assert_close(unit.inverse(values), deltas)


def test_a_layer_has_one_mean_and_one_deviation() -> None:
    deltas = random(50, 8) * torch.logspace(-1, 0, 8)
    unit = Standardization(LAYOUT, LAYERS, "layer")
    unit.fit(deltas)
    for part in (slice(0, 6), slice(6, 8)):
        torch.testing.assert_close(unit.mean[part], deltas[:, part].mean().expand_as(unit.mean[part]))
        expected = deltas[:, part].std(correction=0).expand_as(unit.mean[part])
        torch.testing.assert_close(unit.deviation[part], expected)


def test_what_never_moves_stays_put() -> None:
    deltas = random(20, 8)
    deltas[:, 3] = 0.25
    unit = Standardization(LAYOUT, LAYERS, "dimension")
    unit.fit(deltas)
    assert (unit.inverse(random(100, 8, seed=1))[:, 3] - 0.25).abs().max() < 5 * FLOOR
    with pytest.raises(DataError, match="20 members have the same weights"):
        unit.fit(torch.full((20, 8), 1 / 3))


def denoisers() -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokens = TokenLayout.of(LAYOUT, LAYERS, "neuron", 2)
        made: dict[str, nn.Module] = {
            name: TransformerDenoiser(tokens, 16, 2, 2, 8, name)  # type: ignore[arg-type]
            for name in ("token", "kind")
        }
        made["mlp"] = MlpDenoiser(8, 16, 2, 8)
    return made


@pytest.mark.parametrize("name", ["mlp", "token", "kind"])
def test_a_denoiser_gives_zero_at_first_and_everything_reaches_everything_later(name: str) -> None:
    net, values, time, condition = (
        denoisers()[name],
        random(3, 8),
        torch.full((3,), 200.0),
        random(3, 8, seed=1),
    )
    assert net(values, time, condition).abs().max() == 0
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.3)
    found = net(values, time, condition)
    # Each sample by itself.
    torch.testing.assert_close(net(values[1:2], time[1:2], condition[1:2]), found[1:2], rtol=1e-4, atol=1e-5)
    slopes = torch.autograd.functional.jacobian(lambda x: net(x, time[:1], condition[:1])[0], values[:1])
    assert (slopes.abs() > 1e-7).all()
    assert (net(values, time + 300, condition) - found).abs().max() > 1e-3
    assert (net(values, time, condition + 1) - found).abs().max() > 1e-3
    for parameter, slope in zip(
        net.parameters(), torch.autograd.grad(found.square().sum(), list(net.parameters())), strict=True
    ):
        assert slope.abs().max() > 0, parameter.shape


def test_a_sketch_keeps_distances() -> None:
    members, others = random(40, 3000), random(30, 3000, seed=1)
    sketch = Sketch(3000, 256, 40)
    sketch.fit(members, others, closeness=0.5)
    truth = torch.cdist(others, members).amin(-1)
    assert ((sketch.distances(others) - truth).abs() / truth).max() < 0.25
    assert float(sketch.threshold) == pytest.approx(0.5 * float(truth.min()), rel=0.25)
    near = members[:5] + 0.3 * random(5, 3000, seed=2)
    assert sketch.is_copy(torch.cat([near, others])).tolist() == [True] * 5 + [False] * 30


def test_copies_are_told_from_samples() -> None:
    members, held_out, fresh = random(200, 5), random(100, 5, seed=1), random(100, 5, seed=2)
    honest = copy_test(fresh, held_out, members)
    assert honest.p_closer > 0.05 and honest.p_differs > 0.05 and 0.35 < honest.closer < 0.65
    copied = copy_test(members[:100] + 0.1 * fresh, held_out, members)
    assert copied.p_closer < 1e-6 and copied.p_differs < 1e-6 and copied.closer > 0.9
    assert copied.samples < 0.5 * copied.held_out
