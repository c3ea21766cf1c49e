"""`measure`: what it reports follows from the values it measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.io
import torch

import metainit
from metainit import checkpoint
from metainit.card import AdaptationRoutine, DataSource, Provenance, Spec
from metainit.domains.ct import CTConfig, CTDomain
from metainit.domains.image import ImageConfig, ImageDomain
from metainit.errors import DataError, MismatchError, RecipeError, SourceError
from metainit.evidence.curves import Bench, Start, weights_of
from metainit.evidence.measuring import Evidence, held_out, measure
from metainit.evidence.record import Comparison, Curve, EvidenceRecord, Headline
from metainit.evidence.statistics import Values, bootstrap, paired_bootstrap
from metainit.initialization import load
from metainit.networks import build, fitted_spec
from tests.metainit.evidence.toys import (
    BLOB_DOMAIN,
    NETWORK,
    SIDE,
    blob_domain,
    blob_prior,
    blobs,
    write_prior,
)

STEPS = [0, 1, 2, 4]
CONTROLS = ("kaiming", "siren", "shuffled")
FEW = ("kaiming",)


@pytest.fixture(scope="module")
def domain() -> ImageDomain:
    return blob_domain()


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blob_prior(tmp_path_factory.mktemp("prior"))


@pytest.fixture(scope="module")
def evidence(prior: Path, domain: ImageDomain) -> Evidence:
    return measure(prior, domain, STEPS, controls=CONTROLS, seeds=2, tuning_tasks=3)


def values_of(curve: Curve) -> Values:
    return np.asarray(curve.values)


def the_candidate(record: EvidenceRecord) -> Curve:
    (found,) = (c for c in record.curves if c.role == "candidate")
    return found


def headline_of(evidence: Evidence) -> Headline:
    assert evidence.headline is not None
    return evidence.headline


def untuned(prior: Path, domain: ImageDomain, steps: list[int]) -> Values:
    """The prior's values by the shortest way."""
    start = load(prior)
    stored = checkpoint.load(prior)
    network = start.init_(build(NETWORK))
    assert stored.card.routine is not None
    mine = Start("prior", weights_of(network), stored.card.routine, stored.step_sizes)
    found = Bench(network, domain).curve(mine, stored.card.routine, held_out(domain, "test", 64), steps)
    return found["psnr"]


def test_the_candidate_is_the_prior_with_the_routine_of_its_card(
    evidence: Evidence, prior: Path, domain: ImageDomain
) -> None:
    curve = the_candidate(evidence.record)
    assert curve.source == load(prior).card.name == "blobs-0"
    assert curve.routine["steps"] == 2 and curve.routine["per_parameter"]
    np.testing.assert_allclose(values_of(curve)[0], untuned(prior, domain, STEPS), atol=6e-5)


def test_every_curve_sums_its_own_values_up(evidence: Evidence) -> None:
    record = evidence.record
    assert [c.source for c in record.curves] == ["blobs-0", "kaiming", "siren", "shuffled"]
    for curve in record.curves:
        values = values_of(curve)
        assert values.shape == (1 if curve.role == "candidate" else 2, len(record.task_ids), len(STEPS))
        for index in range(len(STEPS)):
            expected = bootstrap(values[:, :, index])
            found = (curve.mean[index], curve.low[index], curve.high[index])
            assert found == pytest.approx(tuple(expected), abs=2e-3)
        assert list(curve.further) == ["ssim"]
        assert len(curve.further["ssim"]) == len(STEPS) and 0 < curve.further["ssim"][-1] <= 1
        if curve.role == "control":
            assert list(curve.routine) == ["1", "2", "4"]
            assert curve.routine["4"]["steps"] == 4


def test_the_headline_is_the_candidate_after_its_own_steps_against_the_best_control(
    evidence: Evidence,
) -> None:
    record, headline = evidence.record, headline_of(evidence)
    at = STEPS.index(2)
    mine = values_of(the_candidate(record))[:, :, at]
    controls = {c.source: values_of(c)[:, :, at] for c in record.curves if c.role == "control"}
    best = max(controls, key=lambda name: float(controls[name].mean()))
    assert (headline.steps, headline.control, headline.metric) == (2, best, "psnr")
    assert headline.value == pytest.approx(float(mine.mean()), abs=1e-4)
    assert headline.control_value == pytest.approx(float(controls[best].mean()), abs=1e-4)
    expected = paired_bootstrap(mine, controls[best])
    assert (headline.gain, headline.low, headline.high) == pytest.approx(tuple(expected), abs=2e-3)
    assert (headline.tasks, headline.seeds) == (6, 1)
    assert headline.low > 0  # the blobs are easy for a prior that knows them


