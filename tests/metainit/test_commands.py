"""`metainit measure` and `metainit fit`, from the command line to the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.io

from metainit import checkpoint
from metainit.card import AdaptationRoutine, Card, DataSource, Method, Provenance, Spec
from metainit.cli import main
from metainit.evidence.measuring import Evidence
from metainit.evidence.metrics import MAX_PSNR
from metainit.fitting import REPORT_FILE, WEIGHTS_FILE
from metainit.initialization import load
from metainit.networks import build
from tests.metainit.evidence.toys import BLOB_DOMAIN, NETWORK, blob_prior, blobs

SPEC = json.dumps(NETWORK.model_dump())


def status_of(arguments: list[str | Path]) -> int:
    with pytest.raises(SystemExit) as left:
        main([str(a) for a in arguments])
    return int(left.value.code or 0)


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blob_prior(tmp_path_factory.mktemp("prior"), steps=30)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Images as a user's npz file."""
    file = tmp_path / "images.npz"
    np.savez(file, x=blobs(10, seed=5))
    return file


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, image in enumerate(blobs(3)):
        pixels = np.round(255 * image).astype(np.uint8)
        skimage.io.imsave(folder / f"{number}.png", pixels, check_contrast=False)
    return folder


def test_measure_end_to_end(
    prior: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command: list[str | Path] = ["measure", prior, "kaiming", "--data", data, "--out", out]
    options: list[str | Path] = ["--steps", "1,0", "--tasks", "2", "--seeds", "1"]
    assert status_of([*command, *options, "--json"]) == 0
    said = capsys.readouterr()
    value = json.loads(said.out)  # nothing but JSON on stdout
    assert value["steps"] == [0, 1, 2] and value["task_ids"] == ["images.npz[8]", "images.npz[9]"]
    names = [c["source"] for c in value["curves"]]
    assert names[:2] == ["blobs-0", "kaiming"] and {"siren", "shuffled", "mean_signal"} <= set(names)
    assert len(set(names)) == len(names)
    assert value["domain"]["arguments"] == {**BLOB_DOMAIN.arguments, "data": str(data)}
    assert json.loads((out / "evidence.json").read_text()) == value
    assert (out / "evidence.txt").read_text() == Evidence.from_json(out / "evidence.json").table() + "\n"
    assert skimage.io.imread(out / "evidence.png").size > 100_000
    kept = (out / "evidence.json").read_bytes()
    assert status_of([*command, *options]) == 0
    table = capsys.readouterr().out
    assert table.startswith((out / "evidence.txt").read_text())
    assert table.endswith("evidence.txt, evidence.json, evidence.png\n")
    assert (out / "evidence.json").read_bytes() == kept


def test_measure_an_analytic_start_on_phantoms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No card says anything here: domain and network are of the command line."""
    tiny = "{name: siren, arguments: {width: 4, depth: 2, out_features: 1}}"
    options = ["--domain", "ct", "--network", tiny, "--steps", "0", "--tasks", "1", "--seeds", "1"]
    assert status_of(["measure", "siren", *options, "--out", tmp_path / "out", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["headline"] is None and value["task_ids"] == ["phantom-test-0"]
    assert value["network"]["arguments"]["width"] == 4


def test_measure_does_not_put_other_data_in_place_of_a_users(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without its slices the domain of such a card would draw phantoms."""
    network = Spec(name="siren", arguments={"width": 4, "depth": 2, "out_features": 1})
    source = DataSource(description="my scans", fingerprint="0" * 64)
    card = Card(
        kind="prior",
        name="scans",
        method=Method(name="reptile"),
        network=network,
        domain=Spec(name="ct", arguments={"size": 8}),
        routine=AdaptationRoutine(steps=1, step_size=0.1),
        provenance=Provenance(data=source),
    )
    path = tmp_path / "scans.safetensors"
    checkpoint.save(path, dict(build(network).state_dict()), card)
    assert status_of(["measure", path, "--out", tmp_path / "out"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "'scans' was learned on other data (my scans)" in said and "--data" in said


@pytest.mark.parametrize("steps", ["abc", "1,x", "", "-1,2", "1.5"])
def test_steps_that_are_none_are_bad_usage(
    steps: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["measure", "siren", "--out", tmp_path, f"--steps={steps}"]) == 2
    said = capsys.readouterr()
    assert f"--steps {steps!r}: expected" in " ".join(said.err.split()) and said.out == ""


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["sirn", "--domain", "image"], 1, "did you mean 'siren'?"),
        (["siren", "--domain", "imag"], 1, "did you mean 'image'?"),
        (["siren"], 2, "no card names a domain: give --domain, one of image, ct"),
        (["siren", "--domain", "ct"], 1, "--network on the command line"),
        (["siren", "--domain", "ct", "--network", "{name"], 2, "--network '{name': expected"),
        (["siren", "--domain", "ct", "--network", "{width: 3}"], 2, "name"),
        (["siren", "--domain", "ct", "--network", "sirn"], 1, "did you mean 'siren'?"),
        (["siren", "--domain", "image", "--network", "siren", "--data", "nowhere"], 1, "nowhere"),
        (["siren", "--domain", "image", "--network", "siren"], 1, "set data to a folder of images"),
        (["siren", "--domain", "ct", "--tasks", "0"], 2, "--tasks"),
        (["missing.safetensors", "--domain", "ct"], 1, "cannot read missing.safetensors"),
    ],
)
def test_what_is_wrong_with_a_measurement_is_named(
    arguments: list[str], status: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["measure", *arguments, "--out", tmp_path / "out"]) == status
    said = capsys.readouterr()
    assert says in " ".join(said.err.replace("│", " ").split()) and said.out == ""
    assert "Traceback" not in said.err and not (tmp_path / "out").exists()


