"""What is drawn together is what is drawn alone, to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hypernets.generator.conditions import Conditions, conditions_of
from hypernets.generator.config import ConditionConfig, GeneratorConfig
from hypernets.generator.description import What
from hypernets.generator.drawing import ROWS, Row, batches, draw
from hypernets.generator.flat import FlatLayout
from hypernets.generator.model import Generator
from metainit.errors import CopyError

CONDITIONS = ConditionConfig(classes=5, observation=(1, 6, 6), thumbnail=3, text="ngrams")
LAYOUT = FlatLayout(("0.weight", "0.bias", "1.weight"), ((7, 5), (7,), (3, 7)))
LAYERS = (("0.weight", "0.bias"), ("1.weight",))
ODD = {"width": 17, "depth": 1, "embedding": 5, "mean_width": 7, "mean_depth": 1}
"""Sizes that fill no register: what is left of a vector is rounded in another way."""
KINDS = {
    "mlp": GeneratorConfig(conditions=CONDITIONS, sketch=8, **ODD),
    "flow": GeneratorConfig(conditions=CONDITIONS, sketch=8, prediction="flow", scale="predicted", **ODD),
    "transformer": GeneratorConfig(
        conditions=CONDITIONS, denoiser="transformer", sketch=8, heads=1, token_size=7, **ODD
    ),
}


def generator_of(config: GeneratorConfig) -> Generator:
    torch.manual_seed(0)
    generator = Generator(config, LAYOUT, LAYERS, members=4)
    for parameter in generator.parameters():
        nn.init.normal_(parameter, std=0.2)
    return generator.eval().requires_grad_(False)


def condition(number: int) -> Conditions:
    if number % 3 == 0:
        return conditions_of(CONDITIONS, 1, classes=torch.tensor([number % 5]))
    if number % 3 == 1:
        seen = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(number))
        return conditions_of(CONDITIONS, 1, observations=seen)
    return conditions_of(CONDITIONS, 1, texts=(f"task {number}",))


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_of_a_network_do_not_depend_on_its_neighbours(kind: str) -> None:
    generator = generator_of(KINDS[kind])
    rows = [Row(condition(n), 10 * n) for n in range(11)]

    def deltas(rows: list[Row], what: What) -> Tensor:
        return draw(generator, rows, what, steps=2).deltas

    whats: tuple[What, ...] = ("sample", "one_step", "mean")
    for what in whats:
        together = deltas(rows, what)
        backwards = deltas(rows[::-1], what).flip(0)
        assert torch.equal(together, backwards)
        for i in (0, 3, 10):
            assert torch.equal(deltas([rows[i]], what)[0], together[i])
        assert what == "mean" or len({tuple(row.tolist()) for row in together}) == len(rows)


def test_successive_seeds_of_one_task_fill_whole_batches() -> None:
    rows = [Row(condition(1), seed) for seed in range(5, 21)]
    size = ROWS["mlp"]
    found = batches([row.place for row in rows], size)
    assert len(found) == 2 or len(found) == 3  # where it begins follows from the condition
    assert sorted({i for batch in found for i in batch}) == list(range(16))
    assert all(len(batch) == size for batch in found)
    for batch in found:
        for at, i in enumerate(batch):
            assert rows[i].place % size == at or i == batch[0] or batch.count(i) > 1


def test_a_copy_is_drawn_again_without_changing_the_others() -> None:
    generator = generator_of(KINDS["mlp"])
    rows = [Row(condition(0), seed) for seed in range(8)]
    plain = draw(generator, rows, "one_step")
    # What the third one is becomes a member: it has to be drawn again, and it alone.
    member = generator.standardized(plain.deltas[2:3])
    generator.sketch.fit(member.repeat(4, 1), member + torch.linspace(1e-4, 1e-3, 8)[:, None], 0.5)
    again = draw(generator, rows, "one_step")
    assert again.refused.tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    same = [torch.equal(a, b) for a, b in zip(plain.deltas, again.deltas, strict=True)]
    assert same == [True, True, False, True, True, True, True, True]
    alone = draw(generator, rows[2:3], "one_step")
    assert torch.equal(alone.deltas[0], again.deltas[2]) and alone.refused.tolist() == [1]
    members = generator.standardized(plain.deltas[:4])
    generator.sketch.fit(members, members + 1e6, 0.5)  # as far apart as that, everything is a copy
    with pytest.raises(CopyError):
        draw(generator, rows, "one_step")