def test_comparisons_and_when_a_control_draws_level(evidence: Evidence) -> None:
    record = evidence.record
    mine = values_of(the_candidate(record))
    controls = {c.source: values_of(c) for c in record.curves if c.role == "control"}
    assert [(c.control, c.steps) for c in record.comparisons] == [(n, s) for n in controls for s in STEPS]
    levels: set[int | None] = set()
    for comparison in record.comparisons:
        at = STEPS.index(comparison.steps)
        other = controls[comparison.control]
        gain = mine[:, :, at].mean() - other[:, :, at].mean()
        assert comparison.gain == pytest.approx(float(gain), abs=1e-3)
        assert comparison.low <= comparison.gain <= comparison.high
        reached = [s for i, s in enumerate(STEPS) if other[:, :, i].mean() >= mine[:, :, at].mean()]
        assert comparison.draws_level_at == (reached[0] if reached else None)
        levels.add(comparison.draws_level_at)
    assert None in levels


def test_json_round_trip(evidence: Evidence, tmp_path: Path) -> None:
    evidence.to_json(tmp_path / "a.json")
    again = Evidence.from_json(tmp_path / "a.json")
    assert again.record == evidence.record and again.table() == evidence.table()
    again.to_json(tmp_path / "b.json")
    text = (tmp_path / "a.json").read_bytes()
    assert text == (tmp_path / "b.json").read_bytes()
    value = json.loads(text)
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    assert text.decode() == canonical + "\n"
    assert value["schema_version"] == 2
    assert value["data_fingerprint"] == blob_domain().fingerprint()
    assert value["network"] == fitted_spec(NETWORK, blob_domain()).model_dump()


