from __future__ import annotations

import json
import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import metainit
from hypernets.generator.checkpoints import Base, described_card, drawn_checkpoint, generator_tensors
from hypernets.generator.config import ConditionConfig, GeneratorConfig
from hypernets.generator.ensemble import ensemble
from hypernets.generator.kinds import start_of
from hypernets.generator.model import Generator
from hypernets.generator.start import Generated
from metainit import checkpoint
from metainit.adaptation import Task
from metainit.card import AdaptationRoutine, Card, Method, Provenance, Spec
from metainit.errors import (
    CheckpointError,
    ConditionError,
    DivergenceError,
    MismatchError,
    RecipeError,
    SourceError,
)
from metainit.initialization import Initialization
from metainit.networks import Siren, build
from tests.metainit.meta.problems import SineDomain

SPEC = Spec(name="siren", arguments={"in_features": 1, "out_features": 1, "width": 4, "depth": 2})
CONDITIONS = ConditionConfig(
    classes=3, class_names=("ring", "square", "star"), observation=(2, 4), text="ngrams"
)
CONFIG = GeneratorConfig(
    conditions=CONDITIONS, width=16, depth=1, embedding=8, mean_width=8, mean_depth=1, sketch=8
)


def stored_of(
    base_network: nn.Module, config: GeneratorConfig = CONFIG, **card: object
) -> checkpoint.Checkpoint:
    base = Base.of(base_network)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(config, base.layout, base.layers, members=4)
        for parameter in generator.parameters():
            nn.init.normal_(parameter, std=0.1)
    generator.unit.deviation.fill_(0.01)
    sizes = {n: torch.full((2, *p.shape), 0.01) for n, p in base_network.named_parameters()}
    plain = Card(kind="generator", name="shapes", method=Method(name="diffusion"), **card)  # type: ignore[arg-type]
    tensors = generator_tensors(generator.state_dict(), base, sizes)
    return checkpoint.from_bytes(checkpoint.to_bytes(tensors, described_card(plain, config, base)))


@pytest.fixture(scope="module")
def start() -> Generated:
    routine = AdaptationRoutine(steps=2, step_size=0.01, per_parameter=True)
    return start_of(stored_of(build(SPEC), network=SPEC, routine=routine))


def values(network: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in network.state_dict().items()}


def test_it_is_an_initialization_that_follows_its_seed_and_its_condition(start: Generated) -> None:
    assert isinstance(start, Initialization)
    seen = torch.ones(2, 4)

    def drawn(**arguments: object) -> Tensor:
        network = start.init_(build(SPEC, seed=9), **arguments)  # type: ignore[arg-type]
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    first = drawn(seed=1, condition="ring", observation=seen)
    assert torch.equal(first, drawn(seed=1, condition=0, observation=seen))
    others = [
        drawn(seed=2, condition=0, observation=seen),
        drawn(seed=1, condition=1, observation=seen),
        drawn(seed=1, condition=0),
        drawn(seed=1, condition="a shape that has no name"),
        drawn(seed=1),
        drawn(seed=1, condition=0, observation=seen, what="one_step"),
    ]
    assert all((first - other).abs().max() > 1e-5 for other in others)
    means = [drawn(seed=s, condition=2, what="mean") for s in (1, 2)]
    assert torch.equal(*means)


def test_what_is_generated_is_a_checkpoint_of_its_own(start: Generated, tmp_path: Path) -> None:
    drawn = start.generate(3, seed=5, condition="star", steps=3)
    for number, one in enumerate(drawn):
        path = tmp_path / f"{number}.safetensors"
        checkpoint.save(path, one.tensors, one.card)
        loaded = metainit.load(path)
        network = loaded.init_(build(SPEC))
        for name, value in network.state_dict().items():
            assert torch.equal(value, one.weights[name])
        card = loaded.card
        assert (card.kind, card.network, card.routine) == ("weights", SPEC, start.card.routine)
        assert card.provenance.seeds == [5 + number]
        recipe = card.provenance.recipe
        assert (recipe["generator"], recipe["digest"]) == ("shapes", start.card.digest)
        assert (recipe["what"], recipe["condition"], recipe["steps"]) == ("sample", "star", 3)
        assert (recipe["observation"], recipe["refused_copies"]) == (None, 0)
    # Alone with its own seed, or among many others: the same bytes.
    (alone,) = start.generate(1, seed=6, condition="star", steps=3)
    many = start.generate(21, seed=0, condition="star", steps=3)
    expected = checkpoint.to_bytes(drawn[1].tensors, drawn[1].card)
    for one in (alone, many[6]):
        assert checkpoint.to_bytes(one.tensors, one.card) == expected


