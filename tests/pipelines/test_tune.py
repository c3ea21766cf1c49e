"""The search for a routine: what a setting is worth, in which order, and the version that comes of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from torch import Generator
from typer.testing import CliRunner

from metainit import checkpoint
from metainit.card import AdaptationRoutine, Spec
from metainit.domains.base import Tensors
from metainit.domains.registry import build_domain, without_places
from metainit.errors import DataError, MetainitError, RegistryError, SourceError
from metainit.evidence.curves import Start, weights_of
from metainit.evidence.measuring import measure
from metainit.initialization import EVIDENCE_FILE
from metainit.networks import build
from pipelines.flavour import CHECKPOINT
from pipelines.registry import CHAMPION, Registry, Version
from pipelines.search import Objective, Outcome, SearchConfig
from pipelines.study import Study, run_search
from pipelines.tracking import ListSink
from pipelines.trials import setup_of
from pipelines.tune import SEARCH_FILE, Tuned, search, tune
from pipelines.tune_commands import tune as command
from tests.metainit.evidence.toys import BLOB_DOMAIN, NETWORK, Bowls, Level, blobs, write_prior

EXACT = 100.0
"""What the bowls call a distance of 0."""


def objective_on(
    curvatures: list[float],
    centres: list[float],
    routine: AdaptationRoutine | None = None,
    domain: type[Bowls] = Bowls,
    **config: Any,
) -> Objective:
    bowls, network = domain(curvatures, centres), Level()
    start = Start("level", weights_of(network), routine or AdaptationRoutine(steps=2, step_size=0.1))
    tasks = bowls.tasks(0, 0, len(centres))
    return Objective(network, bowls, start, tasks, SearchConfig.model_validate(config))


class TestObjective:
    def test_a_step_of_the_inverse_curvature_is_exact_after_one_step(self) -> None:
        outcome = objective_on([2.0, 2.0], [0.5, -0.3])({"step_size": 0.5})
        assert (outcome.steps, outcome.best_steps) == (1, (1, 1))
        assert outcome.score == pytest.approx(EXACT) and outcome.curve[1] == pytest.approx(EXACT)

    def test_the_number_of_steps_is_the_median_of_the_tasks_own(self) -> None:
        """With a step size of 1, curvature h leaves (1 - h)^k: best at step 1 for 1, at step 0 for 2.5."""
        objective = objective_on([1.0, 1.0, 2.5, 2.5, 2.5], [0.5] * 5, max_steps=6, patience=2)
        outcome = objective({"step_size": 1.0})
        assert outcome.best_steps == (1, 1, 0, 0, 0) and outcome.steps == 0
        apart = -10 * math.log10(0.25)
        assert outcome.score == pytest.approx(apart) and outcome.curve[0] == pytest.approx(apart)

    def test_all_tasks_are_scored_at_the_same_step(self) -> None:
        objective = objective_on([1.0, 0.5], [0.5, 0.5], max_steps=3, patience=5)
        outcome = objective({"step_size": 1.0})
        assert outcome.best_steps == (1, 3) and outcome.steps == 2
        rest = [1e-10, (0.5 * 0.25) ** 2 + 1e-10]
        assert outcome.score == pytest.approx(np.mean([-10 * math.log10(r) for r in rest]), rel=1e-6)

    def test_it_stops_when_no_task_has_improved_for_long_enough(self) -> None:
        outcome = objective_on([1.0], [0.5], max_steps=50, patience=4)({"step_size": 1.0})
        assert len(outcome.curve) == 1 + 1 + 4

    def test_a_fit_that_diverges_is_worth_nothing_from_there(self) -> None:
        outcome = objective_on([1.0], [0.5], max_steps=400, patience=400)({"step_size": 1e3})
        assert outcome.curve[-1] == 0.0 and outcome.steps == 0
        json.loads(outcome.model_dump_json())

    def test_the_baseline_is_the_cards_routine_after_its_steps(self) -> None:
        routine = AdaptationRoutine(steps=3, step_size=0.1, per_tensor={"level": [0.5, 0.1]})
        outcome = objective_on([1.0], [0.5], routine).baseline()
        away = 0.5 * 0.5 * 0.9 * 0.9
        assert outcome.steps == 3 and outcome.score == pytest.approx(-10 * math.log10(away**2 + 1e-10))

    def test_a_found_routine_has_no_learned_step_sizes_and_keeps_the_rest(self) -> None:
        card = AdaptationRoutine(steps=3, step_size=0.1, per_tensor={"level": [0.5]}, adapts=("level",))
        objective = objective_on([1.0], [0.5], card, optimizer="adam")
        routine = objective.routine({"step_size": 0.2, "weight_decay": 1e-3}, steps=7)
        assert routine == AdaptationRoutine(
            optimizer="adam", steps=7, step_size=0.2, weight_decay=1e-3, adapts=("level",)
        )


class Examples(Bowls):
    """Bowls that claim to be examples that can be augmented."""

    def augmented(self, support: Tensors, generator: Generator, probability: float) -> Tensors:
        return support


class TestSpace:
    def test_signals_have_a_step_size_only(self) -> None:
        bowls = Bowls([1.0], [1.0])
        routine = AdaptationRoutine(steps=2, step_size=0.1)
        assert SearchConfig().space(bowls, routine) == {"step_size": (0.1 / 30, 0.1 * 30)}

    def test_labelled_examples_have_augmentation_and_weight_decay_as_well(self) -> None:
        routine = AdaptationRoutine(steps=2, step_size=0.1)
        examples = Examples([1.0], [1.0])
        config = SearchConfig(step_size=(1e-3, 1.0))
        assert set(config.space(examples, routine)) == {"step_size", "augmentation", "weight_decay"}
        assert set(config.model_copy(update={"weight_decay": None}).space(examples, routine)) == {
            "step_size", "augmentation"
        }  # fmt: skip

    @pytest.mark.parametrize(
        "wrong",
        [{"step_size": (1.0, 0.1)}, {"step_size": (0.0, 1.0)}, {"augmentation": (0.0, 2.0)}, {"trial": 3}],
    )
    def test_what_makes_no_sense_is_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="expected|not permitted"):
            SearchConfig.model_validate(wrong)


class TestStudy:
    SPACE = {"step_size": (1e-4, 10.0), "augmentation": (0.0, 0.8)}

    def points(self, **config: Any) -> list[dict[str, float]]:
        settings = SearchConfig.model_validate({"trials": 8, **config})
        study = Study(self.SPACE, settings)
        run_search(
            study,
            settings,
            lambda p: Outcome(score=-p["step_size"] - p["augmentation"], steps=1, best_steps=(), curve=()),
        )
        return [trial.point for trial in study.done]

    @pytest.mark.parametrize("sampler", ["gp", "tpe"])
    def test_the_same_seed_proposes_the_same(self, sampler: str) -> None:
        first, again = self.points(sampler=sampler), self.points(sampler=sampler)
        assert first == again and first != self.points(sampler=sampler, seed=1)
        for point in first:
            assert all(low <= point[k] <= high for k, (low, high) in self.SPACE.items())

    @pytest.mark.parametrize("sampler", ["gp", "tpe"])
    def test_the_model_finds_the_step_size_of_a_bowl(self, sampler: str) -> None:
        config = SearchConfig.model_validate({"trials": 20, "sampler": sampler, "step_size": (1e-3, 10.0)})
        objective = objective_on([2.0] * 3, [0.5, -0.3, 0.8], max_steps=3, patience=3)
        study = Study({"step_size": (1e-3, 10.0)}, config)
        best = run_search(study, config, objective)
        assert best.point["step_size"] == pytest.approx(0.5, rel=0.25)

    def test_the_first_proposal_is_the_one_that_is_given_within_the_ranges(self) -> None:
        given = {"step_size": 99.0, "augmentation": 0.3, "weight_decay": 0.0}
        study = Study(self.SPACE, SearchConfig(), given)
        assert study.ask(1) == [{"step_size": 10.0, "augmentation": 0.3}]

    def test_of_equals_the_one_with_fewer_steps_is_best(self) -> None:
        study = Study(self.SPACE, SearchConfig(trials=3))
        study.ask(3)
        study.tell([Outcome(score=1.0, steps=s, best_steps=(), curve=()) for s in (5, 2, 9)])
        assert study.best.outcome.steps == 2


SEARCH = SearchConfig(trials=6, tasks=3, max_steps=6, patience=6, step_size=(1e-3, 0.1))


def blob_start(folder: Path, step_size: float = 1e-6, routine: bool = True) -> Path:
    """A start for the blobs whose card has a useless step size, and its data beside it."""
    np.savez(folder / "blobs.npz", x=blobs(30))
    spec = Spec(name="image", arguments={**BLOB_DOMAIN.arguments, "data": str(folder / "blobs.npz")})
    network = build(NETWORK, seed=0)
    network.reset_sine_parameters(torch.Generator().manual_seed(0))
    card = AdaptationRoutine(steps=2, step_size=step_size) if routine else None
    (folder / "start").mkdir()
    return write_prior(folder / "start" / CHECKPOINT, weights_of(network), card, domain=spec)


class TestSearch:
    def test_resumes_and_judges_nothing_twice(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        setup = setup_of(blob_start(tmp_path), SEARCH)
        found = search(setup, tmp_path / "trials", on_ray=False)
        files = sorted((tmp_path / "trials" / setup.key).glob("trial-*.json"))
        different = {t.point["step_size"] for t in found.trials}
        assert len(files) == len(different) > 3 and len(found.trials) == SEARCH.trials
        assert found.improved and found.routine.step_size >= 1e-3
        files[2].unlink()
        judged: list[object] = []
        real = Objective.__call__
        monkeypatch.setattr(Objective, "__call__", lambda self, p: judged.append(p) or real(self, p))
        again = search(setup, tmp_path / "trials", on_ray=False)
        assert again == found and len(judged) == 1

    def test_a_step_size_at_the_end_of_its_range_is_named(self, tmp_path: Path) -> None:
        narrow = SEARCH.model_copy(update={"step_size": (1e-5, 1e-4)})
        found = search(setup_of(blob_start(tmp_path), narrow), tmp_path / "trials", on_ray=False)
        assert found.best.point["step_size"] > 5e-5
        assert found.at_the_edge in ((), ("step_size",))

    def test_other_data_than_the_prior_was_learned_on_are_refused(self, tmp_path: Path) -> None:
        path = blob_start(tmp_path)
        stored = checkpoint.load(path)
        source = stored.card.provenance.data.model_copy(update={"fingerprint": "others"})
        provenance = stored.card.provenance.model_copy(update={"data": source})
        checkpoint.save(path, stored.tensors, stored.card.model_copy(update={"provenance": provenance}))
        with pytest.raises(DataError, match="learned on other data.*--data"):
            search(setup_of(path, SEARCH), tmp_path / "trials", on_ray=False)

    def test_a_card_without_a_routine_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="names no routine, which a search needs"):
            setup_of(blob_start(tmp_path, routine=False), SEARCH)

    def test_of_a_segmentation_prior_searches_augmentation_and_weight_decay(self, tmp_path: Path) -> None:
        network = Spec(name="unet", arguments={"in_channels": 1, "classes": 2, "width": 4, "depth": 2})
        size = {"source": "synthesised", "height": 16, "width": 16, "channels": 1, "shots": 2, "queries": 1}
        domain = Spec(name="segmentation", arguments={**size, "held_out": 2})
        routine = AdaptationRoutine(steps=1, step_size=1e-4, minibatch=1)
        path = write_prior(
            tmp_path / "seg.safetensors", weights_of(build(network)), routine, network, domain=domain
        )
        config = SearchConfig(trials=3, tasks=2, max_steps=3, patience=3, sampler="tpe", optimizer="adam")
        found = search(setup_of(path, config), tmp_path / "trials", on_ray=False)
        assert found.metric == "iou" and set(found.space) == {"step_size", "augmentation", "weight_decay"}
        assert found.trials[0].point["step_size"] == pytest.approx(1e-4)
        assert found.best.outcome.score >= 0 and found.routine.minibatch == 1

    @pytest.mark.ray
    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.*")
    def test_ray_tune_finds_what_a_search_in_this_process_finds(self, tmp_path: Path) -> None:
        config = SEARCH.model_copy(update={"parallel": 2})
        setup = setup_of(blob_start(tmp_path), config)
        heard: list[int] = []
        on_ray = search(setup, tmp_path / "ray", progress=lambda done: heard.append(len(done)))
        here = search(setup, tmp_path / "here", on_ray=False)
        assert on_ray == here and heard == [2, 4, 6]

    @pytest.mark.ray
    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.*")
    def test_a_trial_that_fails_ends_the_search_with_its_reason(self, tmp_path: Path) -> None:
        """Not the last trial: the ones after it would wait for its answer."""
        from pipelines.tune_on_ray import run_on_tune

        setup = setup_of(blob_start(tmp_path), SEARCH)
        study = Study({"step_size": (1e-3, 0.1)}, SEARCH)
        other = setup.model_copy(update={"checkpoint": str(tmp_path / "missing.safetensors")})
        with pytest.raises(MetainitError, match="a trial failed: .*missing.safetensors"):
            run_on_tune(study, other, tmp_path / "ray")
        assert study.done == []


def registered(folder: Path, step_size: float = 1e-6) -> Version:
    return Registry().register(blob_start(folder, step_size).parent, "blobs")


def run(folder: Path, **changes: Any) -> Tuned:
    arguments: dict[str, Any] = {"folder": folder / "trials", "on_ray": False, "measured": False, **changes}
    return tune("blobs", arguments.pop("config", SEARCH), **arguments)


class TestTune:
    def test_registers_the_same_weights_with_the_found_routine(self, home: Path, tmp_path: Path) -> None:
        before, sink = registered(tmp_path), ListSink()
        result = run(tmp_path, sink=sink)
        assert result.version is not None and result.version.version == before.version + 1
        registry = Registry()
        old, new = (registry.download(v, tmp_path / v.reference) for v in (before, result.version))
        first, second = (checkpoint.load(f / CHECKPOINT) for f in (old, new))
        assert all(torch.equal(v, second.weights[k]) for k, v in first.weights.items())
        assert second.card.routine == result.found.routine != first.card.routine
        assert "routine searched from blobs/1: 6 trials on 3 validation tasks" in second.card.notes
        assert json.loads((new / SEARCH_FILE).read_text())["best"]["point"] == result.found.best.point
        assert sink.params["search.trials"] == 6 and sink.params["tuned"] == "blobs/1"
        assert [step for step, m in sink.metrics if "trial.score" in m] == list(range(6))
        assert result.decision is not None and "no evidence" in result.decision.reason

    def test_measures_the_result_as_the_version_before_it(self, home: Path, tmp_path: Path) -> None:
        registered(tmp_path)
        result = run(tmp_path, measured=True, controls=("kaiming",), sink=ListSink())
        assert result.version is not None
        evidence = Registry().evidence(result.version)
        assert evidence is not None and result.found.routine.steps in evidence["steps"]
        assert {c["source"] for c in evidence["curves"]} == {"checkpoint", "kaiming"}
        assert result.decision is not None and "kaiming" in result.decision.reason

    def test_a_champion_that_was_measured_after_other_steps_is_measured_again_and_beaten(
        self, home: Path, tmp_path: Path
    ) -> None:
        folder = blob_start(tmp_path).parent
        spec = checkpoint.load(folder / CHECKPOINT).card.domain
        assert spec is not None
        evidence = measure(
            folder / CHECKPOINT, build_domain(spec), (0, 2), 4,
            controls=("kaiming",), seeds=1, domain_spec=without_places(spec),
        )  # fmt: skip
        evidence.to_json(folder / EVIDENCE_FILE)
        registry = Registry()
        registry.set_alias(registry.register(folder, "blobs"), CHAMPION)
        longer = SEARCH.model_copy(update={"max_steps": 9, "patience": 9, "step_size": (1e-3, 0.01)})
        notes: list[str] = []
        result = run(
            tmp_path, config=longer, measured=True, controls=("kaiming",), sink=ListSink(), note=notes.append
        )
        assert result.found.routine.steps not in evidence.record.steps
        assert "measuring blobs/1 again" in notes
        assert result.decision is not None
        assert result.decision.reason.startswith("better than the champion by")
        assert (result.decision.alias, result.decision.against) == (CHAMPION, "blobs/1")
        assert result.version is not None
        assert registry.aliases("blobs")[CHAMPION] == result.version.version

    def test_a_routine_that_is_as_good_already_stays(self, home: Path, tmp_path: Path) -> None:
        registered(tmp_path, step_size=0.02)
        worse = SEARCH.model_copy(update={"step_size": (1e-9, 1e-8), "trials": 2, "max_steps": 2})
        result = run(tmp_path, config=worse)
        assert not result.found.improved and result.version is None
        assert result.found.routine == AdaptationRoutine(steps=2, step_size=0.02)
        assert len(Registry().versions("blobs")) == 1

    def test_an_unknown_name_gets_a_suggestion(self, home: Path, tmp_path: Path) -> None:
        registered(tmp_path)
        with pytest.raises(RegistryError, match="did you mean 'blobs'"):
            tune("blob", SEARCH)


class TestCommand:
    def call(self, *arguments: str) -> Any:
        app = typer.Typer()
        app.command()(command)
        return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)

    @pytest.mark.parametrize(
        ("setting", "says"),
        [("trials", "expected key=value"), ("trails=3", "trails"), ("step_size=[2, 1]", "the first below")],
    )
    def test_a_wrong_setting_is_bad_usage(self, setting: str, says: str) -> None:
        result = self.call("blobs", "--set", setting)
        assert result.exit_code == 2 and says in result.output.replace("\n", " ")

    def test_answers_in_words_and_in_json(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        found = search(setup_of(blob_start(tmp_path), SEARCH), tmp_path / "trials", on_ray=False)
        monkeypatch.setattr("pipelines.tune.tune", lambda *_, **__: Tuned(found, None, None))
        words = self.call("blobs")
        assert words.exit_code == 0 and "with the best of 6 trials" in words.output
        answer = json.loads(self.call("blobs", "--json").output)
        assert answer["metric"] == "psnr" and answer["after"] > answer["before"]
