"""What the cache holds, what may go, and that nothing goes which is in use."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from metainit.cache_commands import cache
from metainit.caching import Item, chosen, damaged, items, prune, tidy
from metainit.kept import Kept

DAY = 86400.0
NOW = 1_000_000_000.0


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    monkeypatch.setenv("METAINIT_CACHE", str(tmp_path))
    return Kept(tmp_path / "endpoint")


def put(kept: Kept, content: bytes, days: float, part: bool = False) -> str:
    """Keep some bytes that were used so many days ago."""
    sha256 = hashlib.sha256(content).hexdigest()
    path = kept.file(sha256).with_suffix(".part" if part else ".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    used = time.time() - days * DAY
    os.utime(path, (used, used))
    return sha256


def call(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(cache, list(arguments))
    assert result.exit_code == status, result.output
    return result.output


def call_json(*arguments: str, status: int = 0) -> Any:
    return json.loads(call(*arguments, "--json", status=status))


def test_info(kept: Kept, tmp_path: Path) -> None:
    assert call_json("info")["blobs"] == 0
    put(kept, b"a" * 1000, 3)
    put(kept, b"b" * 500, 1, part=True)
    kept.remember("http://endpoint/v1/inits/faces", hashlib.sha256(b"a" * 1000).hexdigest())
    (tmp_path / "registry").mkdir()
    (tmp_path / "registry" / "x").write_bytes(b"12345")
    report = call_json("info")
    assert (report["blobs"], report["bytes"], report["parts"], report["part_bytes"]) == (1, 1000, 1, 500)
    assert report["addresses"] == 1 and report["other_caches"] == {"registry": 5}
    assert "1 files, 1 kB" in call("info") and "registry, 5 B" in call("info")


def test_by_age(kept: Kept) -> None:
    old, new = put(kept, b"old", 40), put(kept, b"new", 2)
    put(kept, b"half", 50, part=True)
    would = call_json("prune", "--older-than", "30d", "--dry-run")
    assert would["dry_run"] and len(would["removed"]) == 2 and len(items(kept)) == 3
    gone = call_json("prune", "--older-than", "30d")
    assert old in gone["removed"] and gone["bytes"] == 7 and gone["in_use"] == []
    assert [item.sha256 for item in items(kept)] == [new]


def test_by_size_the_least_recently_used_go(kept: Kept) -> None:
    first, second, third = (put(kept, bytes([n]) * 1000, days) for n, days in ((1, 9), (2, 8), (3, 7)))
    assert kept.has(first)  # which counts as a use
    assert call_json("prune", "--larger-than", "2kB")["removed"] == [second]
    assert {item.sha256 for item in items(kept)} == {first, third}


def test_what_is_in_use_stays(kept: Kept) -> None:
    locked, fresh, idle = put(kept, b"locked", 90), put(kept, b"fresh", 90), put(kept, b"idle", 90)
    assert kept.has(fresh)
    with kept.lock(locked):
        done = call_json("prune", "--larger-than", "0")
        assert done["removed"] == [idle] and sorted(done["in_use"]) == sorted([locked, fresh])
        assert f"kept {locked}.safetensors: it is in use" in call("prune", "--larger-than", "0")
    assert call_json("prune", "--larger-than", "0")["removed"] == [locked]


def test_what_is_used_after_it_was_chosen_stays(kept: Kept) -> None:
    sha256 = put(kept, b"content", 90)
    going = items(kept)
    assert kept.has(sha256)
    gone, busy = prune(kept, going, time.time() + 10 * DAY)
    assert gone == [] and busy == going and kept.has(sha256)
    kept.file(sha256).unlink()
    assert prune(kept, going) == ([], [])


def test_notes_of_what_is_gone_go(kept: Kept) -> None:
    stays, goes = put(kept, b"stays", 1), put(kept, b"goes", 40)
    for address, sha256 in (("http://endpoint/a", stays), ("http://endpoint/b", goes)):
        kept.remember(address, sha256)
        kept.keep_evidence(address, sha256, {"metric": "psnr"})
    assert tidy(kept) == 0
    call("prune", "--older-than", "30d")
    assert len(list(kept.notes())) == 2
    assert kept.remembered("http://endpoint/a") == stays and kept.remembered("http://endpoint/b") is None
    assert kept.evidence("http://endpoint/a", stays) == {"evidence": {"metric": "psnr"}}
    next(iter(kept.notes())).write_text("damaged")
    assert tidy(kept) in (0, 1)  # one of evidence says by its name what it is of


def test_verify(kept: Kept) -> None:
    good, bad = put(kept, b"good", 1), put(kept, b"bad", 1)
    put(kept, b"half", 1, part=True)
    assert call_json("verify") == {"files": 2, "damaged": [], "removed": []}
    kept.file(bad).write_bytes(b"other")
    assert [item.sha256 for item, _ in damaged(items(kept))] == [bad]
    report = call_json("verify", status=1)
    assert [found["sha256"] for found in report["damaged"]] == [bad] and kept.file(bad).exists()
    assert "1 of 2 files are sound" in call("verify", status=1)
    assert call_json("verify", "--remove", status=1)["removed"] == [bad]
    assert not kept.file(bad).exists() and kept.has(good)
    assert "1 of 1 files are sound" in call("verify")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say what may go"),
        (("--older-than", "soon"), "'soon' is no age"),
        (("--larger-than", "much"), "'much' is no size"),
    ],
)
def test_bad_usage(kept: Kept, arguments: tuple[str, ...], said: str) -> None:
    assert said in " ".join(call("prune", *arguments, status=2).split())


ITEMS = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 100)), max_size=20).map(
    lambda drawn: sorted(
        (Item(str(n), Path("x"), size, NOW - age, "whole") for n, (age, size) in enumerate(drawn)),
        key=lambda item: (item.used, item.sha256),
    )
)


@given(have=ITEMS, age=st.none() | st.integers(0, 1000), size=st.none() | st.integers(0, 1500))
def test_what_is_chosen(have: list[Item], age: int | None, size: int | None) -> None:
    going = chosen(have, NOW, age, size)
    staying = [item for item in have if item not in going]
    assert len(going) + len(staying) == len(have)
    if age is not None:
        assert all(NOW - item.used <= age for item in staying)
    if size is not None:
        assert sum(item.size for item in staying) <= size
    if age is None and size is None:
        assert not going
    # Nothing goes before what was used less recently.
    assert have == going + staying or not going or not staying or age is not None
