"""The wheel, its metadata, and the pins that a checkout is set up with."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
ENTRY_POINTS = [
    (group, name, target)
    for group, entries in PROJECT["entry-points"].items()
    for name, target in entries.items()
]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(filename: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in (ROOT / filename).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, exact, version = line.partition("==")
            assert exact, f"{filename}: {line!r} is not an exact version"
            assert canonical(name) not in found, f"{filename}: {name} is pinned twice"
            found[canonical(name)] = version
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("metainit-*.whl")
    return zipfile.ZipFile(path)


def test_wheel_holds_the_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    version = PROJECT["version"]
    assert {name.partition("/")[0] for name in names} == {
        "metainit",
        "hypernets",
        "pipelines",
        "serving",
        f"metainit-{version}.dist-info",
    }
    assert not [name for name in names if "tests/" in name or "benchmarks/" in name]
    assert not [name for name in names if name.endswith((".pyc", ".so", ".safetensors"))]


def test_wheel_holds_every_data_file(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    typed = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("*/py.typed")}
    assert "metainit/py.typed" in typed
    assert typed <= names
    recipes = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("pipelines/recipes/*.yaml")}
    assert recipes, "no recipe under pipelines/recipes"
    assert recipes <= names


def test_wheel_names_the_licence(wheel: zipfile.ZipFile) -> None:
    folder = f"metainit-{PROJECT['version']}.dist-info"
    metadata = wheel.read(f"{folder}/METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()


def test_the_core_needs_no_extra() -> None:
    core = {canonical(re.split(r"[<>=\[; ]", need)[0]) for need in PROJECT["dependencies"]}
    assert core.isdisjoint({"ray", "mlflow", "torch-geometric", "diffusers", "torchvision", "timm"})


@pytest.mark.parametrize(
    ("group", "name", "target"), ENTRY_POINTS, ids=[f"{g}:{n}" for g, n, _ in ENTRY_POINTS]
)
def test_entry_point_leads_somewhere(group: str, name: str, target: str) -> None:
    assert callable(importlib.metadata.EntryPoint(name, target, group).load())


def test_the_installed_entry_points_are_the_declared_ones() -> None:
    installed = {
        (entry.group, entry.name, entry.value)
        for entry in importlib.metadata.distribution("metainit").entry_points
        if entry.group != "console_scripts"
    }
    assert installed == set(ENTRY_POINTS), "run `make venv`: the installed metadata is out of date"


def test_every_dependency_is_pinned() -> None:
    needs = [
        *PROJECT["dependencies"],
        *(need for extra in PROJECT["optional-dependencies"].values() for need in extra),
        *PYPROJECT["build-system"]["requires"],
    ]
    names = {canonical(re.split(r"[<>=\[; ]", need)[0]) for need in needs} - {"metainit"}
    assert names <= pins("constraints.txt").keys()


def test_benchmark_peers_change_no_pinned_version() -> None:
    assert pins("constraints-bench.txt").keys().isdisjoint(pins("constraints.txt").keys())