def test_the_routine_of_the_base_goes_on(start: Generated) -> None:
    domain = SineDomain()
    task = Task(domain, domain.tasks(0, 0, 1))
    network = start.init_(build(SPEC), seed=0)
    (drawn,) = start.generate(1, seed=0)
    adapted = start.adapt(network, task)
    expected = metainit.initialization.Prior(drawn)
    other = expected.adapt(expected.init_(build(SPEC)), task)
    before = dict(drawn.weights)
    for (name, value), twin in zip(adapted.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(value, twin)
        assert not torch.equal(value.detach(), before[name])


def test_buffers_are_the_bases_and_what_is_tied_stays_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(3, 2)
            self.norm = nn.BatchNorm1d(2)
            self.head = nn.Linear(2, 3)
            self.head.weight = self.words.weight

    network = Tied()
    network.norm.running_mean.fill_(0.5)  # type: ignore[union-attr]
    network.norm.num_batches_tracked.fill_(7)  # type: ignore[union-attr]
    start = start_of(stored_of(network, GeneratorConfig(width=16, depth=1, sketch=8)))
    filled = Tied()
    start.init_(filled, seed=3)
    assert filled.head.weight is filled.words.weight
    assert torch.equal(filled.norm.running_mean, torch.full((2,), 0.5))  # type: ignore[arg-type]
    assert int(filled.norm.num_batches_tracked) == 7  # type: ignore[arg-type]
    (drawn,) = start.generate(1, seed=3)
    assert torch.equal(drawn.weights["head.weight"], drawn.weights["words.weight"])
    assert not torch.equal(drawn.weights["words.weight"], network.words.weight)


def test_parameters_that_are_not_generated_are_the_bases() -> None:
    network = build(SPEC)
    config = CONFIG.model_copy(
        update={"parameters": ("layers.1.bias", "layers.1.weight"), "scale": "predicted"}
    )
    (drawn,) = start_of(stored_of(network, config)).generate(1, seed=0)
    for name, value in network.named_parameters():
        assert torch.equal(value, drawn.weights[name]) == name.startswith("layers.0")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"condition": 3}, r"no class 3: .*class \(0 to 2, or ring, square, star\)"),
        ({"condition": -1}, "no class -1"),
        ({"condition": True}, "got bool"),
        ({"condition": 1.5}, "got float"),
        ({"condition": [1, 2]}, "got list"),
        ({"observation": "scan.npy"}, "got str: read what it names first"),
        ({"observation": [[0.0], [0.0, 1.0]]}, "got list: "),
        ({"observation": np.array([[None, 1]])}, "got ndarray"),
        ({"observation": torch.zeros(4, 2)}, r"shape \(4, 2\): .*of the shape 2 x 4"),
        ({"observation": torch.full((2, 4), torch.nan)}, "not finite"),
    ],
)
def test_a_condition_that_is_none_of_the_generators_is_refused(
    start: Generated, arguments: dict[str, object], text: str
) -> None:
    network = build(SPEC)
    before = values(network)
    with pytest.raises(ConditionError, match=text):
        start.init_(network, seed=0, **arguments)  # type: ignore[arg-type]
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_a_condition_and_an_observation_come_as_their_user_has_them(start: Generated) -> None:
    seen = torch.rand(2, 4)
    expected = start.init_(build(SPEC), seed=0, condition=1, observation=seen).state_dict()
    for condition in (np.int64(1), torch.tensor(1), "1", "square"):
        for observation in (seen.numpy(), seen.double(), seen.tolist(), seen.numpy()[::-1][::-1]):
            network = start.init_(build(SPEC), seed=0, condition=condition, observation=observation)
            assert all(torch.equal(v, expected[k]) for k, v in network.state_dict().items())


