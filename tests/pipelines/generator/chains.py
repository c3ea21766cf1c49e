"""A prior, the zoo that begins from it, and the generator that learns from that: of debug recipes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.generator.preparation import PreparedGenerator, prepare_generator
from pipelines.generator.recipe import GeneratorRecipe
from pipelines.recipe import load_recipe
from pipelines.tracking import ListSink
from pipelines.train import train
from pipelines.zoo.build import build_zoo
from pipelines.zoo.preparation import prepare_zoo
from pipelines.zoo.recipe import ZooRecipe


@dataclass(frozen=True)
class Chain:
    """Where a chain's parts lie: the prior's file, the zoo's folder, the generator's file."""

    prior: Path
    zoo: Path
    generator: Path
    name: str

    def recipe(self, *settings: str) -> GeneratorRecipe:
        """Return the debug recipe of the generator for this zoo."""
        return generator_recipe(self.name, self.zoo, *settings)

    def prepared(self, *settings: str) -> PreparedGenerator:
        """Return that recipe with its zoo and its domain."""
        return prepare_generator(self.recipe(*settings))


def generator_recipe(name: str, zoo: Path | str, *settings: str) -> GeneratorRecipe:
    """Return a generator's recipe for the zoo in a folder, or of a name."""
    recipe = load_recipe(name, [f"zoo={zoo}", *settings])
    assert isinstance(recipe, GeneratorRecipe)
    return recipe


def zoo_in(folder: Path, name: str, prior: Path, *settings: str) -> Path:
    """Build a zoo from a prior's file into a folder."""
    recipe = load_recipe(name, [f"prior={prior}", *settings])
    assert isinstance(recipe, ZooRecipe)
    build_zoo(prepare_zoo(recipe, prior), prior, folder)
    return folder


def trained(recipe: GeneratorRecipe, folder: Path) -> Path:
    """Train a generator into a folder and return its file."""
    return train(recipe, folder, sink=ListSink()).checkpoint


def chain_of(prior: str, zoo: str, generator: str, folder: Path) -> Chain:
    """Make the debug chain of three recipes."""
    begun = train(load_recipe(f"{prior}-debug"), folder / "prior", sink=ListSink()).checkpoint
    built = zoo_in(folder / "zoo", f"{zoo}-debug", begun)
    made = trained(generator_recipe(f"{generator}-debug", built), folder / "generator")
    return Chain(begun, built, made, f"{generator}-debug")