def test_fit_end_to_end(
    prior: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert status_of(["fit", pictures, "--init", prior, "-o", out, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / REPORT_FILE).read_text())
    assert list(report["fitted"]) == ["0.png", "1.png", "2.png"] and report["steps"] == 2
    assert all(10 < m["psnr"] <= MAX_PSNR for m in report["fitted"].values())
    more: list[str | Path] = [
        "fit",
        pictures / "0.png",
        "--init",
        out / "0.png" / WEIGHTS_FILE,
        "-o",
        out / "more",
    ]
    assert status_of([*more, "--step-size", "0.003", "--steps", "60", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["fitted"]["0.png"]["psnr"] > report["fitted"]["0.png"]["psnr"]


def test_fit_in_words(
    prior: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "[odd].png").write_bytes((pictures / "0.png").read_bytes())
    assert status_of(["fit", pictures, "--init", prior, "-o", tmp_path / "out"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("0.png: psnr ") and said[-2].startswith("[odd].png: psnr ")
    assert said[-1] == f"4 of 4 fitted, written to {tmp_path / 'out'}"


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_a_file_that_fails_is_named_and_the_others_are_fitted(
    as_json: list[str], prior: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "[").mkdir()  # "[/b]" would end a style in marked-up text
    (pictures / "[" / "b].png").write_bytes(b"no picture")
    assert status_of(["fit", pictures, "--init", prior, "-o", tmp_path / "out", *as_json]) == 1
    report: dict[str, Any] = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert list(report["failed"]) == ["[/b].png"] and len(report["fitted"]) == 3
    said = capsys.readouterr()
    if as_json:
        assert json.loads(said.out) == report
    else:
        assert "failed: [/b].png: " in said.err and "3 of 4 fitted" in said.out


@pytest.mark.parametrize(
    ("options", "status", "says"),
    [
        (["--init", "siren"], 1, "say which one with --network"),
        (["--init", "siren", "--network", SPEC], 1, "say which with --step-size"),
        (["--init", "sirn"], 1, "did you mean 'siren'?"),
        (["--init", "siren", "--step-size", "-1"], 2, "--step-size"),
        (["--init", "siren", "--steps", "-1"], 2, "--steps"),
        (["--init", "siren", "--network", "["], 2, "--network '['"),
        (["--init", "siren", "--device", "abacus"], 2, "--device 'abacus': expected cpu or cuda"),
        ([], 2, "--init"),
    ],
)
def test_what_is_wrong_with_a_fit_is_named(
    options: list[str],
    status: int,
    says: str,
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of(["fit", pictures, "-o", tmp_path / "out", *options]) == status
    said = capsys.readouterr()
    assert says in " ".join(said.err.replace("│", " ").split()) and said.out == ""
    assert "Traceback" not in said.err and not (tmp_path / "out").exists()


def test_no_steps_give_the_start_itself(pictures: Path, tmp_path: Path) -> None:
    options: list[str | Path] = [
        "--network",
        SPEC,
        "--step-size",
        "0.1",
        "--steps",
        "0",
        "-o",
        tmp_path / "out",
    ]
    assert status_of(["fit", pictures / "0.png", "--init", "siren", *options]) == 0
    written = load(tmp_path / "out" / "0.png" / WEIGHTS_FILE)
    report = json.loads((tmp_path / "out" / REPORT_FILE).read_text())
    assert report["steps"] == report["routine"]["steps"] == 0
    assert written.card.network == NETWORK
