"""The folder of a run: the checkpoint it ends with, and the states that it can be resumed from.

A state is a file of the same format as a checkpoint (verified, versioned, nothing pickled): the tensors of a
learner's `state`, and a card with the recipe and the data that they belong to.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import Tensor

from metainit import checkpoint as files
from metainit.card import Card, DataSource, Method, Provenance, canonical_json
from metainit.errors import CheckpointError, RecipeError
from metainit.places import data_folder
from pipelines.dotted import flatten
from pipelines.recipe import Recipe

CHECKPOINT = "checkpoint.safetensors"
LAST_GOOD = "last-good.safetensors"
RECIPE = "recipe.yaml"
SCRATCH = "resume"
KEPT_STATES = 2
STATE_KIND, STATE_PREFIX = "training-state", "step-"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """Where one run of one recipe keeps its files."""

    path: Path
    recipe: Recipe
    data: DataSource

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that a finished run has."""
        return self.path / CHECKPOINT

    @property
    def last_good(self) -> Path:
        """The checkpoint that a diverged run leaves."""
        return self.path / LAST_GOOD

    @property
    def scratch(self) -> Path:
        """What is needed only until the run has finished."""
        return self.path / SCRATCH

    def provenance(self, code_version: str) -> Provenance:
        """Return what the cards of this run say about where it comes from."""
        return Provenance(
            recipe=self.recipe.recorded(), seeds=[self.recipe.seed], data=self.data, code_version=code_version
        )

    def begin(self) -> None:
        """Make the folder and write the recipe into it.

        Raises:
            RecipeError: the folder holds a run of another recipe, or of other data.
            CheckpointError: it cannot be written.
        """
        if self.finished():
            self._check(files.load(self.checkpoint).card)
        for _, state in self._sound_states():
            self._check(state.card)
            break
        text = yaml.safe_dump(self.recipe.dump(), sort_keys=False, allow_unicode=True)
        files.write_atomically(self.path / RECIPE, text.encode())

    def finished(self) -> bool:
        """Return whether the run has ended with its checkpoint."""
        return self.checkpoint.is_file()

    def save_state(self, step: int, tensors: Mapping[str, Tensor], code_version: str) -> None:
        """Save the state after `step` steps, and drop all but the newest two.

        Raises:
            CheckpointError: a tensor is not finite, or the disk is full; older states stay.
        """
        card = Card(
            kind=STATE_KIND,
            name=self.recipe.name,
            method=Method(name=self.recipe.method),
            provenance=self.provenance(code_version),
        )
        files.save(self.scratch / f"{STATE_PREFIX}{step:010d}.safetensors", tensors, card)
        for old in self._states()[KEPT_STATES:]:
            old.unlink(missing_ok=True)

    def newest_state(self) -> bytes | None:
        """Return the newest state that is not damaged, or None."""
        for file, _ in self._sound_states():
            return file.read_bytes()
        return None

    def saved_step(self) -> int | None:
        """Return the step of the newest state that is not damaged, or None."""
        for file, _ in self._sound_states():
            return int(file.stem.removeprefix(STATE_PREFIX))
        return None

    def clean(self) -> None:
        """Remove what is needed only until the run has finished."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _states(self) -> list[Path]:
        return sorted(self.scratch.glob(f"{STATE_PREFIX}*.safetensors"), reverse=True)

    def _sound_states(self) -> Iterator[tuple[Path, files.Checkpoint]]:
        for file in self._states():
            try:
                yield file, files.load(file)
            except CheckpointError as error:
                _log.warning("a saved state is left out: %s", error)

    def _check(self, card: Card) -> None:
        own = {k: v for k, v in card.provenance.recipe.items() if k not in self.recipe.FOLLOWING}
        before, now = flatten(own), flatten(self.recipe.recorded())
        skipped = self.recipe.LATER - before.keys()
        keys = (before.keys() | now.keys()) - skipped
        changed = sorted(key for key in keys if before.get(key) != now.get(key))
        if changed:
            listed = "; ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in changed[:5])
            raise RecipeError(
                f"{self.path} holds a run of another recipe: {listed}; choose another folder, or remove "
                "that one"
            )
        if card.provenance.data.fingerprint != self.data.fingerprint:
            raise RecipeError(
                f"{self.path} holds a run on other data: the data have changed since; choose another folder, "
                "or remove that one"
            )


def default_folder(recipe: Recipe) -> Path:
    """Return the folder of a recipe's run in the data folder: another one for other training settings."""
    mark = hashlib.sha256(canonical_json(recipe.determining()).encode()).hexdigest()[:12]
    return data_folder() / "runs" / f"{recipe.name}-{mark}"


def read_state(content: bytes) -> dict[str, Tensor]:
    """Return the tensors of a state, on the CPU.

    Raises:
        CheckpointError: the bytes are damaged, or not a state.
    """
    stored = files.from_bytes(content, "the saved state")
    if stored.card.kind != STATE_KIND:
        raise CheckpointError(f"expected a {STATE_KIND}, got a {stored.card.kind}")
    return dict(stored.tensors)
