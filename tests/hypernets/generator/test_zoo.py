"""A zoo's folder: what is written is read, what is damaged or mixed refused, what is left out counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hypernets.generator.culling import loss_limit, repeated_weights
from hypernets.generator.flat import FlatLayout
from hypernets.generator.members import Members
from hypernets.generator.shards import Belonging, Shard, read_shard, shard_bytes, shard_file, write_shard
from hypernets.generator.zoo import (
    BASE,
    DIVERGED,
    MANIFEST,
    OUTLIER,
    SAME_TASK,
    SAME_WEIGHTS,
    cull,
    finish_zoo,
    read_zoo,
)
from metainit.errors import CheckpointError, DataError, DigestError
from tests.hypernets.generator.zoos import LAYOUT, base_of, manifest_of, shard_of, zoo_of

BELONGING = Belonging.of("key", "base", LAYOUT)


def with_members(shard: Shard, **changes: object) -> Shard:
    return replace(shard, members=replace(shard.members, **changes))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    shards = [shard_of(0), shard_of(1, count=3), shard_of(2, "validation"), shard_of(3, "test", 2)]
    zoo = zoo_of(tmp_path, shards)
    train = zoo.members("train")
    assert torch.equal(train.deltas, torch.cat([s.members.deltas for s in shards[:2]]))
    assert train.ids == shards[0].members.ids + shards[1].members.ids
    assert train.texts == shards[0].members.texts + shards[1].members.texts
    assert train.conditions["class"].dtype == torch.int64
    assert torch.equal(train.conditions["observation"][6:], shards[1].members.conditions["observation"])
    assert torch.equal(zoo.members("test").losses, shards[3].members.losses)
    assert torch.equal(zoo.metric("validation"), shards[2].metric)
    assert zoo.manifest.count("train").model_dump() == {
        "fits": 9, "members": 9, "excluded": {}, "duplicates": {},
    }  # fmt: skip
    assert torch.equal(LAYOUT.unflatten(zoo.base_vector)["bias"], zoo.base.weights["bias"])


def test_the_same_zoo_has_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        zoo_of(tmp_path / name, [shard_of(0), shard_of(1, "test")])
    names = [p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file()]
    assert len(names) == 4
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_damaged_shard_is_named_and_the_way_out_too(tmp_path: Path) -> None:
    zoo_of(tmp_path, [shard_of(0), shard_of(1), shard_of(2, "test")])
    file = tmp_path / shard_file(1)
    sound = file.read_bytes()
    for damage in (sound[:-4], sound[:40], b"", sound[:-1] + bytes([sound[-1] ^ 1]), None):
        how = "missing" if damage is None else "changed after they were written"
        if damage is None:
            file.unlink()
        else:
            file.write_bytes(damage)
        said = rf"1 of 3 shards are damaged \({how}: 00001\.safetensors\).*only what is missing"
        with pytest.raises(DigestError, match=said):
            read_zoo(tmp_path)
        with pytest.raises(CheckpointError, match=r"00001\.safetensors.*metainit zoo build"):
            read_shard(tmp_path, 1, read_zoo_belonging(tmp_path))
    file.write_bytes(sound)
    assert len(read_zoo(tmp_path).members("train")) == 12


def read_zoo_belonging(folder: Path) -> Belonging:
    return Belonging.model_validate(json.loads((folder / MANIFEST).read_text())["belonging"])


def test_a_shard_whose_header_was_changed_is_refused(tmp_path: Path) -> None:
    content = shard_bytes(shard_of(0), BELONGING)
    path = tmp_path / shard_file(0)
    path.parent.mkdir()
    changed = content.replace(b"train-0-3", b"train-0-7")
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(DigestError, match="changed after it was written"):
        read_shard(tmp_path, 0, BELONGING)
    path.write_bytes(safetensors.torch.save({"deltas": torch.zeros(2, 8)}))
    with pytest.raises(CheckpointError, match="no shard"):
        read_shard(tmp_path, 0, BELONGING)


def test_one_zoo_has_one_network_one_base_and_one_recipe(tmp_path: Path) -> None:
    write_shard(tmp_path, shard_of(0), BELONGING)
    other = FlatLayout(("weight", "bias"), ((2, 4), (2,)))
    wrong = {
        "another network": Belonging.of("key", "base", other),
        "another base": Belonging.of("key", "other base", LAYOUT),
        "another recipe": Belonging.of("other key", "base", LAYOUT),
    }
    for words, belonging in wrong.items():
        with pytest.raises(DataError, match=words):
            read_shard(tmp_path, 0, belonging)
        with pytest.raises(DataError, match=words):
            finish_zoo(tmp_path, manifest_of(belonging, 1), None)
    with pytest.raises(DataError, match=r"expected deltas \(fits, 8\), got \(6, 9\)"):
        write_shard(tmp_path, shard_of(1, size=9), BELONGING)


def test_another_base_in_the_folder_is_refused(tmp_path: Path) -> None:
    zoo_of(tmp_path, [shard_of(0)])
    base_of(tmp_path, seed=1)
    with pytest.raises(DataError, match="another base than the fits began from"):
        read_zoo(tmp_path)
    (tmp_path / BASE).unlink()
    with pytest.raises(CheckpointError, match=r"base\.safetensors"):
        read_zoo(tmp_path)


def test_an_unfinished_folder_and_an_unknown_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no finished zoo"):
        read_zoo(tmp_path)
    zoo_of(tmp_path, [shard_of(0)])
    whole = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps({**whole, "schema_version": 2}))
    with pytest.raises(CheckpointError, match="schema version 2"):
        read_zoo(tmp_path)
    (tmp_path / MANIFEST).write_text(json.dumps({**whole, "surprise": 2}))
    with pytest.raises(CheckpointError, match="surprise"):
        read_zoo(tmp_path)


def test_what_is_left_out_is_counted_with_its_reason(tmp_path: Path) -> None:
    bad = shard_of(1)
    losses = bad.members.losses.clone()
    losses[4] = 3.0
    ids = (*bad.members.ids[:5], "train-0-2")
    deltas = bad.members.deltas.clone()
    deltas[1] = shard_of(0).members.deltas[3] * (1 + 1e-7)
    bad = with_members(bad, losses=losses, ids=ids, deltas=deltas)
    bad = replace(bad, failed={"train-1-6": "the loss is nan"})
    hard = shard_of(2, "test")
    hard = with_members(hard, losses=torch.full((6,), 9.0))
    zoo = zoo_of(tmp_path, [shard_of(0), bad, hard])
    assert zoo.manifest.shards[1].left_out == {1: SAME_WEIGHTS, 4: OUTLIER, 5: SAME_TASK}
    count = zoo.manifest.count("train")
    assert (count.fits, count.members) == (13, 9)
    assert count.excluded == {DIVERGED: 1, OUTLIER: 1}
    assert count.duplicates == {SAME_TASK: 1, SAME_WEIGHTS: 1}
    assert zoo.members("train").ids == shard_of(0).members.ids + tuple(ids[i] for i in (0, 2, 3))
    assert len(zoo.metric("train")) == 9
    assert len(zoo.members("test")) == 6  # hard tasks of the held-out splits count


def test_a_task_that_is_held_out_is_not_learned_from() -> None:
    train, test = shard_of(0), shard_of(1, "test")
    leaked = with_members(train, ids=(test.members.ids[2], *train.members.ids[1:]))
    left_out, _ = cull([leaked, test], None)
    assert left_out == [{0: SAME_TASK}, {}]


def test_without_a_training_fit_there_is_no_zoo() -> None:
    none = shard_of(0, count=0)
    with pytest.raises(DataError, match="no fit of the train split is left"):
        cull([none, shard_of(1, "test")], 6.0)


def test_a_shard_holds_finite_numbers_only() -> None:
    shard = shard_of(0)
    deltas = shard.members.deltas.clone()
    deltas[0, 0] = torch.nan
    with pytest.raises(DataError, match="not finite: deltas"):
        with_members(shard, deltas=deltas)
    with pytest.raises(DataError, match="first loss"):
        replace(shard, start_losses=torch.ones(2))


def test_the_limit_follows_the_median_of_the_losses() -> None:
    losses = torch.tensor([1.0, 2.0, 4.0, 8.0, 1e9])
    # Log losses 0, 1, 2, 3, 29.9 (in log 2): the median is 2, and the median deviation 1.
    assert loss_limit(losses, 2.0) == pytest.approx(4 * 2 ** (2 * 1.4826))
    assert loss_limit(torch.zeros(3), 6.0) < 1e-290
    # Small losses have digits, too, and a fit that has solved its task is none that failed.
    assert loss_limit(torch.full((3,), 1e-14), 6.0) == pytest.approx(2e-14)
    assert loss_limit(torch.full((3,), 1e-6), 6.0, start=0.1) == pytest.approx(1e-4)


def test_copies_are_found_however_many_there_are() -> None:
    generator = torch.Generator().manual_seed(0)
    different = torch.randn(50, 7, generator=generator)
    different = different / torch.linalg.vector_norm(different, dim=1, keepdim=True)  # all of one length
    assert not repeated_weights(different).any()
    order = torch.randperm(150, generator=generator)
    found = repeated_weights(different.repeat(3, 1)[order])
    first = {int(n % 50): place for place, n in reversed(list(enumerate(order.tolist())))}
    assert [place for place in range(150) if not found[place]] == sorted(first.values())
    assert repeated_weights(torch.zeros(4, 3)).tolist() == [False, True, True, True]
    assert repeated_weights(torch.zeros(0, 3)).tolist() == []


def test_members_of_a_split_that_has_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="validation split of the zoo 'toy' has no member"):
        zoo_of(tmp_path, [shard_of(0)]).members("validation")
    assert isinstance(read_zoo(tmp_path).members(), Members)
