"""The set-up script: what it says when it cannot work, and when it has to work again."""

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INPUTS = ("pyproject.toml", "constraints.txt", "scripts/setup.sh", "scripts/learn2learn.sh")


@pytest.fixture
def fingerprint() -> Callable[[Path], str]:
    spec = importlib.util.spec_from_file_location("fingerprint", ROOT / "scripts/fingerprint.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function: Callable[[Path], str] = module.fingerprint
    return function


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    for name in INPUTS:
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")


@pytest.mark.parametrize("name", INPUTS)
def test_a_changed_input_is_installed_again(
    name: str, checkout: Path, fingerprint: Callable[[Path], str]
) -> None:
    before = fingerprint(checkout)
    addition = '[project.urls]\nHome = "elsewhere"\n' if name == "pyproject.toml" else "# more\n"
    append(checkout / name, f"\n{addition}")
    assert fingerprint(checkout) != before


def test_a_tool_setting_installs_nothing_again(checkout: Path, fingerprint: Callable[[Path], str]) -> None:
    before = fingerprint(checkout)
    append(checkout / "pyproject.toml", "\n[tool.some-linter]\nstrict = true\n")
    assert fingerprint(checkout) == before


def test_an_old_interpreter_is_named_with_what_is_needed(tmp_path: Path) -> None:
    old = tmp_path / "python2"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    done = subprocess.run(
        [str(ROOT / "scripts/setup.sh")],
        env={**os.environ, "PYTHON": str(old), "VENV": str(tmp_path / "venv")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"PYTHON={old}" in done.stderr
    assert "3.11" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_make_targets_a_page_names_exist(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"(?:`|^\$ |^    )make ([a-z-]+)", text, re.MULTILINE))
    assert named
    assert named <= targets
