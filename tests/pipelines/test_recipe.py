from __future__ import annotations

from pathlib import Path

import pytest

from metainit.errors import DataError, MetainitError, RecipeError
from pipelines.recipe import Recipe, load_recipe, read_recipe, recipe_names
from pipelines.safe_yaml import MAX_CHARACTERS, parse_yaml

DEBUG = "image-photos-debug"

# What a user may get wrong, the error, and what its text must contain.
WRONG = [
    ("outer.stepz=3", RecipeError, ["outer.stepz", "did you mean 'steps'"]),
    ("outerr.steps=3", RecipeError, ["outerr", "did you mean 'outer'"]),
    ("network.widht=3", RecipeError, ["network", "widht", "did you mean 'width'"]),
    ("network.name=sirn", RecipeError, ["network", "sirn", "did you mean 'siren'"]),
    ("network.omega=fast", RecipeError, ["network.omega is 'fast'", "number"]),
    ("network.omega=.nan", RecipeError, ["network.omega is nan", "finite"]),
    ("network.omega=0", RecipeError, ["omega=0", "positive"]),
    ("network.offset=[1]", RecipeError, ["network.offset is [1]", "number"]),
    ("network.width=8.5", RecipeError, ["network.width is 8.5", "integer"]),
    ("domain.hight=3", RecipeError, ["domain.hight", "did you mean 'height'"]),
    ("domain.name=imag", RecipeError, ["domain.name", "did you mean 'image'"]),
    ("domain.height=tall", RecipeError, ["domain.height", "tall"]),
    ("domain.points=100000", RecipeError, ["points", "pixels"]),
    ("algorithm.rule=mamel", RecipeError, ["algorithm.rule", "maml", "mamel"]),
    ("algorithm.step_sizes=fixed", RecipeError, ["algorithm", "meta_sgd learns step sizes"]),
    ("outer.steps=-1", RecipeError, ["outer.steps", "-1"]),
    ("outer.steps=many", RecipeError, ["outer.steps", "many"]),
    ("outer.step_size=.nan", RecipeError, ["outer.step_size"]),
    ("outer=3", RecipeError, ["outer", "3"]),
    ("outer.steps.a=1", RecipeError, ["outer.steps is 12", "no keys"]),
    ("start=sirn", RecipeError, ["start", "did you mean 'siren'"]),
    ("name=../../etc", RecipeError, ["name"]),
    ("evidence.steps=[2, 1]", RecipeError, ["evidence.steps", "rising"]),
    ("continuation.step_sze=1", RecipeError, ["continuation.step_sze", "did you mean 'step_size'"]),
    ("schema_version=2", RecipeError, ["schema_version", "2"]),
    ("family=ghn", RecipeError, ["family", "'prior'"]),
    ("outer.steps", RecipeError, ["expected key=value"]),
    ("outer..steps=1", RecipeError, ["expected key=value"]),
    ("outer.steps=[1", RecipeError, ["the value of outer.steps", "not valid YAML"]),
    ("domain.data=???", RecipeError, ["domain.data has to be given"]),
]


@pytest.mark.parametrize(("override", "kind", "words"), WRONG, ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_named(override: str, kind: type[MetainitError], words: list[str]) -> None:
    with pytest.raises(kind) as caught:
        load_recipe(DEBUG, [override])
    for word in words:
        assert word in str(caught.value)


def test_more_views_than_angles_are_refused() -> None:
    with pytest.raises(DataError, match="views is 200, expected 1 to 180"):
        load_recipe("ct-phantoms-debug", ["domain.views=200"])


def test_an_unknown_recipe_is_answered_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'image-photos'"):
        load_recipe("image-photo")
    with pytest.raises(RecipeError, match=r"cannot read the recipe nowhere\.yaml"):
        load_recipe("nowhere.yaml")


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_is_valid_and_reads_itself_back(name: str) -> None:
    needs_data = (
        *("image-folder", "ct-slices", "seg-folder", "seg-clothes", "seg-cells"),
        "ghn-images",
        "zoo-images",
        "gen-images",
    )
    settings = ["domain.data=/data/x"] if name.startswith(needs_data) else []
    recipe = load_recipe(name, settings)
    assert recipe.name == name
    assert read_recipe(recipe.dump()) == recipe


def test_every_family_has_a_debug_recipe() -> None:
    names = recipe_names()
    assert {f"{n}-debug" for n in names if not n.endswith("-debug")} <= set(names)


def test_overrides_reach_flat_and_nested_specs_alike(tmp_path: Path) -> None:
    flat = load_recipe(DEBUG, ["network.width=5", "network.arguments.depth=4"])
    nested = read_recipe(load_recipe(DEBUG).dump(), overrides=["network.width=5", "network.depth=4"])
    assert flat == nested
    assert flat.network.arguments == {"width": 5, "depth": 4}
    assert load_recipe(DEBUG, ["outer.clip=null"]).outer.clip is None
    assert load_recipe(DEBUG, ["outer.step_size=2e-4"]).outer.step_size == 2e-4


def test_a_file_is_a_recipe(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\nnetwork: {name: siren}\ndomain: {name: ct, size: 16}\n")
    assert load_recipe(file).name == "mine"
    assert isinstance(load_recipe(str(file), ["seed=3"]), Recipe)
    file.write_text("name: mine\nnetwork: {name: siren}\n")
    with pytest.raises(RecipeError, match="domain is missing"):
        load_recipe(file)
    file.write_text("- 1\n- 2\n")
    with pytest.raises(RecipeError, match="holds a list"):
        load_recipe(file)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2", "the key 'a' stands there twice"),
        ("a: &x [1]\nb: *x", "aliases are not allowed"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: [1", "not valid YAML"),
        ("a" * (MAX_CHARACTERS + 1), "more than"),
        ("[" * 5000, "YAML|deeply"),
        ("? [1]\n: 2", "not valid YAML|found unhashable"),
    ],
)
def test_yaml_is_strict(text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        parse_yaml(text, "the text")


def test_a_recipe_without_a_family_is_a_priors_and_says_so_nowhere() -> None:
    plain = load_recipe(DEBUG)
    value = plain.dump()
    assert plain.family == "prior" and "family" not in value and "family" not in plain.recorded()
    assert read_recipe({**value, "family": "prior"}) == plain
    for wrong in ("pryor", 3, None):
        with pytest.raises(RecipeError, match="recipe: family: no family is called"):
            read_recipe({**value, "family": wrong})


def test_a_card_tells_no_place_on_a_machine() -> None:
    recipe = load_recipe("image-folder", ["domain.data=/data/mine"])
    assert recipe.places == {"domain.data": "/data/mine"}
    assert "/data/mine" in str(recipe.determining()) and "/data/mine" not in str(recipe.recorded())
    assert recipe.recorded() == load_recipe("image-folder", ["domain.data=/data/yours"]).recorded()
