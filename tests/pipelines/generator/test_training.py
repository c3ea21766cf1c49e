"""The family of generators: recipes, what is prepared of a zoo, and that runs go on and agree."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.io
import torch
from safetensors.torch import load_file

from hypernets.generator.checkpoints import read_generator
from hypernets.generator.conditions import conditions_of
from hypernets.generator.description import description_of
from hypernets.generator.start import Generated
from hypernets.generator.usable import LEAST_MEMBERS
from hypernets.generator.zoo import read_zoo
from metainit import checkpoint
from metainit.domains.base import Observing
from metainit.errors import DataError, RecipeError, RegistryError
from metainit.initialization import load
from metainit.networks import build
from pipelines.folder import CHECKPOINT
from pipelines.generator.evidence import illustrate, measure_generator
from pipelines.generator.preparation import conditions_config, prepare_generator, tasks_of
from pipelines.generator.recipe import GeneratorRecipe, Told
from pipelines.recipe import load_recipe, read_recipe
from pipelines.tracking import ListSink
from pipelines.train import train
from tests.pipelines import training_process
from tests.pipelines.generator.chains import Chain, generator_recipe, trained, zoo_in
from tests.pipelines.test_train import in_processes

GENERATOR, ZOO = "gen-digits-debug", "zoo-digits-debug"

WRONG = [
    ("generator.widht=3", ["generator.widht", "did you mean 'width'"]),
    ("generator.denoiser=mpl", ["generator.denoiser", "mlp"]),
    ("generator.conditions={classes: 3}", ["generator.conditions follow from the zoo and from told"]),
    ("training.step=3", ["training.step", "did you mean 'steps'"]),
    ("told.kinds=[clas]", ["told.kinds", "clas"]),
    ("told.text=ngram", ["told.text", "did you mean 'ngrams'"]),
    ("told.kinds=[class, class]", ["told.kinds", "each once"]),
    ("domain.name=image", ["domain.name is that of the zoo"]),
    ("evidence.tunings=3", ["evidence.tunings", "did you mean 'tuning'"]),
    ("start=mena", ["start", "mean"]),
    ("network.width=3", ["network is no key"]),
    ("family=ghn", ["family", "'generator'"]),
]


@pytest.mark.parametrize(("override", "words"), WRONG, ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_named(override: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(GENERATOR, [override])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("part", ["mean", "one_step"])
def test_a_generator_cannot_give_what_it_does_not_have(part: str) -> None:
    with pytest.raises(RecipeError, match=f"start is '{part}', but generator.{part} is false"):
        load_recipe(GENERATOR, [f"start={part}", f"generator.{part}=false"])


def test_the_recipe_reads_itself_back_and_tells_no_place() -> None:
    places = ["domain.data=/data/mine", "zoo=/zoos/mine"]
    recipe = load_recipe("gen-images", places)
    assert read_recipe(recipe.dump()) == recipe and recipe.dump()["family"] == "generator"
    assert recipe.places == {"domain.data": "/data/mine", "zoo": "/zoos/mine"}
    assert (
        recipe.recorded()
        == load_recipe("gen-images", [p.replace("mine", "yours") for p in places]).recorded()
    )
    assert load_recipe(GENERATOR).recorded()["zoo"] == ZOO


# --- what is prepared


def test_a_zoo_that_is_not_there_is_named(home: Path) -> None:
    with pytest.raises(RegistryError, match="no finished zoo is called 'zoo-digts'.*metainit zoo build"):
        prepare_generator(generator_recipe(GENERATOR, "zoo-digts"))


def test_a_zoo_of_other_data_is_refused(digits: Chain) -> None:
    with pytest.raises(DataError, match="these are not the data of the zoo 'zoo-digits-debug'"):
        digits.prepared("domain.flip=true")


def test_a_zoo_does_not_know_everything_and_may_be_too_small(digits: Chain, tmp_path: Path) -> None:
    nameless = replace(digits.prepared().members, conditions={}, texts=())
    with pytest.raises(RecipeError, match="told.kinds: the zoo has no class; it has none"):
        conditions_config(Told(), nameless, digits.prepared().domain)
    small = zoo_in(tmp_path / "small", ZOO, digits.prior, f"members={LEAST_MEMBERS - 1}")
    with pytest.raises(DataError, match=f"at least {LEAST_MEMBERS} members"):
        trained(generator_recipe(GENERATOR, small), tmp_path / "run")


def test_the_task_loss_needs_steps_that_the_base_has(digits: Chain, tmp_path: Path) -> None:
    weighed = "training.task_weight=1.0"
    with pytest.raises(RecipeError, match="after 3 steps, but the base has 2 steps of sgd"):
        trained(digits.recipe(weighed, "task_after=[0, 3]"), tmp_path / "steps")
    assert digits.prepared().task_loss() is None
    bare = checkpoint.load(digits.prior)
    card = bare.card.model_copy(update={"routine": None, "name": "bare"})
    checkpoint.save(tmp_path / "bare.safetensors", bare.weights, card)
    fit = "fit={optimizer: adam, step_size: 1e-3, steps: 2}"
    zoo = zoo_in(tmp_path / "zoo", ZOO, tmp_path / "bare.safetensors", fit)
    with pytest.raises(RecipeError, match="after 1 steps, but the base has no routine"):
        trained(generator_recipe(GENERATOR, zoo, weighed, "task_after=[1]"), tmp_path / "routine")
    loss = prepare_generator(generator_recipe(GENERATOR, zoo, weighed)).task_loss()
    assert loss is not None


def test_the_tasks_of_members_are_those_that_were_fitted(digits: Chain, classes: Chain) -> None:
    for chain in (digits, classes):
        prepared = chain.prepared()
        # Not in their order, and not all of them, as where some fits are left out.
        members = prepared.members[torch.tensor([17, 3, 20, 0, 5])]
        tasks = tasks_of(prepared.zoo, members, prepared.domain)
        assert tasks.ids == members.ids and isinstance(prepared.domain, Observing)
        seen = prepared.domain.observed(tasks.support, tasks.shared)
        torch.testing.assert_close(seen.float(), members.conditions["observation"], rtol=0, atol=0)


def test_a_zoo_that_does_not_say_how_its_tasks_were_drawn_has_no_task_loss(digits: Chain) -> None:
    prepared = digits.prepared()
    zoo = read_zoo(digits.zoo)
    silent = zoo.manifest.model_copy(update={"recipe": {}})
    with pytest.raises(DataError, match="does not say how its tasks were drawn.*task_weight to 0"):
        tasks_of(type(zoo)(zoo.folder, silent, zoo.base), prepared.members, prepared.domain)


# --- training


def test_a_debug_recipe_ends_in_seconds(digits: Chain, tmp_path: Path) -> None:
    sink, seen = ListSink(), []
    recipe = digits.recipe()
    result = train(recipe, tmp_path, sink=sink, progress=lambda *news: seen.append(news))
    stored = checkpoint.load(result.checkpoint)
    card, zoo = stored.card, read_zoo(digits.zoo)
    assert (card.kind, card.name, card.method.name) == ("generator", GENERATOR, "weight diffusion")
    assert (card.network, card.domain) == (zoo.manifest.network, zoo.manifest.domain)
    assert card.routine == zoo.base.card.routine and card.provenance.data == zoo.manifest.data
    told = {k: v for k, v in card.provenance.recipe.items() if k not in GeneratorRecipe.FOLLOWING}
    assert told == recipe.pinned().recorded()
    assert str(tmp_path) not in card.canonical() and str(digits.zoo) not in card.canonical()
    said = description_of(card)
    assert said.start == "sample" and said.config.conditions.class_names == tuple("0123456789")
    _, base = read_generator(stored)
    assert base.state.keys() == zoo.base.weights.keys()
    assert all(torch.equal(value, zoo.base.weights[name]) for name, value in base.state.items())
    assert stored.step_sizes.keys() == zoo.base.step_sizes.keys()
    assert [step for step, metrics in sink.metrics if "loss" in metrics] == list(range(1, 13))
    assert [step for step, metrics in sink.metrics if "validation_mean_error" in metrics] == [6, 12]
    assert [news[0] for news in seen] == list(range(1, 13)) and seen[-1][3] == 0


def test_classifiers_are_told_examples_and_give_their_mean(classes: Chain) -> None:
    start = load(str(classes.generator))
    assert isinstance(start, Generated) and start.what == "mean"
    assert start.observed_shape == (3, 2, 1, 8, 8)
    assert start.card.network is not None
    seen = torch.rand(start.observed_shape, generator=torch.Generator().manual_seed(0))
    means, others = (
        [
            torch.cat([p.flatten() for p in start.init_(build(network), seed=s, observation=o).parameters()])
            for network, s, o in cases
        ]
        for cases in (
            [(start.card.network, 0, seen), (start.card.network, 1, seen)],
            [(start.card.network, 0, seen / 2)],
        )
    )
    assert torch.equal(*means) and not torch.equal(means[0], others[0])


def test_your_own_images_are_learned_from_and_have_classes_where_the_zoo_has(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels, labels = rng.random((80, 16, 16, 3), dtype=np.float32), np.arange(80) % 2
    np.savez(tmp_path / "pets.npz", x=pixels, y=labels, class_names=["cats", "dogs"])
    data = f"domain.data={tmp_path / 'pets.npz'}"
    prior = train(load_recipe("image-folder-debug", [data]), tmp_path / "prior", sink=ListSink()).checkpoint
    bare = zoo_in(tmp_path / "bare", "zoo-images-debug", prior, data)
    with pytest.raises(RecipeError, match="told.kinds: the zoo has no class; it has observation"):
        prepare_generator(generator_recipe("gen-images-debug", bare, data))
    zoo = zoo_in(tmp_path / "zoo", "zoo-images-debug", prior, data, "domain.label_array=y")
    start = load(str(trained(generator_recipe("gen-images-debug", zoo, data), tmp_path / "run")))
    assert isinstance(start, Generated)
    assert start.generator.config.conditions.class_names == ("cats", "dogs")
    (one,) = start.generate(1, seed=0, condition="dogs")
    assert one.card.provenance.recipe["condition"] == "dogs"


def test_a_killed_run_resumes_and_ends_with_the_same_bytes(digits: Chain, tmp_path: Path) -> None:
    recipe = digits.recipe("checkpoint_every=4")
    job = {"recipe": recipe.dump(), "folder": str(tmp_path / "killed")}
    assert in_processes(tmp_path, [{**job, "kill_at": 11}]) == [-signal.SIGKILL]
    steps: list[int] = []
    train(recipe, tmp_path / "killed", sink=ListSink(), progress=lambda step, *_: steps.append(step))
    assert steps == [9, 10, 11, 12]
    assert (tmp_path / "killed" / CHECKPOINT).read_bytes() == digits.generator.read_bytes()


def drawn_from(file: Path) -> torch.Tensor:
    """Deltas that a generator draws for two classes."""
    generator, _ = read_generator(checkpoint.load(file))
    conditions = conditions_of(generator.config.conditions, 2, classes=torch.tensor([1, 7]))
    return generator.sample(conditions, [0, 1]).deltas


def test_one_and_two_workers_agree(digits: Chain, tmp_path: Path) -> None:
    # One batch that divides evenly, one that does not, and one that leaves a worker nothing to do.
    recipes = {name: digits.recipe(f"training.batch={n}") for name, n in (("run", 5), ("idle", 1))}
    jobs = {**recipes, "gradient": digits.recipe("training.batch=5")}
    for size in (1, 2):
        folder = tmp_path / str(size)
        order = [
            {"recipe": recipe.dump(), "folder": str(folder / name), "gradient": name == "gradient"}
            for name, recipe in jobs.items()
        ]
        if size == 1:
            training_process.main({"jobs": order})
        else:
            assert in_processes(tmp_path, order, size) == [0] * size
    one, two = tmp_path / "1", tmp_path / "2"
    gradients = [load_file(f / "gradient" / "gradient.safetensors") for f in (one, two)]
    assert float(gradients[0]["count"]) == float(gradients[1]["count"]) == 5
    largest = max(float(g.abs().max()) for k, g in gradients[0].items() if k != "count")
    for key, value in gradients[0].items():
        assert float((value - gradients[1][key]).abs().max()) < 1e-5 * largest
    for name in recipes:
        a, b = (drawn_from(folder / name / CHECKPOINT) for folder in (one, two))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(a.abs().max()))


def test_one_layer_with_a_scale_of_its_own_is_generated_and_measured(digits: Chain, tmp_path: Path) -> None:
    layer = "fit.adapts=[layers.2.weight, layers.2.bias]"
    zoo = zoo_in(tmp_path / "zoo", ZOO, digits.prior, layer)
    recipe = generator_recipe(GENERATOR, zoo, "generator.scale=predicted")
    prepared = prepare_generator(recipe)
    assert prepared.generator.config.parameters == ("layers.2.weight", "layers.2.bias")
    file = trained(recipe, tmp_path / "run")
    base = checkpoint.load(digits.prior).weights
    start = load(str(file))
    assert isinstance(start, Generated)
    for one in start.generate(3, seed=0, condition=4):
        for name, value in one.weights.items():
            assert torch.equal(value, base[name]) != name.startswith("layers.2")
    evidence = measure_generator(prepared, file, lambda text: None, ["zoo_mean"])
    assert {c.role for c in evidence.record.curves} == {"candidate", "source", "control"}
    illustrate(prepared, file, evidence, tmp_path)
    assert skimage.io.imread(tmp_path / "samples.png").std() > 10


def test_a_finished_run_is_not_repeated(digits: Chain) -> None:
    before = digits.generator.stat().st_mtime_ns
    assert trained(digits.recipe(), digits.generator.parent) == digits.generator
    assert digits.generator.stat().st_mtime_ns == before
    with pytest.raises(RecipeError, match=r"another recipe: generator\.depth was 1, is 2"):
        trained(digits.recipe("generator.depth=2"), digits.generator.parent)


def test_class_names_are_texts_where_nothing_else_describes_a_task(digits: Chain, tmp_path: Path) -> None:
    recipe = digits.recipe("told.kinds=[text]")
    prepared = prepare_generator(recipe)
    labels = prepared.members.conditions["class"].tolist()
    assert prepared.members.texts == tuple(str(label) for label in labels)
    start = load(trained(recipe, tmp_path))
    assert isinstance(start, Generated)
    seven, same, other = (start.generate(1, 0, condition=text)[0].weights for text in ("7", "7", "3"))
    name = next(iter(seven))
    assert torch.equal(seven[name], same[name]) and not torch.equal(seven[name], other[name])
    assert measure_generator(prepared, tmp_path / CHECKPOINT, str, ()).record.curves