def test_one_class_has_one_card_however_it_is_named(start: Generated) -> None:
    digests = {start.generate(1, seed=0, condition=named)[0].card.digest for named in (1, "1", "square")}
    drawn = start.generate(1, seed=0, condition=1)[0]
    assert len(digests) == 1 and drawn.card.provenance.recipe["condition"] == "square"


def test_numbers_far_beyond_those_that_were_learned_from_are_refused() -> None:
    conditions = ConditionConfig(observation=(2, 4), observation_range=(0.0, 1.0))
    learned = start_of(stored_of(build(SPEC), CONFIG.model_copy(update={"conditions": conditions})))
    network = build(SPEC)
    before = values(network)
    for observation in (torch.rand(2, 4) * 255, torch.full((2, 4), -3.0)):
        with pytest.raises(ConditionError, match=r"numbers from .* between 0 and 1: scale it"):
            learned.init_(network, observation=observation)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    learned.init_(network, observation=torch.rand(2, 4) * 1.4)  # a little brighter than any that was seen


def test_seeds_and_guidance_of_no_sense_are_refused(start: Generated) -> None:
    with pytest.raises(SourceError, match="seed: expected 0 or more, got -1"):
        start.init_(build(SPEC), seed=-1)
    for guidance in (1e9, -1.0, float("nan")):
        with pytest.raises(RecipeError, match="guidance: expected 0 to 100"):
            start.init_(build(SPEC), seed=0, guidance=guidance, what="sample")


def test_a_word_that_is_no_class_is_refused_where_there_are_no_texts() -> None:
    named = CONFIG.model_copy(update={"conditions": ConditionConfig(classes=2, class_names=("ring", "star"))})
    with pytest.raises(
        ConditionError, match=r"no class 'rign'; did you mean|no class 'rign': did you mean 'ring'"
    ):
        start_of(stored_of(build(SPEC), named)).generate(1, seed=0, condition="rign")
    plain = start_of(stored_of(build(SPEC), CONFIG.model_copy(update={"conditions": ConditionConfig()})))
    for arguments in ({"condition": "ring"}, {"condition": 0}, {"observation": torch.zeros(2, 4)}):
        with pytest.raises(ConditionError, match="the generator takes no condition"):
            plain.generate(1, seed=0, **arguments)  # type: ignore[arg-type]


def test_what_cannot_be_done_is_said_and_nothing_is_filled(start: Generated) -> None:
    other = Siren(1, 1, 5, 2)
    before = values(other)
    with pytest.raises(MismatchError, match=r"generator 'shapes' does not fit this Siren; mis-shaped"):
        start.init_(other, seed=0)
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    with pytest.raises(SourceError, match="0 starts were asked for"):
        start.generate(0)
    with pytest.raises(RecipeError, match="guidance 2 is for what='sample'"):
        start.generate(1, what="mean", guidance=2.0)
    without = start_of(stored_of(build(SPEC), CONFIG.model_copy(update={"mean": False, "one_step": False})))
    with pytest.raises(RecipeError, match="gives sample, no 'mean'"):
        without.generate(1, what="mean")
    stored = stored_of(build(SPEC))
    damaged = {k: v.clone() for k, v in stored.tensors.items()}
    damaged["generator.unit.mean"][0] = torch.nan
    network = build(SPEC)
    before = values(network)
    with pytest.raises(DivergenceError, match="not finite"):
        start_of(replace(stored, tensors=damaged)).init_(network, seed=0)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    with pytest.raises(SourceError, match="no adaptation routine"):
        start_of(stored).adapt(network, Task(SineDomain(), SineDomain().tasks(0, 0, 1)))


def test_a_checkpoint_of_something_else_is_refused() -> None:
    stored = stored_of(build(SPEC))
    bare = stored.card.model_copy(update={"provenance": Provenance()})
    with pytest.raises(CheckpointError, match="does not say what its generator is"):
        start_of(replace(stored, card=bare))
    fewer = {k: v for k, v in stored.tensors.items() if k != "base.layers.0.bias"}
    with pytest.raises(CheckpointError, match=r"lacks the base's layers\.0\.bias"):
        start_of(replace(stored, tensors=fewer))
    fewer = {k: v for k, v in stored.tensors.items() if k != "generator.unit.mean"}
    with pytest.raises(CheckpointError, match=r"(?s)not those of its generator.*unit\.mean"):
        start_of(replace(stored, tensors=fewer))


