"""Zoos in a real store: recorded once, found by name, verified on the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from hypernets.generator.shards import shard_file
from hypernets.generator.zoo import BASE, MANIFEST, read_zoo
from metainit.errors import CheckpointError, RegistryError
from metainit.places import cache_folder
from metainit.transfer import file_sha256
from pipelines.connection import connect
from pipelines.ray_train import open_run
from pipelines.registry import Registry
from pipelines.zoo.build import Built, build_zoo
from pipelines.zoo.commands import default_folder, described, text_of, zoo
from pipelines.zoo.preparation import prepare_zoo
from pipelines.zoo.prior import base_file
from pipelines.zoo.recipe import ZooRecipe
from pipelines.zoo.tracking import ARTIFACTS, find_zoo, record_zoo
from tests.pipelines.zoo.fixtures import prior_in, recipe_of


def recorded(folder: Path, recipe: ZooRecipe) -> tuple[Built, str]:
    """Build a zoo and record it, as the command does; return it and its run."""
    base = Path(recipe.prior)
    built = build_zoo(prepare_zoo(recipe, base), base, folder)
    with open_run(recipe, folder) as sink:
        record_zoo(built, sink)
    return built, sink.run_id


def test_a_finished_zoo_is_a_run_and_is_found_by_its_name(tmp_path: Path, home: Path) -> None:
    built, run_id = recorded(tmp_path / "zoo", recipe_of(tmp_path))
    run = connect().client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.params["fit.steps"] == "10"
    metrics = run.data.metrics
    assert (metrics["train_members"], metrics["test_members"], metrics["train_excluded"]) == (30, 3, 0)
    assert metrics["loss_05"] <= metrics["loss_50"] <= metrics["loss_95"] and metrics["seconds_per_fit"] > 0
    assert metrics["median_psnr"] > 0 and "midpoint_psnr" in metrics and "midpoint_share" in metrics
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.digest == built.zoo.manifest.data.fingerprint[:36]
    found = find_zoo("toy")
    assert found.parent == cache_folder("zoos") and found != tmp_path / "zoo"
    for name in (MANIFEST, BASE, *(shard_file(n) for n in range(5))):
        assert (found / name).read_bytes() == (tmp_path / "zoo" / name).read_bytes()
    assert find_zoo(tmp_path / "zoo") == tmp_path / "zoo"
    assert find_zoo(str(tmp_path / "zoo")) == tmp_path / "zoo"


def test_the_newest_zoo_of_a_name_is_found_and_half_of_one_is_not(tmp_path: Path, home: Path) -> None:
    recorded(tmp_path / "one", recipe_of(tmp_path))
    newer, _ = recorded(tmp_path / "two", recipe_of(tmp_path, seed=2))
    with open_run(recipe_of(tmp_path), tmp_path / "three") as sink, sink.connection.calls("upload") as client:
        client.log_artifacts(sink.run_id, str(tmp_path / "one" / "shards"), f"{ARTIFACTS}/shards")
        client.set_tag(sink.run_id, "metainit.zoo", "toy")  # killed before the digest was written
    assert find_zoo("toy").name == file_sha256(newer.zoo.folder / MANIFEST)


def test_recording_again_changes_nothing(tmp_path: Path, home: Path) -> None:
    recipe = recipe_of(tmp_path)
    _, first = recorded(tmp_path / "zoo", recipe)
    metrics = connect().client.get_run(first).data.metrics
    again, second = recorded(tmp_path / "zoo", recipe)
    assert again.fitted == 0 and first == second
    assert connect().client.get_run(first).data.metrics == metrics


def test_what_was_damaged_in_the_store_is_not_installed(tmp_path: Path, home: Path) -> None:
    recorded(tmp_path / "zoo", recipe_of(tmp_path))
    (file,) = home.rglob("00001.safetensors")
    sound = file.read_bytes()
    file.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"00001\.safetensors"):
        find_zoo("toy")
    assert list(cache_folder("zoos").iterdir()) == []
    file.write_bytes(sound)
    (manifest,) = home.rglob(MANIFEST)
    manifest.write_bytes(manifest.read_bytes().replace(b'"fits":12', b'"fits":13'))
    with pytest.raises(RegistryError, match="not the one that was recorded"):
        find_zoo("toy")


def test_a_damaged_zoo_in_the_cache_is_fetched_again(tmp_path: Path, home: Path) -> None:
    built, _ = recorded(tmp_path / "zoo", recipe_of(tmp_path))
    file = find_zoo("toy") / shard_file(1)
    for damaged in (file.read_bytes()[:-1], None):
        file.unlink()
        if damaged is not None:
            file.write_bytes(damaged)
        assert find_zoo("toy") == file.parents[1]
        assert file.read_bytes() == (built.zoo.folder / shard_file(1)).read_bytes()


def test_a_name_that_no_zoo_has_is_answered_with_the_nearest(tmp_path: Path, home: Path) -> None:
    with pytest.raises(RegistryError, match=r"no zoo has been built there yet.*metainit zoo build toys"):
        find_zoo("toys")
    recorded(tmp_path / "zoo", recipe_of(tmp_path))
    with pytest.raises(RegistryError, match="did you mean 'toy'"):
        find_zoo("toys")
    with pytest.raises(RegistryError, match="no finished zoo is called"):
        find_zoo("toy' OR '1'='1")


def test_show_says_what_is_in_a_zoo(tmp_path: Path, home: Path) -> None:
    built, _ = recorded(tmp_path / "zoo", recipe_of(tmp_path))
    for name in ("toy", str(tmp_path / "zoo")):
        said = CliRunner().invoke(zoo, ["show", name, "--json"])
        assert said.exit_code == 0, said.output
        answer = json.loads(said.stdout)
        assert answer["counts"]["train"]["members"] == 30 and answer["prior"] == "images"
        assert answer["size"] == built.zoo.layout.size
    text = CliRunner().invoke(zoo, ["show", "toy"]).stdout
    assert "train: 30 members of 30 fits" in text and "halfway between two fits" in text
    assert text_of(described(built.zoo)).splitlines()[1].startswith("prior: images")


def test_the_command_knows_what_is_no_zoo(home: Path) -> None:
    said = CliRunner().invoke(zoo, ["build", "ct-phantoms-debug"])
    assert said.exit_code == 2 and "use `metainit train" in " ".join(said.output.split())
    said = CliRunner().invoke(zoo, ["build", "zoo-digits-debug", "--set", "membres=3"])
    assert said.exit_code == 2 and "members" in said.output


def test_an_app_can_be_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.metadata

    from metainit import cli

    point = importlib.metadata.EntryPoint("zoo", "pipelines.zoo.commands:zoo", cli.GROUP)
    monkeypatch.setattr(cli, "_offered", lambda: {"zoo": point})
    for arguments, words in ((["zoo", "--help"], ["build", "show"]), (["zoo", "build", "--help"], ["--set"])):
        with pytest.raises(SystemExit) as left:
            cli.main(arguments)
        page = capsys.readouterr().out
        assert left.value.code == 0 and page.split()[:3] == ["Usage:", "metainit", "zoo"]
        assert all(word in page for word in words)


def test_a_priors_recipe_stands_for_its_champion_and_is_trained_where_there_is_none(
    tmp_path: Path, home: Path
) -> None:
    name, trained = "image-folder-debug", []
    recipe = recipe_of(tmp_path, prior=name, domain={"data": str(tmp_path / "images.npz")})
    content = prior_in(tmp_path).read_bytes()

    def train(prior: Any, note: Any) -> None:
        trained.append((prior.name, prior.places))
        run = tmp_path / "run"
        run.mkdir()
        (run / "checkpoint.safetensors").write_bytes(content)
        Registry().register(run, prior.name)

    for _ in range(2):
        assert base_file(recipe, lambda text: None, train).read_bytes() == content
    assert trained == [(name, {"domain.data": str(tmp_path / "images.npz")})]
    other = recipe_of(tmp_path, prior=f"models:/{name}/1")
    assert base_file(other, lambda text: None, train).read_bytes() == content


@pytest.mark.ray
@pytest.mark.slow
def test_a_zoo_on_ray_is_the_plain_zoo(tmp_path: Path, home: Path) -> None:
    recipe = recipe_of(tmp_path)
    base = Path(recipe.prior)
    prepared = prepare_zoo(recipe, base)
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(recipe.dump()))
    said = CliRunner().invoke(zoo, ["build", str(file), "--json"])
    assert said.exit_code == 0, said.output
    answer = json.loads(said.stdout)
    folder = default_folder(prepared)
    assert answer["folder"] == str(folder) and answer["fitted"] == 35
    plain = build_zoo(prepared, base, tmp_path / "plain").zoo
    for name in (MANIFEST, BASE, *(shard_file(n) for n in range(5))):
        assert (folder / name).read_bytes() == (plain.folder / name).read_bytes()
    assert "35 of 35 fits" in said.stderr
    assert read_zoo(find_zoo("toy")).manifest == plain.manifest
    again = json.loads(CliRunner().invoke(zoo, ["build", str(file), "--json"]).stdout)
    assert again["fitted"] == 0 and again["run_id"] == answer["run_id"]
