"""The search that all starts of a benchmark share."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.choosing import OWN, Search, choose, routine_of
from metainit.card import AdaptationRoutine
from metainit.domains.ct import CTConfig, CTDomain
from metainit.evidence.curves import Bench, Start, weights_of
from metainit.initialization import init_
from metainit.networks import Siren

STEPS = (1, 2, 4)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(Siren(out_features=1, width=8, depth=3), CTDomain(CTConfig(size=16, held_out=4)))


def start(bench: Bench, seed: int, routine: AdaptationRoutine | None = None) -> Start:
    network = init_(Siren(out_features=1, width=8, depth=3), "siren", seed=seed)
    return Start(f"siren-{seed}", weights_of(network), routine)


def test_it_finds_what_trying_everything_finds(bench: Bench) -> None:
    starts = [start(bench, seed) for seed in (0, 1)]
    tasks = bench.domain.tasks(0, 0, 4, "validation")
    grids = {"sgd": (0.01, 0.1), "adam": (1e-3, 1e-2)}
    search = Search(grids, STEPS, (2, 4), screening=4, finalists=8, max_extensions=0)
    found = choose(bench, starts, tasks, search)
    metric = bench.domain.metric
    scores = {
        (s.name, optimizer, rate): bench.curve(s, routine_of(s, optimizer, rate, 4), tasks, STEPS)[metric]
        for s in starts
        for optimizer, rates in grids.items()
        for rate in rates
    }
    for limit, columns in ((2, [0, 1]), (4, [0, 1, 2])):
        best = max(scores, key=lambda s: scores[s].mean(0)[columns].max())
        own = found[limit]
        assert (own["start"], own["optimizer"], own["rate"]) == best
        assert own["steps"] == STEPS[int(scores[best].mean(0)[columns].argmax())]
        assert own["validation"] == pytest.approx(scores[best].mean(0)[columns].max(), abs=1e-3)


def test_the_grid_grows_past_an_edge_that_is_best(bench: Bench) -> None:
    tasks = bench.domain.tasks(0, 0, 2, "validation")
    low = Search({"adam": (1e-4, 3e-4)}, STEPS, (4,), screening=2, finalists=1, max_extensions=8)
    found = choose(bench, [start(bench, 0)], tasks, low)[4]
    # By hand: 15.0 dB at 0.001, 15.9 dB at 0.01, 11.2 dB at 0.1.
    assert 0.003 < found["rate"] < 0.1
    assert found["settings"] > 2


def test_given_settings_are_the_only_ones(bench: Bench) -> None:
    tasks = bench.domain.tasks(0, 0, 2, "validation")
    search = Search({"sgd": (0.01, 0.1)}, STEPS, (4,), screening=2, finalists=1)
    found = choose(bench, [start(bench, 0)], tasks, search, [("siren-0", "adam", 0.001)])[4]
    assert (found["optimizer"], found["rate"], found["settings"]) == ("adam", 0.001, 1)


def test_a_prior_keeps_its_learned_steps(bench: Bench) -> None:
    own = AdaptationRoutine(steps=2, step_size=0.05)
    prior = start(bench, 0, own)
    assert routine_of(prior, OWN, 1.0, 4) == own
    goes_on = routine_of(prior, "adam", 0.001, 4)
    assert goes_on.step_size == own.step_size
    tasks = bench.domain.tasks(0, 0, 2, "validation")
    a, b = (bench.curve(prior, r, tasks, STEPS)[bench.domain.metric] for r in (own, goes_on))
    assert np.array_equal(a[:, :2], b[:, :2])
    assert not np.array_equal(a[:, 2], b[:, 2])
