"""Build a zoo in a folder: fit the shards that are missing, judge early, and finish with the manifest."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from hypernets.generator.generatability import Generatability, chosen, generatability
from hypernets.generator.shards import FOLDER, Shard, read_shard, shard_file, write_shard
from hypernets.generator.zoo import (
    BASE,
    MANIFEST,
    ShardEntry,
    Zoo,
    ZooManifest,
    finish_zoo,
    read_manifest,
    read_zoo,
)
from metainit import checkpoint as files
from metainit.checkpoint import SUFFIX, write_atomically
from metainit.errors import CheckpointError, DataError, MetainitError
from metainit.versions import code_version
from pipelines.families import Note
from pipelines.folder import RECIPE
from pipelines.pace import Pace
from pipelines.zoo.fits import fit_shard, one_thread, tasks_of
from pipelines.zoo.preparation import PreparedZoo, ShardPlan

LOCK = "build.lock"
JUDGED = 64
"""Fits whose midpoints are looked at: early, and again for the manifest."""
_log = logging.getLogger(__name__)

Runner = Callable[[PreparedZoo, Path, Sequence[ShardPlan]], Iterable[int]]
"""Writes shards into a folder, and yields the number of each that is done.

Shard 0, where it is among them, is done before the others begin: it says whether they are worth their time.
"""
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
        prepared = as_begun(prepared, folder)
        sound = base_is_sound(prepared, folder)
        plans = prepared.plans()
        missing = missing_shards(prepared, folder, plans)
        # Only now is it clear that what lies there is of this zoo.
        begin(prepared, None if sound else base, folder)
        if not missing and (done := _finished(prepared, folder)) is not None:
            return Built(done, 0, 0.0)
        (folder / MANIFEST).unlink(missing_ok=True)
        began = time.monotonic()
        _run(prepared, folder, plans, missing, runner, say, progress)
        seconds = time.monotonic() - began
        say("looking at what lies between the fits")
        judged = judge_first(prepared, folder, plans)
        finish_zoo(folder, manifest_of(prepared, plans, judged), prepared.recipe.outlier)
        _remove_beyond(folder, len(plans))
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


def as_begun(prepared: PreparedZoo, folder: Path) -> PreparedZoo:
    """Return what goes on with a finished zoo of an earlier version as that version knew its shards."""
    try:
        key = read_manifest(folder).belonging.key
    except CheckpointError:
        return prepared
    earlier = replace(prepared, earlier=True)
    return earlier if key == earlier.belonging.key else prepared


def base_is_sound(prepared: PreparedZoo, folder: Path) -> bool:
    """Return whether the folder has the base; a damaged one is written again.

    Raises:
        DataError: it has another base.
    """
    there = folder / BASE
    if not there.is_file():
        return False
    try:
        digest = files.load(there).card.digest
    except CheckpointError as error:
        _log.warning("the base is written again: %s", error)
        return False
    if digest != prepared.base.card.digest:
        raise DataError(
            f"{folder} holds a zoo of another base ({digest[:12]}…, the prior's is "
            f"{prepared.base.card.digest[:12]}…): one zoo has one base; choose another folder"
        )
    return True


def begin(prepared: PreparedZoo, base: Path | None, folder: Path) -> None:
    """Put the base, as it is, where one is given, and the recipe into the folder.

    Raises:
        CheckpointError: it cannot be written.
    """
    if base is not None:
        write_atomically(folder / BASE, base.read_bytes())
    text = yaml.safe_dump(prepared.recipe.dump(), sort_keys=False, allow_unicode=True)
    write_atomically(folder / RECIPE, text.encode())


def missing_shards(prepared: PreparedZoo, folder: Path, plans: Sequence[ShardPlan]) -> list[ShardPlan]:
    """Return the shards that have to be fitted: those that are not there, damaged, or of other tasks.

    A number stands for other tasks where the zoo has grown, or holds out more.

    Raises:
        DataError: one is there, but of another zoo.
    """
    missing = []
    for plan in plans:
        if not (folder / shard_file(plan.number)).exists():
            missing.append(plan)
            continue
        try:
            if not _is_of(plan, read_shard(folder, plan.number, prepared.belonging)):
                missing.append(plan)
        except CheckpointError as error:
            _log.warning("a shard is fitted again: %s", error)
            missing.append(plan)
    return missing


def _remove_beyond(folder: Path, count: int) -> None:
    """Remove shards whose numbers a smaller zoo has no use for."""
    for file in (folder / FOLDER).iterdir():
        if file.suffix == SUFFIX and file.stem.isdecimal() and int(file.stem) >= count:
            file.unlink()


def _is_of(plan: ShardPlan, shard: Shard) -> bool:
    """Return whether a shard holds the fits of a plan."""
    count = len(shard.members) + len(shard.failed)
    return shard.split == plan.split and shard.index in (None, plan.index) and count == plan.count


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


def require_some(prepared: PreparedZoo, folder: Path, plan: ShardPlan, say: Note) -> None:
    """Warn where fits of the first shard diverged, and stop where hardly one is left.

    Raises:
        DataError: there are fewer than two.
    """
    shard = read_shard(folder, plan.number, prepared.belonging)
    left, failed = len(shard.members), len(shard.failed)
    if not failed:
        return
    said = f"{left} of {left + failed} fits of the first shard are left, {failed} diverged"
    if left < 2:
        raise DataError(
            f"{said}: choose a smaller step size of the fits, or fewer steps; nothing else was fitted"
        )
    say(f"warning: {said}; such as {next(iter(shard.failed.values()))}")


def _finished(prepared: PreparedZoo, folder: Path) -> Zoo | None:
    """Return the zoo that a folder has already, where it is whole and of this recipe."""
    try:
        zoo = read_zoo(folder)
    except CheckpointError:
        return None
    same = zoo.manifest.belonging == prepared.belonging
    return zoo if same and zoo.manifest.recipe == prepared.recipe.recorded() else None


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
    tasks = sum(plan.count for plan in plans if plan.split == "train")
    if tasks < prepared.recipe.members:
        say(f"the data have {tasks:,} training tasks: that many fits, not {prepared.recipe.members:,}")
    done = total - sum(plan.count for plan in missing)
    if done:
        say(f"{done:,} of {total:,} fits are there already")
    pace, judged = Pace(), False
    for number in runner(prepared, folder, missing):
        done += plans[number].count
        pace.done(done)
        if progress is not None:
            progress(done, total, pace.left(total))
        if number == 0 and not judged and done < total:
            judged = True
            require_some(prepared, folder, plans[0], say)
            early = judge_first(prepared, folder, plans)
            if early is not None:
                say(early.sentence if early.verdict == "generatable" else f"warning: {early.sentence}")