def test_an_ensemble_is_the_mean_of_its_members(start: Generated) -> None:
    drawn = start.generate(4, seed=0, condition=1)
    network, inputs = build(SPEC), torch.linspace(-1, 1, 7)[:, None]
    before = values(network)
    found = ensemble(network, drawn, inputs)
    outputs = [metainit.initialization.Prior(one).init_(build(SPEC))(inputs) for one in drawn]
    torch.testing.assert_close(found, torch.stack(outputs).mean(0).detach())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    with pytest.raises(MismatchError, match="at least one start"):
        ensemble(network, [], inputs)


def test_a_draw_keeps_the_types_of_the_base() -> None:
    network = nn.Sequential(nn.Linear(2, 2).to(torch.bfloat16), nn.Linear(2, 1))
    base = Base.of(network)
    stored = checkpoint.Checkpoint({}, Card(kind="generator", name="a", method=Method(name="diffusion")))
    drawn = drawn_checkpoint(stored, base, torch.ones(9), 0, {})
    assert [v.dtype for v in drawn.tensors.values()] == [torch.bfloat16] * 2 + [torch.float32] * 2
    torch.testing.assert_close(drawn.tensors["1.weight"], network[1].weight.detach() + 1)


def test_a_small_file_cannot_ask_for_gigabytes(start: Generated) -> None:
    stored = start.checkpoint
    said = json.loads(json.dumps(stored.card.provenance.recipe))
    said["parts"]["config"] |= {"width": 16384, "depth": 64, "mean_width": 16384, "mean_depth": 64}
    provenance = stored.card.provenance.model_copy(update={"recipe": said})
    large = checkpoint.Checkpoint(stored.tensors, stored.card.model_copy(update={"provenance": provenance}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="are not those of its generator") as raised:
        start_of(large)
    # In KiB; what was asked for are some 100 GiB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000
    assert len(str(raised.value)) < 1000 and " more" in str(raised.value)


def test_loading_draws_nothing_and_changes_no_weight(start: Generated) -> None:
    state = torch.get_rng_state()
    again = start_of(start.checkpoint)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in again.generator.state_dict().items():
        assert torch.equal(value, start.checkpoint.tensors[f"generator.{name}"])
    assert not any(p.is_meta for p in (*again.generator.parameters(), *again.generator.buffers()))


@pytest.mark.parametrize(
    "condition", [10**20, -(10**20), 3, -1, "9" * 5000, "0" * 4999 + "7", "1" + "0" * 19]
)
def test_no_number_of_a_class_is_too_large_to_be_refused(start: Generated, condition: int | str) -> None:
    with pytest.raises(ConditionError, match="no class") as raised:
        start.conditions(condition)
    assert len(str(raised.value)) < 300
    assert start.conditions("0" * 4000 + "2").values["class"].tolist() == [2]


def test_a_text_has_a_limit(start: Generated) -> None:
    with pytest.raises(ConditionError, match="at most 10000 characters, got 10001"):
        start.conditions("a" * 10_001)


def test_observations_in_0_to_1_are_standardized_as_those_that_were_learned_from() -> None:
    known = {"observation": (2, 3, 1, 4, 4), "encoder": "examples"}
    known |= {"observation_mean": (0.25,), "observation_deviation": (0.5,)}
    config = CONFIG.model_copy(update={"conditions": ConditionConfig.model_validate(known)})
    start = start_of(stored_of(build(SPEC), config, network=SPEC))
    raw = torch.rand(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    seen = start.conditions(observation=raw).values["observation"]
    torch.testing.assert_close(seen, ((raw - 0.25) / 0.5)[None])
    with pytest.raises(ConditionError, match="no observation of the shape"):
        start.conditions(observation=raw[0])
    with pytest.raises(ValueError, match="a mean and a deviation for each channel"):
        ConditionConfig(observation=(1, 4, 4), observation_mean=(0.0, 1.0), observation_deviation=(1.0, 1.0))
