"""Workers: what waits is answered together, and what fails belongs to whoever asked."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from metainit.errors import CheckpointError, ConditionError, CopyError, MismatchError, RegistryError
from serving import work
from serving.predictor import Order
from serving.work import Aside, Opened, Outcome, delivered, failed


class Echo:
    """Answers with the order itself; keeps the batches, and waits for `hold`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.hold = threading.Event()

    def answer(self, orders: Sequence[int]) -> list[Outcome]:
        self.batches.append(list(orders))
        assert self.hold.wait(20)
        if 13 in orders:
            raise ZeroDivisionError
        return [Outcome(str(order).encode()) for order in orders]


async def asked(aside: Aside[int], orders: Sequence[int]) -> list[Outcome | BaseException]:
    tasks = [asyncio.create_task(aside.answer_one(order)) for order in orders]
    return await asyncio.gather(*tasks, return_exceptions=True)


def test_orders_that_wait_are_answered_together() -> None:
    echo = Echo()

    async def run() -> list[Outcome | BaseException]:
        aside = Aside(echo, batch=3)
        first = asyncio.create_task(aside.answer_one(0))
        while not echo.batches:
            await asyncio.sleep(0.001)
        rest = asyncio.create_task(asked(aside, range(1, 6)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        echo.hold.set()
        return [await first, *await rest]

    outcomes = asyncio.run(run())
    assert outcomes == [Outcome(str(n).encode()) for n in range(6)]
    assert echo.batches == [[0], [1, 2, 3], [4, 5]]


def test_one_that_leaves_and_one_that_fails_stop_nothing() -> None:
    echo = Echo()
    echo.hold.set()

    async def run() -> list[Outcome | BaseException]:
        aside = Aside(echo, batch=1)
        left = asyncio.create_task(aside.answer_one(7))
        await asyncio.sleep(0)
        left.cancel()
        return await asked(aside, [13, 1])

    failure, outcome = asyncio.run(run())
    assert isinstance(failure, ZeroDivisionError) and outcome == Outcome(b"1")


def test_the_models_that_were_used_last_stay_open() -> None:
    opened: Opened[str] = Opened(most=2)
    made: list[str] = []

    def get(digest: str) -> None:
        def open_(file: Path) -> str:
            made.append(digest)
            return digest

        assert opened.get(Order("a/1", digest, __file__, "", 0, False), open_) == digest

    for digest in ("a", "b", "a", "c", "a", "b"):
        get(digest)
    assert made == ["a", "b", "c", "b"]


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (CheckpointError("damaged"), "source"),
        (RegistryError("gone"), "source"),
        (ConditionError("no class"), "condition"),
        (CopyError("copies"), "copies"),
        (MismatchError("not finite"), "question"),
        (ModuleNotFoundError("no", name="torch_geometric"), "worker"),
        (RuntimeError("secret path"), "worker"),
    ],
)
def test_a_failure_says_whose_fault_it_is(error: Exception, fault: str) -> None:
    outcome = failed(error, "digits/1")
    assert outcome.fault == fault and "secret" not in outcome.reason


def test_large_bytes_go_by_way_of_a_folder_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "LARGE", 4)
    assert delivered(b"abc", str(tmp_path)) == Outcome(b"abc")
    assert delivered(b"abcdef", "") == Outcome(b"abcdef")
    assert delivered(b"abcdef", str(tmp_path / "elsewhere")) == Outcome(b"abcdef")
    by_file = delivered(b"abcdef", str(tmp_path))
    assert by_file.content == b"" and Path(by_file.file).read_bytes() == b"abcdef"
    assert Path(by_file.file).parent == tmp_path
