"""A back-up brings back the same bytes, numbers, aliases and history, resumes, and overwrites nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import metainit
from metainit.errors import RegistryError
from metainit.transfer import file_sha256
from pipelines import backup as backup_module
from pipelines import keeping_commands
from pipelines.backup import back_up, read_backup
from pipelines.connection import DATABASE
from pipelines.gate import admit
from pipelines.registry import Registry
from pipelines.restoring import restore
from tests.pipelines.conftest import MakeFolder, make_evidence


@pytest.fixture
def registry(home: Path, make_folder: MakeFolder) -> Registry:
    """Champion 4 and challenger 2; 1 and 3 are deleted."""
    made = Registry()
    for seed in (1, 2, 3, 4):
        made.register(make_folder(seed, make_evidence(30 + seed, seed=seed)), "faces")
    for number in (1, 3):
        made.delete(f"faces/{number}")
    admit(made, made.resolve("faces/4"))
    admit(made, made.resolve("faces/2"))
    return made


@pytest.fixture
def other(empty_store: Path, tmp_path: Path) -> Registry:
    """An empty registry with its artifacts in another folder."""
    place = tmp_path / "other"
    place.mkdir()
    shutil.copyfile(empty_store, place / DATABASE)
    return Registry(f"sqlite:///{place / DATABASE}")


def files(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): file_sha256(p) for p in folder.rglob("*") if p.is_file()}


def test_everything_comes_back_elsewhere(registry: Registry, other: Registry, tmp_path: Path) -> None:
    done = back_up(registry, ["faces"], tmp_path / "backup")
    assert [(one.copied, one.present) for one in done] == [((2, 4), ())]
    (restored,) = restore(other, tmp_path / "backup")
    assert restored.restored == (2, 4) and restored.kept == {}
    assert other.aliases("faces") == registry.aliases("faces") == {"champion": 4, "challenger": 2}
    assert other.moves("faces") == registry.moves("faces")
    for mine in registry.versions("faces"):
        theirs = other.resolve(mine.reference)
        assert theirs.tags.items() >= mine.tags.items()
        assert json.loads(theirs.tags["metainit.restored"])["run"] == mine.run_id
        folders = [r.download(v, tmp_path / n) for r, v, n in ((registry, mine, "a"), (other, theirs, "b"))]
        assert files(folders[0]) == files(folders[1])
    (again,) = restore(other, tmp_path / "backup")
    assert (again.restored, again.present) == ((), (2, 4))
    assert [(one.copied, one.present) for one in back_up(registry, ["faces"], tmp_path / "backup")] == [
        ((), (2, 4))
    ]


def test_both_ways_go_on_where_they_were(
    registry: Registry, other: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, write = tmp_path / "backup", backup_module._write

    def full(path: Path, value: object) -> None:
        if "4" in path.parts:
            raise RegistryError("the disk is full")
        write(path, value)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(backup_module, "_write", full)
        with pytest.raises(RegistryError, match="disk is full"):
            back_up(registry, ["faces"], folder)
    with pytest.raises(RegistryError, match="no finished back-up"):
        read_backup(folder)
    (done,) = back_up(registry, ["faces"], folder)
    assert (done.copied, done.present) == ((4,), (2,))

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    client = type(other.connection.client)
    for method in ("create_model_version", "set_model_version_tag", "delete_model_version_tag"):
        with monkeypatch.context() as patch:
            patch.setattr(client, method, crash)
            with pytest.raises(KeyboardInterrupt):
                restore(other, folder)
        assert other.versions("faces") == [], "what is half restored is nobody's yet"
    (restored,) = restore(other, folder)
    assert restored.restored == (2, 4) and restored.aliases == registry.aliases("faces")


def test_nothing_is_overwritten(
    registry: Registry, other: Registry, make_folder: MakeFolder, tmp_path: Path
) -> None:
    back_up(registry, ["faces"], tmp_path / "backup")
    other.register(make_folder(9), "faces")
    other.register(make_folder(8), "faces")
    with pytest.raises(RegistryError, match="another version faces/2 than the back-up; nothing was changed"):
        restore(other, tmp_path / "backup")
    with pytest.raises(RegistryError, match="another version faces/2"):
        back_up(other, ["faces"], tmp_path / "backup")
    with pytest.raises(RegistryError, match="no back-up of hands"):
        restore(other, tmp_path / "backup", ["hands"])


def test_an_alias_that_was_moved_since_stays(registry: Registry, other: Registry, tmp_path: Path) -> None:
    back_up(registry, ["faces"], tmp_path / "backup")
    restore(other, tmp_path / "backup")
    other.promote("faces/2")
    (again,) = restore(other, tmp_path / "backup")
    assert again.kept == {"champion": 2} and other.resolve("faces").version == 2


@pytest.mark.parametrize("damage", ["flip", "lose", "escape", "add", "link", "rename", "climb", "renumber"])
def test_a_damaged_back_up_changes_nothing(
    registry: Registry, other: Registry, tmp_path: Path, damage: str
) -> None:
    back_up(registry, ["faces"], tmp_path / "backup")
    place = tmp_path / "backup/faces/versions/4"
    file = place / "files/pictures/curve.png"
    if damage == "flip":
        file.write_bytes(b"N" + file.read_bytes()[1:])
    elif damage == "lose":
        file.unlink()
    elif damage == "add":
        (place / "files/pictures/more.png").write_bytes(b"in no manifest")
    elif damage == "link":
        file.rename(tmp_path / "curve.png")
        file.symlink_to(tmp_path / "curve.png")
    elif damage == "rename":
        (tmp_path / "backup/faces").rename(tmp_path / "backup/hands")
    elif damage == "climb":
        record = tmp_path / "backup/faces/name.json"
        record.write_text(record.read_text().replace('"name": "faces"', '"name": "../faces"'))
    elif damage == "renumber":
        manifest = (place / "manifest.json").read_text()
        (place / "manifest.json").write_text(manifest.replace('"version": 4,', '"version": 5,'))
    else:
        manifest = (place / "manifest.json").read_text()
        (place / "manifest.json").write_text(manifest.replace("pictures/curve.png", "../../../secret.png"))
    with pytest.raises(RegistryError, match="damaged|outside its folder|other files|links|expected ('|4)"):
        restore(other, tmp_path / "backup")
    assert other.names() == []


def test_the_commands(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer()
    for name in ("gc", "backup", "restore", "export"):
        app.command(name)(getattr(keeping_commands, name))

    def call(*arguments: str, status: int = 0) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == status, result.output
        return result.output

    assert "faces: 2 version(s) copied" in call("backup", "-o", str(tmp_path / "b"))
    assert json.loads(call("restore", str(tmp_path / "b"), "--json"))[0]["present"] == [2, 4]
    assert "would delete 0 version(s)" in call("gc", "--keep", "0")
    assert json.loads(call("gc", "--yes", "--older-than", "0", "--json"))["goes"] == []
    assert "faces/4 -> " in call("export", "faces", "-o", str(tmp_path / "hub"), "--license", "cc-by-4.0")
    assert "license: cc-by-4.0" in (tmp_path / "hub/README.md").read_text()
    assert "not an empty folder" in call("export", "faces", "-o", str(tmp_path / "hub"), status=1)
    call("export", "a b", "-o", str(tmp_path / "hub"), status=2)
    start = metainit.load(str(tmp_path / "hub/model.safetensors"))
    assert start.card is not None and start.card.name == "faces"
