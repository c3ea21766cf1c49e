"""What importing metainit costs, and what it must not pull in."""

import subprocess
import sys
import time

import pytest

FOREIGN = ("ray", "mlflow", "torch_geometric", "diffusers")

IMPORT_EVERY_MODULE_WITHOUT_THE_EXTRAS = f"""
import importlib, importlib.abc, pkgutil, sys

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {(*FOREIGN, "fastapi", "uvicorn", "learn2learn", "sklearn")!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import metainit
for module in pkgutil.walk_packages(metainit.__path__, "metainit."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
        print(module.name)
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


def loaded_after(code: str) -> set[str]:
    done = run_python(f"{code}\nimport sys\nprint(*sys.modules, sep='\\n')")
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_import_loads_none_of_the_higher_packages() -> None:
    names = "import metainit\nfor name in metainit.__all__: getattr(metainit, name)"
    loaded = loaded_after(names)
    assert "metainit" in loaded
    assert loaded.isdisjoint({*FOREIGN, "hypernets", "pipelines", "serving", "torchvision"})


def test_every_module_of_metainit_imports_without_the_extras() -> None:
    done = run_python(IMPORT_EVERY_MODULE_WITHOUT_THE_EXTRAS)
    assert done.returncode == 0, done.stderr
    assert "metainit.checkpoint" in done.stdout.split()


def test_the_command_line_starts_without_torch() -> None:
    help_only = (
        "import sys\nsys.argv = ['metainit', '--help']\nfrom metainit.cli import main\n"
        "import contextlib, io\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main()"
    )
    assert loaded_after(help_only).isdisjoint({*FOREIGN, "torch", "skimage", "matplotlib"})


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_is_quick(arguments: list[str]) -> None:
    # The goal for `--help` is half a second; the bound leaves room for a busy machine.
    bound_s = 3.0 if arguments == ["--help"] else 20.0
    command = [sys.executable, "-c", "from metainit.cli import main; main()", *arguments]
    fastest = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        fastest = min(fastest, time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        if fastest < bound_s:
            break
    assert fastest < bound_s
