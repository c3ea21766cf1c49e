"""What is shown while a command works."""

from __future__ import annotations

import json
import threading

import pytest
import typer
from rich.console import Console

from pipelines.train_commands import display


def test_stdout_is_the_answers_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with display() as shown:
        shown.note("working")
        late = threading.Thread(target=print, args=("(raylet) a task has failed",))  # as Ray's threads do
        late.start()
        late.join()
    typer.echo(json.dumps({"answer": 1}))
    said = capsys.readouterr()
    assert json.loads(said.out) == {"answer": 1}
    assert said.err.splitlines() == ["working", "(raylet) a task has failed"]


def test_so_it_is_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rich.console.Console", lambda **options: Console(**options, force_terminal=True))
    with display() as shown:
        shown.progress(1, 2, 0.5, 3.0)
        print("(raylet) a task has failed")
    typer.echo("the answer")
    said = capsys.readouterr()
    assert said.out == "the answer\n" and "(raylet) a task has failed" in said.err
