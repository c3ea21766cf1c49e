"""The command itself: its help page, its subcommands, and what it exits with."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from metainit import __version__
from metainit.cli import GROUP, SUMMARIES, main

OFFERED = sorted(point.name for point in entry_points(group=GROUP))


def status_of(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert isinstance(left.value.code, int)
    return left.value.code


def test_the_help_page_lists_every_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["--help"]) == 0
    page = capsys.readouterr().out
    rows = [line.split()[0] for line in page.partition("Commands")[2].splitlines() if line.strip()[:1]]
    listed = [name for name in rows if name in OFFERED]
    assert sorted(listed) == OFFERED and len(set(listed)) == len(listed)
    for name, summary in SUMMARIES.items():
        assert name in OFFERED, f"{name!r} is on the help page, but nothing offers it"
        assert " ".join(summary.split()[:4]) in " ".join(page.split())


def test_no_command_is_without_a_summary() -> None:
    assert set(OFFERED) == set(SUMMARIES)


@pytest.mark.parametrize("name", OFFERED)
def test_every_command_loads_and_helps(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of([name, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.split()[:3] == ["Usage:", "metainit", name]
    assert "--help" in page


@pytest.mark.parametrize(
    ("typed", "meant"), [("measur", "measure"), ("dem", "demo"), ("trian", "train"), ("roll", "rollback")]
)
def test_an_unknown_command_is_answered_with_the_nearest(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of([typed]) == 2
    said = capsys.readouterr()
    assert said.out == "" and f"no command is called '{typed}'; did you mean '{meant}'?" in said.err


def test_a_command_that_is_like_none_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["xyzzy"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "the choices are: " in said and "doctor" in said


@pytest.mark.parametrize(
    "arguments",
    [["measure"], ["fit", "x.png"], ["doctor", "--nonsense"], ["--nonsense"], ["demo", "extra", "arguments"]],
)
def test_bad_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and "Usage: metainit" in said.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["--version"]) == 0
    assert capsys.readouterr().out == f"metainit {__version__}\n"


def test_the_installed_command_is_this_one() -> None:
    command = [sys.executable, "-m", "metainit.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"metainit {__version__}\n"), done.stderr
    (point,) = (p for p in entry_points(group="console_scripts") if p.name == "metainit")
    assert point.load() is main


def test_an_error_on_purpose_is_one_line_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["fit", "x.png", "--init", "sirn", "-o", "out"]) == 1
    said = capsys.readouterr()
    (line,) = (line for line in said.err.splitlines() if "error" in line)
    assert line.startswith("error: 'sirn' is no source") and line.endswith("did you mean 'siren'?")
    assert "Traceback" not in said.err
