"""Build a zoo in a folder: fit the shards that are missing, judge early, and finish with the manifest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from hypernets.generator.generatability import Generatability, chosen, generatability
from hypernets.generator.shards import read_shard, shard_file, write_shard
from hypernets.generator.zoo import BASE, MANIFEST, ShardEntry, Zoo, ZooManifest, finish_zoo, read_zoo
from metainit import checkpoint as files
from metainit.checkpoint import write_atomically
from metainit.errors import CheckpointError, DataError, MetainitError
from pipelines.families import Note
from pipelines.folder import RECIPE
from pipelines.learner import code_version
from pipelines.zoo.fits import fit_shard, one_thread, tasks_of
from pipelines.zoo.preparation import PreparedZoo, ShardPlan

LOCK = "build.lock"
JUDGED = 64
"""Fits whose midpoints are looked at: early, and again for the manifest."""
_log = logging.getLogger(__name__)

Runner = Callable[[PreparedZoo, Path, Sequence[ShardPlan]], Iterable[int]]
"""Writes shards into a folder, and yields the number of each that is done."""
Progress = Callable[[int, int, float], None]
"""Called after each shard with the fits that there are, all of them, and the seconds left."""


@dataclass(frozen=True)
class Built:
    """A finished zoo, and what this call did for it: fits that were made now, and the seconds they took."""

    zoo: Zoo
    fitted: int
    seconds: float


def here(prepared: PreparedZoo, folder: Path, missing: Sequence[ShardPlan]) -> Iterator[int]:
    """Fit shards in this process, one after another."""
    for plan in missing:
        write_shard(folder, fit_shard(prepared, plan), prepared.belonging)
        yield plan.number


def build_zoo(
    prepared: PreparedZoo,
    base: Path,
    folder: Path,
    *,
    runner: Runner = here,
    note: Note | None = None,
    progress: Progress | None = None,
) -> Built:
    """Build a zoo, or go on where a build in `folder` was interrupted: sound shards are not fitted again.

    Args:
        prepared: the recipe with its parts.
        base: the file of its prior.
        folder: of the zoo.
        runner: who fits the shards that are missing.
        note: told what is going on, and warned where nothing can be generated from such fits.
        progress: told about each shard.

    Raises:
        MetainitError: another build is at work in the folder.
        DataError: the folder holds another zoo, or all fits diverged.
        CheckpointError: the disk is full; shards that were written are kept.
    """
    say = note or (lambda text: None)
    with locked_folder(folder):
        begin(prepared, base, folder)
        plans = prepared.plans()
        missing = missing_shards(prepared, folder, plans)
        if not missing and (done := _finished(prepared, folder)) is not None:
            return Built(done, 0, 0.0)
        (folder / MANIFEST).unlink(missing_ok=True)
        began = time.monotonic()
        _run(prepared, folder, plans, missing, runner, say, progress)
        seconds = time.monotonic() - began
        say("looking at what lies between the fits")
        judged = judge_first(prepared, folder, plans)
        finish_zoo(folder, manifest_of(prepared, plans, judged), prepared.recipe.outlier)
        if judged is not None and judged.verdict != "generatable":
            say(f"warning: {judged.sentence}")
        return Built(read_zoo(folder), sum(plan.count for plan in missing), seconds)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder while the block runs; the system lets go of it whatever ends the process.

    Raises:
        MetainitError: another build holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise MetainitError(
            f"another build is at work in {folder}: wait for it, or choose another folder with --out"
        ) from error
    try:
        yield
    finally:
        lock.release()


def begin(prepared: PreparedZoo, base: Path, folder: Path) -> None:
    """Put the base, as it is, and the recipe into the folder.

    Raises:
        DataError: the folder has another base.
        CheckpointError: it cannot be written.
    """
    there = folder / BASE
    if there.is_file():
        digest = files.load(there).card.digest
        if digest != prepared.base.card.digest:
            raise DataError(
                f"{folder} holds a zoo of another base ({digest[:12]}…, the prior's is "
                f"{prepared.base.card.digest[:12]}…): one zoo has one base; choose another folder"
            )
    else:
        write_atomically(there, base.read_bytes())
    text = yaml.safe_dump(prepared.recipe.dump(), sort_keys=False, allow_unicode=True)
    write_atomically(folder / RECIPE, text.encode())


def missing_shards(prepared: PreparedZoo, folder: Path, plans: Sequence[ShardPlan]) -> list[ShardPlan]:
    """Return the shards that have to be fitted: those that are not there, or damaged.

    Raises:
        DataError: one is there, but of another zoo.
    """
    missing = []
    for plan in plans:
        if not (folder / shard_file(plan.number)).exists():
            missing.append(plan)
            continue
        try:
            read_shard(folder, plan.number, prepared.belonging)
        except CheckpointError as error:
            _log.warning("a shard is fitted again: %s", error)
            missing.append(plan)
    return missing


def manifest_of(
    prepared: PreparedZoo, plans: Sequence[ShardPlan], judged: Generatability | None
) -> ZooManifest:
    """Return the manifest of a zoo whose shards have yet to be looked at."""
    return ZooManifest(
        name=prepared.recipe.name,
        prior=prepared.base.card.name,
        network=prepared.spec,
        domain=prepared.domain_spec,
        data=prepared.source,
        metric=prepared.domain.metric,
        fit=prepared.fit,
        belonging=prepared.belonging,
        recipe=prepared.recipe.recorded(),
        code_version=code_version(),
        shards=tuple(ShardEntry(split=plan.split, sha256="0" * 64, fits=0) for plan in plans),
        generatability=judged,
    )


def judge_first(prepared: PreparedZoo, folder: Path, plans: Sequence[ShardPlan]) -> Generatability | None:
    """Return what the midpoints of the first training fits say; None where there are fewer than two."""
    plan = plans[0]
    shard = read_shard(folder, plan.number, prepared.belonging)
    tasks = tasks_of(prepared, plan)
    # Fits that diverged have no row, and a task that was drawn twice has two.
    rows = [n for n, name in enumerate(tasks.ids) if name not in shard.failed][:JUDGED]
    if len(rows) < 2 or len(shard.members) < len(rows):
        return None
    with one_thread():
        return generatability(
            prepared.domain,
            prepared.function,
            prepared.start,
            prepared.layout,
            shard.members.deltas[: len(rows)].to(prepared.device),
            chosen(tasks, rows),
        )


def _finished(prepared: PreparedZoo, folder: Path) -> Zoo | None:
    """Return the zoo that a folder has already, where it is whole and of this recipe."""
    try:
        zoo = read_zoo(folder)
    except CheckpointError:
        return None
    return zoo if zoo.manifest.belonging == prepared.belonging else None


def _run(
    prepared: PreparedZoo,
    folder: Path,
    plans: Sequence[ShardPlan],
    missing: Sequence[ShardPlan],
    runner: Runner,
    say: Note,
    progress: Progress | None,
) -> None:
    """Have the missing shards fitted, and warn as soon as the first one says that it is in vain."""
    total = sum(plan.count for plan in plans)
    done = total - sum(plan.count for plan in missing)
    before, began, judged = done, time.monotonic(), False
    for number in runner(prepared, folder, missing):
        done += plans[number].count
        left = (time.monotonic() - began) / (done - before) * (total - done)
        if progress is not None:
            progress(done, total, left)
        if number == 0 and not judged and done < total:
            judged = True
            early = judge_first(prepared, folder, plans)
            if early is not None:
                say(early.sentence if early.verdict == "generatable" else f"warning: {early.sentence}")
