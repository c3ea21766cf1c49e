"""torch takes seconds to import: a replica that takes another's place answers before it is there."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from serving.store import Store
from serving.warming import LATER, warm

ANSWER = """
import asyncio, sys
from pathlib import Path
import httpx
from pipelines.registry import Registry
from serving import logs, ray_predictor
from serving.app import create_app
from serving.late import LateRegistry
from serving.looking import following
from serving.store import Store

def opened():
    return Registry("sqlite:////nowhere/mlflow.db")

async def asked():
    app = create_app(Store(LateRegistry(opened), Path(sys.argv[1]), look=following(opened)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://endpoint") as http:
        for path in ("/readyz", "/v1/inits", "/v1/inits/faces@champion", "/v1/inits/faces/weights"):
            answer = await http.get(path)
            assert answer.status_code == 200, answer.text
    return len(answer.content)

print(asyncio.run(asked()))
print(*sys.modules)
"""


def test_what_an_earlier_process_left_is_served_before_torch_is_there(store: Store) -> None:
    store.refresh()
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, str(store.folder)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    size, modules = done.stdout.splitlines()
    facts = store.catalog.inits["faces"].versions[-1]
    assert int(size) == facts.size
    loaded = {name.partition(".")[0] for name in modules.split()}
    assert "serving" in loaded and loaded.isdisjoint({"torch", "mlflow", "diffusers", "matplotlib"})


def test_what_is_warmed_can_be_imported() -> None:
    thread = warm()
    thread.join(60)
    assert not thread.is_alive() and set(LATER) <= sys.modules.keys()


def test_what_cannot_be_imported_is_told_and_the_rest_comes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "metainit.serving"):
        warm(("metainit.no_such_module", "colorsys")).join(60)
    assert "metainit.no_such_module cannot be imported" in caplog.text and "colorsys" in sys.modules