def test_the_same_measurement_gives_the_same_bytes(prior: Path, domain: ImageDomain, tmp_path: Path) -> None:
    for name in ("a", "b"):
        found = measure(prior, blob_domain(), [0, 2], controls=FEW, seeds=2, tuning_tasks=2)
        found.to_json(tmp_path / f"{name}.json")
        found.plot(tmp_path / f"{name}.png")
    for suffix in ("json", "png"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_group_of_checkpoints_is_one_method_with_seeds(
    prior: Path, domain: ImageDomain, tmp_path: Path
) -> None:
    other = blob_prior(tmp_path, seed=1, steps=20)
    found = measure([[prior, other]], domain, [0, 2], controls=FEW, seeds=3, tuning_tasks=2)
    curve = the_candidate(found.record)
    assert curve.source == "blobs-0" and headline_of(found).seeds == 2
    values = values_of(curve)
    assert values.shape == (2, 6, 2)
    for row, path in enumerate((prior, other)):
        np.testing.assert_allclose(values[row], untuned(path, domain, [0, 2]), atol=6e-5)
    assert len(values_of(found.record.curves[1])) == 3


def test_sources_beside_the_candidate_are_controls(prior: Path, domain: ImageDomain) -> None:
    found = measure([prior, "kaiming"], domain, [0, 2], controls=(*FEW, "siren"), seeds=1, tuning_tasks=2)
    assert [(c.source, c.role) for c in found.record.curves] == [
        ("blobs-0", "candidate"), ("kaiming", "control"), ("siren", "control"),
    ]  # fmt: skip


def test_without_a_learned_start_there_is_no_headline(domain: ImageDomain, tmp_path: Path) -> None:
    found = measure(["siren"], domain, [0, 1], network=NETWORK, controls=FEW, seeds=2, tuning_tasks=2)
    assert found.headline is None and found.record.comparisons == []
    assert [len(c.values) for c in found.record.curves] == [2, 2]
    assert "after" not in found.table().splitlines()[-1]
    found.plot(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000
    task = held_out(domain, "test", 1)
    with pytest.raises(SourceError, match="reconstructions need the starts"):
        found.plot_reconstructions(tmp_path / "strip.png", domain, task)


def test_a_fit_without_a_routine_is_tuned_like_a_control(domain: ImageDomain, tmp_path: Path) -> None:
    weights = weights_of(build(NETWORK, seed=1))
    path = write_prior(tmp_path / "fit.safetensors", weights, None, kind="weights")
    found = measure(path, domain, [0, 1], controls=(), seeds=2, tuning_tasks=2)
    (curve,) = found.record.curves
    assert (curve.source, curve.role, list(curve.routine)) == ("fit", "control", ["1"])


def test_a_second_prior_is_a_source_and_the_first_learned_one_the_candidate(
    prior: Path, domain: ImageDomain, tmp_path: Path
) -> None:
    other = blob_prior(tmp_path, steps=5)
    found = measure(["siren", prior, other], domain, [0, 2], controls=FEW, seeds=1, tuning_tasks=2)
    record = found.record
    assert [(c.source, c.role) for c in record.curves] == [
        ("siren", "control"), ("blobs-0", "candidate"), ("blobs-0 (2)", "source"), ("kaiming", "control"),
    ]  # fmt: skip
    assert record.candidate_digest == load(prior).card.digest
    assert headline_of(found).control in ("siren", "kaiming")
    assert {c.control for c in record.comparisons} == {"siren", "blobs-0 (2)", "kaiming"}
    assert found.table().splitlines()[2].startswith("blobs-0 ")
    found.plot(tmp_path / "curves.png")


def test_a_start_that_learns_from_signals_gets_the_training_ones(domain: ImageDomain) -> None:
    found = measure(["strainer"], domain, [0, 1], network=NETWORK, controls=(), seeds=1, tuning_tasks=2)
    assert [c.source for c in found.record.curves] == ["strainer"]


def test_computed_starts_see_whole_images_where_training_sees_some_of_their_pixels() -> None:
    config = ImageConfig.model_validate({**BLOB_DOMAIN.arguments, "points": 16})
    some = ImageDomain.from_arrays(blobs(30), config)
    assert some.tasks(0, 0, 1).support["values"].shape[1] == 16
    assert some.observation(4).shape == (4, len(some.example_inputs()), 1)
    names = ["siren", "strainer"]
    found = measure(names, some, [0, 1], network=NETWORK, controls=(), seeds=1, tuning_tasks=2)
    assert [c.source for c in found.record.curves] == names


def test_intervals_count_photographs_and_not_crops() -> None:
    config = ImageConfig(
        height=SIDE, width=SIDE, channels=1, fit="random_crop", test_share=0.2, held_out_crops=12
    )
    crops = ImageDomain.from_arrays(blobs(10, side=2 * SIDE), config)
    record = measure("siren", crops, [0], network=NETWORK, controls=(), seeds=1).record
    assert sorted(set(record.task_groups)) == ["array[8]", "array[9]"] and len(record.task_groups) == 12
    (curve,) = record.curves
    expected = bootstrap(values_of(curve)[:, :, 0], groups=record.task_groups)
    assert (curve.low[0], curve.high[0]) == pytest.approx((expected.low, expected.high), abs=2e-4)
    assert "over 12 held-out tasks in 2 groups and seeds" in Evidence(record).table()


@pytest.mark.parametrize(
    ("fingerprint", "description", "says"),
    [
        ("", "faces", None),
        (blob_domain().fingerprint(), "faces", None),
        ("f" * 64, "faces", "blobs-0 was learned on other data (faces)"),
        ("f" * 64, "", "blobs-0 was learned on other data (ffffffffffff)"),
    ],
)
def test_a_prior_of_other_data_may_have_been_trained_on_the_tasks(
    fingerprint: str, description: str, says: str | None, prior: Path, domain: ImageDomain, tmp_path: Path
) -> None:
    data = DataSource(description=description, fingerprint=fingerprint)
    stored = checkpoint.load(prior)
    card = stored.card.model_copy(update={"provenance": Provenance(data=data)})
    checkpoint.save(tmp_path / "blobs-0.safetensors", stored.tensors, card)
    found = measure([tmp_path / "blobs-0.safetensors", "siren"], domain, [0, 1], 2, controls=(), seeds=1)
    expected = {} if says is None else {"blobs-0": description or "f" * 12}
    assert found.record.other_data == expected
    lines = [line for line in found.table().splitlines() if "other data" in line]
    assert lines == ([] if says is None else [f"{says}: it may have been trained on some of these tasks"])


def test_the_network_takes_its_outputs_from_the_domain() -> None:
    phantoms = CTDomain(CTConfig(size=8, held_out=2))
    tiny = Spec(name="siren", arguments={"width": 4, "depth": 2})
    found = measure("siren", phantoms, [0], 1, network=tiny, controls=(), seeds=1)
    assert found.record.network is not None and found.record.network.arguments["out_features"] == 1
    wrong = Spec(name="siren", arguments={"width": 4, "depth": 2, "out_features": 3})
    with pytest.raises(RecipeError, match="out_features is 3, the domain has 1"):
        measure("siren", phantoms, [0], 1, network=wrong, controls=(), seeds=1)


def test_controls_that_do_not_cover_the_network_lack_a_row(domain: ImageDomain) -> None:
    network = Spec(name="fourier_mlp", arguments={"width": 8, "depth": 3, "frequencies": 4})
    names = ("siren", "orthogonal", "siren_scaled")
    found = measure("kaiming", domain, [0, 1], network=network, controls=names, seeds=2, tuning_tasks=2)
    assert [c.source for c in found.record.curves] == ["kaiming", "orthogonal"]
    assert set(found.record.left_out) == {"siren", "siren_scaled"}


def test_a_control_that_the_network_cannot_render_is_left_out_with_its_reason(
    domain: ImageDomain, tmp_path: Path
) -> None:
    """Large weights make noise of the coordinates, to which no fit comes near."""
    network = NETWORK.model_copy(update={"arguments": {**NETWORK.arguments, "width": 3}})
    weights = {k: 40 * v for k, v in weights_of(build(network, seed=3)).items()}
    routine = AdaptationRoutine(steps=1, step_size=0.001)
    wild = write_prior(tmp_path / "wild.safetensors", weights, routine, network)
    controls = ("matched", "kaiming")
    found = measure(wild, domain, [0, 1], controls=controls, seeds=1, tuning_tasks=2)
    assert [c.source for c in found.record.curves] == ["wild", "kaiming"]
    assert list(found.record.left_out) == ["matched"]
    assert "left out: control 'matched': the network renders its target to" in found.table()


def test_matched_and_mean_are_measured_where_they_can_be_made(prior: Path, domain: ImageDomain) -> None:
    names = ("mean_signal", "shuffled")
    found = measure(prior, domain, [0, 1], controls=names, seeds=2, tuning_tasks=2)
    assert [c.source for c in found.record.curves] == ["blobs-0", *names] and found.record.left_out == {}
    before = {c.source: c.mean[0] for c in found.record.curves}
    assert before["mean_signal"] > before["shuffled"]


def test_the_priors_own_number_of_steps_is_always_reported(prior: Path, domain: ImageDomain) -> None:
    found = measure(prior, domain, [0], controls=FEW, seeds=1, tuning_tasks=2)
    assert found.record.steps == [0, 2] and headline_of(found).steps == 2


def test_the_untouched_starts_alone(domain: ImageDomain) -> None:
    found = measure("siren", domain, [0], network=NETWORK, controls=FEW, seeds=1, tuning_tasks=2)
    assert [(c.source, len(c.mean), c.routine) for c in found.record.curves] == [
        ("siren", 1, {}), ("kaiming", 1, {}),
    ]  # fmt: skip


def test_seeds_are_how_many_or_which(domain: ImageDomain) -> None:
    options: dict[str, Any] = {"network": NETWORK, "controls": (), "tuning_tasks": 2}
    found = measure("siren", domain, [0], seeds=(4, 1), **options)
    assert found.record.seeds == [4, 1]
    one = measure("siren", domain, [0], seeds=2, **options)
    assert one.record.seeds == [0, 1]
    assert found.record.curves[0].values[1] == one.record.curves[0].values[1]
    assert found.record.curves[0].values[0] != one.record.curves[0].values[0]


def test_a_prior_is_measured_in_its_own_network_only(prior: Path, domain: ImageDomain) -> None:
    other = NETWORK.model_copy(update={"arguments": {**NETWORK.arguments, "omega": 20}})
    with pytest.raises(MismatchError, match="omega"):
        measure(prior, domain, [0, 1], network=other, controls=FEW, seeds=1)


def test_evidence_beside_other_weights_is_not_taken_for_theirs(
    evidence: Evidence, prior: Path, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    evidence.to_json(tmp_path / "one" / "evidence.json")
    shutil.copyfile(prior, tmp_path / "one" / "prior.safetensors")
    assert load(tmp_path / "one" / "prior.safetensors").evidence == evidence.record.model_dump(mode="json")
    weights = weights_of(build(NETWORK, seed=1))
    other = write_prior(tmp_path / "one" / "other.safetensors", weights, None)
    assert load(other).evidence is None


def test_steps_are_sorted_and_tasks_are_as_many_as_asked_for(prior: Path, domain: ImageDomain) -> None:
    found = measure(prior, domain, (2, 0, 2), tasks=3, controls=FEW, seeds=1, tuning_tasks=2)
    assert found.record.steps == [0, 2]
    assert found.record.task_ids == list(domain.tasks(0, 0, 3, "test").ids)


def test_reconstructions_are_what_was_measured(
    evidence: Evidence, domain: ImageDomain, tmp_path: Path
) -> None:
    task = held_out(domain, "test", 6)[4:5]
    measured = evidence.starts["blobs-0"]
    images, texts = measured.renderings(build(NETWORK), domain, task, STEPS)
    truth = domain.target({k: v[0] for k, v in task.query.items()})
    for index, (image, text) in enumerate(zip(images, texts, strict=True)):
        value = values_of(the_candidate(evidence.record))[0, 4, index]
        mse = float((image - truth).square().mean())
        assert -10 * np.log10(mse) == pytest.approx(value, abs=0.01)
        assert text == f"{value:.1f} dB"
    control = evidence.starts["siren"]
    _, texts = control.renderings(build(NETWORK), domain, task, STEPS)
    (curve,) = (c for c in evidence.record.curves if c.source == "siren")
    assert texts == [f"{v:.1f} dB" for v in values_of(curve)[0, 4]]
    evidence.plot_reconstructions(tmp_path / "strip.png", domain, task)
    pixels = skimage.io.imread(tmp_path / "strip.png")
    assert pixels.shape[0] > 200 and pixels.std() > 10
    read = Evidence(evidence.record)
    with pytest.raises(SourceError, match="reconstructions need the starts"):
        read.plot_reconstructions(tmp_path / "other.png", domain, task)


def test_progress_names_what_is_measured(
    prior: Path, domain: ImageDomain, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[str] = []
    monkeypatch.setattr("metainit.evidence.measuring.sparingly", lambda tell: tell)
    measure(prior, domain, [0, 1], controls=FEW, seeds=1, tuning_tasks=2, progress=heard.append)
    said = [text for text in heard if text.startswith("measuring")]
    assert said == [
        "measuring blobs-0 (1 of at most 2)",
        "measuring blobs-0, 1 of 1",
        "measuring kaiming (2 of at most 2)",
        "measuring kaiming, 1 of 1",
    ]
    searched = {text.split(" ")[1] for text in heard if text.startswith("kaiming: ")}
    assert searched == {"sgd", "adam"} and len(said) < len(heard)


def test_a_network_has_to_be_named(domain: ImageDomain, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"network=Spec\(name=\.\.\., arguments"):
        measure("siren", domain)
    path = write_prior(
        tmp_path / "p.safetensors",
        weights_of(build(NETWORK)),
        AdaptationRoutine(steps=1, step_size=0.1),
        network=None,
    )
    with pytest.raises(SourceError, match="no source has a card that names a network"):
        measure(path, domain)
    measure(path, domain, [0, 1], network=NETWORK, controls=FEW, seeds=1, tuning_tasks=2)


class NoTests(ImageDomain):
    """Images of which none is held out for reporting."""

    def size(self, split: str) -> int | None:
        return 0 if split == "test" else 3


def test_an_empty_split_is_named(prior: Path, domain: ImageDomain) -> None:
    empty = NoTests(domain.config, [])
    with pytest.raises(DataError, match="the domain has no test tasks: give more data"):
        measure(prior, empty)


def test_an_unknown_source_is_named(domain: ImageDomain) -> None:
    with pytest.raises(SourceError, match="did you mean 'kaiming'"):
        metainit.measure(["kaimin"], domain, network=NETWORK)


def test_a_group_that_mixes_kinds_is_refused(prior: Path, domain: ImageDomain) -> None:
    for group in ([str(prior), "siren"], ["siren", str(prior)]):
        with pytest.raises(SourceError, match="a group holds checkpoints of one method"):
            measure([group], domain, [0, 1], network=NETWORK, controls=FEW, seeds=1)


@pytest.mark.parametrize("steps", [(), (-1, 2)])
def test_steps_that_are_none_are_refused(steps: tuple[int, ...], prior: Path, domain: ImageDomain) -> None:
    with pytest.raises(DataError, match="steps"):
        measure(prior, domain, steps)


def test_measuring_leaves_the_global_random_state_alone(prior: Path, domain: ImageDomain) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    measure(prior, domain, [0, 1], controls=FEW, seeds=1, tuning_tasks=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_comparison_is_a_closed_record() -> None:
    with pytest.raises(ValueError, match="extra"):
        Comparison.model_validate(
            {"control": "a", "steps": 1, "gain": 1, "low": 0, "high": 2, "draws_level_at": None, "extra": 1}
        )
