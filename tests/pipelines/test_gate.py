"""The gate: the decision as a pure function, its application, and two runs that race."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from metainit.errors import MismatchError, RegistryError
from pipelines.gate import admit, decide
from pipelines.registry import Registry, Version
from tests.pipelines.conftest import MakeFolder, make_evidence


def test_a_first_version_has_to_beat_its_controls() -> None:
    assert decide(make_evidence(30, low=0.4)).alias == "champion"
    lost = decide(make_evidence(30, low=-0.1))
    assert lost.alias == "challenger"
    assert "not surely better than siren" in lost.reason


def test_without_evidence_nothing_wins() -> None:
    for evidence in (None, {}, {"headline": None}):
        decision = decide(evidence)
        assert (decision.alias, decision.comparable) == ("challenger", False)


def test_a_later_version_has_to_beat_the_champion_task_by_task() -> None:
    # The tasks differ by 5 dB, the versions by 0.3 dB: only the paired comparison can tell.
    better = decide(make_evidence(30.3, seed=1), make_evidence(30.0, seed=2))
    assert better.alias == "champion"
    assert better.gain == pytest.approx(0.3, abs=0.1)
    assert better.low is not None and 0 < better.low < 0.3
    worse = decide(make_evidence(30.0, seed=1), make_evidence(30.3, seed=2))
    assert worse.alias == "challenger"
    same = decide(make_evidence(30.0, seed=1), make_evidence(30.0, seed=1))
    assert (same.alias, same.gain) == ("challenger", 0.0)


def test_crops_of_few_photographs_prove_less_than_as_many_photographs() -> None:
    """Of four photographs the new version is better on three; the gate must not count their 16 crops."""
    candidate, champion = make_evidence(30.0, seed=1), make_evidence(30.0, seed=1)
    for seed in candidate["curves"][0]["values"]:
        for task, at in enumerate(seed):
            at[1] += 0.4 if task < 12 else -0.3
    assert decide(candidate, champion).alias == "champion"
    groups = [f"photograph-{i // 4}" for i in range(16)]
    decision = decide({**candidate, "task_groups": groups}, champion)
    assert decision.alias == "challenger"
    assert "3 seeds, 16 tasks in 4 groups" in decision.reason
    with pytest.raises(RegistryError, match="15 groups, expected one for each of 16 tasks"):
        decide({**candidate, "task_groups": groups[1:]}, champion)


def test_a_metric_that_is_better_when_lower() -> None:
    less = make_evidence(1.0, seed=1, higher_is_better=False)
    more = make_evidence(2.0, seed=2, higher_is_better=False)
    assert decide(less, more).alias == "champion"
    assert decide(more, less).alias == "challenger"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"network": {"name": "siren", "arguments": {"width": 8}}}, "network"),
        ({"data_fingerprint": "photos-2"}, "data_fingerprint"),
        ({"task_ids": [f"other-{i}" for i in range(16)]}, "task_ids"),
        ({"metric": "ssim"}, "metric"),
        ({"domain": {"name": "image", "arguments": {"size": 32}}}, "domain"),
    ],
)
def test_what_changed_is_refused_and_named(change: dict[str, Any], named: str) -> None:
    decision = decide(make_evidence(40, **change), make_evidence(30))
    assert (decision.alias, decision.comparable) == ("challenger", False)
    assert decision.reason.startswith(f"{named} changed")


def test_the_same_data_in_another_place_is_comparable() -> None:
    moved = make_evidence(40) | {"domain": {"name": "image", "arguments": {"size": 64, "data": "elsewhere"}}}
    assert decide(moved, make_evidence(30)).comparable


def test_a_champion_that_was_not_measured_at_the_step_is_refused() -> None:
    candidate = make_evidence(40, steps=[0, 5])
    candidate["headline"]["steps"] = 5
    decision = decide(candidate, make_evidence(30))
    assert "not measured at 5 steps" in decision.reason


def test_malformed_evidence_is_an_error_with_a_way_out() -> None:
    broken = make_evidence(30, curves=[{"role": "candidate"}])
    with pytest.raises(RegistryError, match="measure again"):
        decide(broken, make_evidence(30))


def test_the_alias_moves_as_decided(home: Path, make_folder: MakeFolder) -> None:
    registry = Registry()
    first = registry.register(make_folder(1, make_evidence(30, seed=1)), "faces")
    assert admit(registry, first).alias == "champion"
    worse = registry.register(make_folder(2, make_evidence(29, seed=2)), "faces")
    decision = admit(registry, worse)
    assert (decision.alias, decision.against) == ("challenger", "faces/1")
    better = registry.register(make_folder(3, make_evidence(31, seed=3)), "faces")
    assert admit(registry, better).alias == "champion"
    assert registry.aliases("faces") == {"champion": 3, "previous": 1, "challenger": 2}
    kept = json.loads(registry.resolve("faces/3").tags["metainit.gate"])
    assert kept["alias"] == "champion" and kept["low"] > 0
    assert admit(registry, better).reason == "it is the champion already"


def test_another_network_is_refused_unless_both_are_measured_again(
    home: Path, make_folder: MakeFolder
) -> None:
    registry = Registry()
    admit(registry, registry.register(make_folder(1, make_evidence(30)), "faces"))
    changed = make_evidence(20, network={"name": "fourier_mlp", "arguments": {}})
    version = registry.register(make_folder(2, changed), "faces")
    refused = admit(registry, version)
    assert refused.alias == "challenger" and "network changed" in refused.reason
    asked: list[tuple[str, str]] = []

    def remeasure(new: Version, old: Version) -> tuple[dict[str, Any], dict[str, Any]]:
        asked.append((new.reference, old.reference))
        return make_evidence(31, seed=5), make_evidence(30, seed=6)

    assert admit(registry, version, remeasure).alias == "champion"
    assert asked == [("faces/2", "faces/1")]
    assert registry.aliases("faces") == {"champion": 2, "previous": 1}


def test_where_measuring_again_fails_the_reason_says_so(home: Path, make_folder: MakeFolder) -> None:
    registry = Registry()
    admit(registry, registry.register(make_folder(1, make_evidence(30)), "faces"))
    version = registry.register(make_folder(2, make_evidence(31, data_fingerprint="other")), "faces")

    def remeasure(new: Version, old: Version) -> tuple[dict[str, Any], dict[str, Any]]:
        raise MismatchError("one output, expected 3")

    refused = admit(registry, version, remeasure)
    assert refused.alias == "challenger" and not refused.comparable
    assert "data_fingerprint changed" in refused.reason
    assert "faces/1 could not be measured again: one output, expected 3" in refused.reason


def test_a_champion_without_evidence_is_not_overtaken_silently(home: Path, make_folder: MakeFolder) -> None:
    registry = Registry()
    registry.promote(registry.register(make_folder(1), "faces").reference)
    version = registry.register(make_folder(2, make_evidence(30)), "faces")
    assert "champion has no evidence" in admit(registry, version).reason


RACER = """
import sys
from pipelines.gate import admit
from pipelines.registry import Registry

registry = Registry()
version = registry.resolve(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print(admit(registry, version).alias, flush=True)
"""


@pytest.mark.timeout(120)
def test_two_racing_runs_cannot_both_win(home: Path, make_folder: MakeFolder) -> None:
    """Both beat the champion, by the same: whoever comes second meets the winner and loses."""
    registry = Registry()
    admit(registry, registry.register(make_folder(1, make_evidence(30, seed=1)), "faces"))
    racers = [
        registry.register(make_folder(seed, make_evidence(31, seed=7)), "faces").reference for seed in (2, 3)
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", RACER, racers[0]], stdin=pipe, stdout=pipe, text=True
    ) as other:
        assert other.stdin is not None and other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        mine = registry.resolve(racers[1])
        other.stdin.write("go\n")
        other.stdin.flush()
        here = admit(registry, mine).alias
        outcome = [other.communicate(timeout=60)[0].strip(), here]
    assert sorted(outcome) == ["challenger", "champion"]
    assert registry.resolve("faces@champion").reference == racers[outcome.index("champion")]
    assert registry.resolve("faces@previous").version == 1
