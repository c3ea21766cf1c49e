"""Tables and pictures of evidence."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage.io
import torch

from metainit.evidence.measuring import Evidence
from metainit.evidence.record import Curve, EvidenceRecord, Headline
from metainit.evidence.report import plot_reconstructions

ROOT = Path(__file__).parents[3]
NAMES = ("faces", "siren", "kaiming", "siren_scaled")


def curve(name: str, level: float, candidate: bool = False) -> Curve:
    values = [[[level, level + 2.0, level + 5.0] for _ in range(4)] for _ in range(3)]
    return Curve(
        source=name,
        role="candidate" if candidate else "control",
        routine={"steps": 2} if candidate else {},
        values=values,
        mean=values[0][0],
        low=[v - 0.5 for v in values[0][0]],
        high=[v + 0.5 for v in values[0][0]],
    )


@pytest.fixture
def evidence() -> Evidence:
    headline = Headline(
        metric="psnr", steps=2, value=25.0, control="siren_scaled", control_value=17.0, gain=8.0, low=7.5,
        high=8.5, tasks=4, seeds=3,
    )  # fmt: skip
    levels = zip(NAMES, (20.0, 10.0, 11.0, 12.0), strict=True)
    return Evidence(
        EvidenceRecord(
            domain=None,
            data_fingerprint="x",
            network=None,
            metric="psnr",
            steps=[0, 1, 2],
            task_ids=["a", "b", "c", "d"],
            seeds=[0, 1, 2],
            curves=[curve(name, level, name == "faces") for name, level in levels],
            comparisons=[],
            headline=headline,
        )
    )


def test_the_table_has_every_start_once_the_candidate_first_then_the_best(evidence: Evidence) -> None:
    lines = evidence.table().splitlines()
    rows = [line.split()[0] for line in lines if line.split()[0] in NAMES]
    assert rows == ["faces", "siren_scaled", "kaiming", "siren"]
    assert "20.00 [19.5, 20.5]" in lines[2] and "25.00 [24.5, 25.5]" in lines[2]
    assert "over 4 held-out tasks and seeds (3 for candidates, 3 for controls)" in lines[-2]
    assert lines[-1].endswith("17.00 dB of the best control (siren_scaled): +8.00 dB [+7.50, +8.50]")
    assert max(map(len, lines[:6])) == len(lines[0]) == len(lines[1])


def test_the_table_in_the_guide_ends_as_tables_do(evidence: Evidence) -> None:
    _, _, said = evidence.table().splitlines()[-2].partition("; ")
    assert said.startswith("without a routine")
    assert said in (ROOT / "docs" / "pictures" / "evidence.txt").read_text()


@pytest.mark.parametrize(
    ("groups", "says"),
    [
        ("abcd", "over 4 held-out tasks and"),
        ("aabb", "4 held-out tasks in 2 groups and"),
        ("aaaa", "in 1 group "),
    ],
)
def test_the_table_says_how_many_groups_the_tasks_come_from(
    evidence: Evidence, groups: str, says: str, tmp_path: Path
) -> None:
    record = evidence.record.model_copy(update={"task_groups": list(groups)})
    found = Evidence(record)
    assert says in found.table().splitlines()[-2]
    found.to_json(tmp_path / "evidence.json")
    assert Evidence.from_json(tmp_path / "evidence.json").record == record


def test_groups_are_as_many_as_tasks_or_none_at_all(evidence: Evidence) -> None:
    value = evidence.record.model_dump(mode="json")
    del value["task_groups"]
    assert EvidenceRecord.model_validate(value) == evidence.record  # written before there were groups
    with pytest.raises(ValueError, match="3 task_groups of 4 task_ids"):
        EvidenceRecord.model_validate({**value, "task_groups": ["a", "a", "b"]})


def test_a_plot_shows_few_controls_the_headlines_among_them(evidence: Evidence, tmp_path: Path) -> None:
    curves = [*evidence.record.curves, *(curve(f"control-{n}", 13.0 + n / 10) for n in range(8))]
    extra = [curve(f"source-{n}", 15.0 + n).model_copy(update={"role": "source"}) for n in range(3)]
    record = evidence.record.model_copy(update={"curves": [*curves, *extra]})
    Evidence(record).plot(tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text()
    for name in ("faces", "siren_scaled", "control-7", "control-3", "source-0", "source-2"):
        assert f"<!-- {name} -->" in text, name
    assert "<!-- 5 more in the table -->" in text
    for name in ("siren", "kaiming", "control-0"):
        assert f"<!-- {name} -->" not in text, name


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_a_plot_has_the_same_bytes_each_time(evidence: Evidence, suffix: str, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        evidence.plot(tmp_path / folder / f"curves.{suffix}")
    one, two = ((tmp_path / f / f"curves.{suffix}").read_bytes() for f in ("one", "two"))
    assert one == two
    assert {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix] == one[:5].rstrip(b"\r-")[:5]


def test_a_plot_shows_the_curves(evidence: Evidence, tmp_path: Path) -> None:
    evidence.plot(tmp_path / "curves.svg")
    evidence.plot(tmp_path / "curves.png")
    text = (tmp_path / "curves.svg").read_text()
    for name in NAMES:
        assert text.count(f"<!-- {name} -->") == 1  # each start once, in the legend
    pixels = skimage.io.imread(tmp_path / "curves.png")
    ours = (abs(pixels[..., :3].astype(int) - (0xC2, 0x41, 0x0C)) < 3).all(-1)
    assert ours.sum() > 500  # the candidate's line
    other = Evidence(evidence.record.model_copy(update={"curves": evidence.record.curves[:2]}))
    other.plot(tmp_path / "other.png")
    assert (tmp_path / "other.png").read_bytes() != (tmp_path / "curves.png").read_bytes()


def test_reconstructions_show_their_images(tmp_path: Path) -> None:
    shades = [0.0, 0.25, 0.5, 0.75, 1.0]
    target, *images = (torch.full((4, 6, 1), shade) for shade in shades)
    rows = {"prior": images[:2], "siren": images[2:]}
    captions = {"prior": ["1.0 dB", "2.0 dB"], "siren": ["3.0 dB", "4.0 dB"]}
    for name in ("a.png", "b.png"):
        plot_reconstructions(rows, captions, target, [0, 1], tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    pixels = skimage.io.imread(tmp_path / "a.png")[..., :3]
    assert pixels.shape[1] > pixels.shape[0]
    for shade in shades:
        level = round(255 * shade)
        assert (abs(pixels.astype(int) - level) <= 1).all(-1).sum() > 2000  # a whole square of that grey


def test_reconstructions_in_colour(tmp_path: Path) -> None:
    red = torch.zeros(4, 4, 3)
    red[..., 0] = 1
    plot_reconstructions({"prior": [red]}, {"prior": [""]}, red, [2], tmp_path / "red.png")
    pixels = skimage.io.imread(tmp_path / "red.png")[..., :3]
    assert (pixels == (255, 0, 0)).all(-1).sum() > 2000


def test_evidence_of_version_1_is_still_read(evidence: Evidence) -> None:
    value = evidence.record.model_dump(mode="json")
    old = {k: v for k, v in value.items() if k != "metric"} | {"schema_version": 1}
    old["curves"] = [{k: v for k, v in c.items() if k != "further"} for c in value["curves"]]
    old["curves"][0]["ssim"] = [0.5, 0.6, 0.7]
    old["curves"][1]["ssim"] = []
    read = EvidenceRecord.model_validate(old)
    assert read.curves[0].further == {"ssim": [0.5, 0.6, 0.7]} and read.curves[1].further == {}
    assert read.metric == "psnr" and read.schema_version == 2
    assert read.headline == evidence.record.headline
    with pytest.raises(ValueError, match="schema_version"):
        EvidenceRecord.model_validate({**value, "schema_version": 3})


def test_a_metric_without_a_unit_is_written_with_three_digits(evidence: Evidence, tmp_path: Path) -> None:
    shares = [
        c.model_copy(update={part: [v / 100 for v in getattr(c, part)] for part in ("mean", "low", "high")})
        for c in evidence.record.curves
    ]
    assert evidence.headline is not None
    headline = evidence.headline.model_copy(
        update={
            "metric": "iou",
            "value": 0.25,
            "control_value": 0.17,
            "gain": 0.08,
            "low": 0.07,
            "high": 0.09,
        }
    )
    changes = {"metric": "iou", "curves": shares, "headline": headline}
    found = Evidence(evidence.record.model_copy(update=changes))
    lines = found.table().splitlines()
    assert "0.200 [0.20, 0.20]" in lines[2] and "dB" not in found.table()
    assert lines[-2].startswith("iou, mean [95 % interval]")
    assert lines[-1].endswith("0.170 of the best control (siren_scaled): +0.080 [+0.070, +0.090]")
    found.plot(tmp_path / "iou.svg")
    assert "<!-- iou -->" in (tmp_path / "iou.svg").read_text()
