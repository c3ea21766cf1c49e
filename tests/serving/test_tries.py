"""Jobs of live fits: who watches, who leaves, and what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from metainit.references import Reference
from serving.cache import Entry
from serving.predictions import Predictions
from serving.store import Store
from serving.tries import TooManyTries, Tries, Try, TryLimits
from serving.trying import Trial
from tests.serving.web_shelf import SIDE, WebShelf


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> Entry:
    folder = tmp_path_factory.mktemp("tries")
    shelf = WebShelf(folder / "shelf")
    shelf.add_prior("faces", "champion")
    store = Store(shelf, folder / "store", poll=3600.0)
    store.refresh()
    return store.get(Reference.parse("faces"))


@pytest.fixture
def tries(tmp_path: Path) -> Iterator[Tries]:
    made = Tries(Predictions(tmp_path), TryLimits(patience=0.05, waiting=2, kept=1))
    yield made
    made.close()


def trial(entry: Entry, steps: int) -> Trial:
    return Trial(entry.blob, None, np.full((SIDE, SIDE, 3), 0.5, np.float32), steps)


async def seen(tries: Tries, one: Try) -> list[str]:
    return [name async for _, name, _ in tries.watch(one)]


async def ended(one: Try) -> str:
    async with asyncio.timeout(30):
        while not one.over:
            await asyncio.sleep(0.01)
    return one.state


def test_several_may_watch_a_fit(tries: Tries, entry: Entry) -> None:
    async def run() -> tuple[list[str], ...]:
        one = tries.start(entry, trial(entry, 2))
        return tuple(await asyncio.gather(seen(tries, one), seen(tries, one)))

    first, second = asyncio.run(run())
    assert first == second == ["begin", *["frame"] * 6, "end"]


def test_a_fit_that_everyone_has_left_stops(tries: Tries, entry: Entry) -> None:
    async def run() -> str:
        one = tries.start(entry, trial(entry, 200))
        async for _, name, _ in tries.watch(one):
            if name == "frame":
                break
        return await ended(one)

    assert asyncio.run(run()) == "stopped"


def test_a_fit_that_nobody_ever_watched_stops(tries: Tries, entry: Entry) -> None:
    async def run() -> str:
        return await ended(tries.start(entry, trial(entry, 200)))

    assert asyncio.run(run()) == "stopped"


def test_old_fits_are_forgotten_and_too_many_refused(tries: Tries, entry: Entry) -> None:
    async def run() -> None:
        first = tries.start(entry, trial(entry, 200))
        second = tries.start(entry, trial(entry, 200))
        with pytest.raises(TooManyTries, match="2 live fits"):
            tries.start(entry, trial(entry, 200))
        for one in (first, second):
            tries.stop(one)
            assert await ended(one) == "stopped"
        third = tries.start(entry, trial(entry, 1))
        assert tries.find(second.id) is second and tries.find(third.id) is third
        with pytest.raises(Exception, match="no live fit"):
            tries.find(first.id)
        assert (await seen(tries, third))[-1] == "end"

    asyncio.run(run())


def test_a_failure_is_told_to_who_watches(tries: Tries, entry: Entry, tmp_path: Path) -> None:
    async def run() -> Try:
        gone = Trial(tmp_path / "gone.safetensors", None, np.zeros((SIDE, SIDE, 3), np.float32), 2)
        one = tries.start(entry, gone)
        await seen(tries, one)
        return one

    one = asyncio.run(run())
    assert one.state == "failed" and "gone.safetensors" in str(one.error)
