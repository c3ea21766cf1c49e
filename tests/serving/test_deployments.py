"""The endpoint on Ray Serve, started for real, and what is checked before Ray starts."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from hypernets.architecture.serialize import to_json
from metainit import checkpoint
from metainit.card import canonical_json
from metainit.client import Client
from metainit.errors import EndpointError
from serving import commands
from serving.deployments import start
from serving.haproxy import binary, fast_path, free_port
from serving.predictor import Hypernetworks, Order
from serving.startup import check_port
from tests.serving.shelf import Shelf
from tests.serving.test_prediction import graph_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("METAINIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("METAINIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    before = dict(os.environ)
    yield tmp_path / "home"
    for name in set(os.environ) - set(before):
        del os.environ[name]


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray and MLflow bring warnings of their own
def test_endpoint_on_ray_serve(home: Path, tmp_path: Path) -> None:
    from pipelines.registry import Registry

    shelf = Shelf(tmp_path / "shelf")
    digest = shelf.add("faces", 0, elements=600_000)
    shelf.add("faces", 1)
    registry = Registry()
    first = registry.register(shelf.files["faces"][1].parent, "faces")
    registry.set_alias(first, "champion")
    port = free_port()
    with start(port=port, poll=0.2, patience=200) as endpoint:
        assert endpoint.url == f"http://127.0.0.1:{port}"
        answer = httpx.get(f"{endpoint.url}/v1/inits/faces/weights", headers={"range": "bytes=0-9"})
        assert answer.status_code == 206 and len(answer.content) == 10
        assert httpx.get(f"{endpoint.url}/v1/inits/none").status_code == 404
        with Client(endpoint.url) as client:
            path = client.fetch("faces@champion")
            assert path.read_bytes() == shelf.files["faces"][1].read_bytes()
            assert client.show("faces")["sha256"] == digest
            second = registry.register(shelf.files["faces"][2].parent, "faces")
            registry.set_alias(second, "champion")
            deadline = time.monotonic() + 30
            while client.show("faces")["version"] != second.version:
                assert time.monotonic() < deadline, "the alias move did not arrive"
                time.sleep(0.1)
            assert client.checkpoint("faces").tensors["layers.0.weight"].shape == (64,)
        with pytest.raises(EndpointError, match="in use"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray and MLflow bring warnings of their own
def test_what_is_computed_on_ray_serve_is_that_of_this_process(home: Path, tmp_path: Path) -> None:
    from pipelines.registry import Registry

    shelf = Shelf(tmp_path / "shelf")
    digest = shelf.add_hypernetwork("digits", 0)
    registry = Registry()
    registry.set_alias(registry.register(shelf.files["digits"][1].parent, "digits"), "champion")
    shelf.add_generator("shapes", 0)
    registry.register(shelf.files["shapes"][1].parent, "shapes")
    graphs = [graph_of(width) for width in (5, 9)]
    with (
        start(port=free_port(), poll=0.2, patience=200) as endpoint,
        httpx.Client(base_url=endpoint.url, timeout=120.0) as http,
    ):
        for graph in graphs:
            answer = http.post("/v1/inits/digits/predict", json={"graph": to_json(graph), "seed": 3})
            assert answer.status_code == 201, answer.text
            text = canonical_json(to_json(graph))
            order = Order("digits/1", digest, str(shelf.files["digits"][1]), text, 3, False)
            (expected,) = Hypernetworks().answer([order])
            came = checkpoint.from_bytes(http.get(answer.headers["location"]).content)
            truth = checkpoint.from_bytes(expected.content)
            assert came.tensors.keys() == truth.tensors.keys()
            for name, value in truth.tensors.items():  # up to rounding, which the number of threads changes
                torch.testing.assert_close(came.tensors[name], value, rtol=1e-3, atol=1e-5)
        again = http.post("/v1/inits/digits/predict", json={"graph": to_json(graphs[0]), "seed": 3})
        assert again.status_code == 200
        assert http.post("/v1/inits/digits/predict", json={"graph": {}}).status_code == 422
        drawn = http.post("/v1/inits/shapes/generate", json={"count": 3, "seed": 1})
        assert drawn.status_code == 201, drawn.text
        again = http.post("/v1/inits/shapes/generate", json={"count": 2, "seed": 2})
        assert again.status_code == 200 and again.json()["items"] == drawn.json()["items"][1:]
        for item in drawn.json()["items"]:
            card = checkpoint.from_bytes(http.get(item["blob"]).content).card
            assert card.provenance.seeds == [item["seed"]]
        refused = http.post("/v1/inits/shapes/generate", json={"condition": "rign"})
        assert refused.status_code == 422 and "ring" in refused.json()["detail"]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray and MLflow bring warnings of their own
def test_a_second_endpoint_after_the_first_is_as_fast(home: Path) -> None:
    def of_serve() -> dict[str, str]:
        # What Ray's core sets of its own (RAY_AUTH_MODE, say) holds as long as the process.
        return {name: value for name, value in os.environ.items() if name.startswith("RAY_SERVE_")}

    before = of_serve()
    for _ in range(2):
        with start(port=free_port(), patience=200) as endpoint:
            assert binary() is None or os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
            answer = httpx.get(f"{endpoint.url}/v1/inits")
            assert answer.status_code == 200
            assert binary() is None or answer.headers["server"] == "uvicorn"
        assert of_serve() == before


def test_the_environment_of_the_fast_path_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "0")
    before = dict(os.environ)
    fast = fast_path("/bin/true")
    fast.switch_on()
    assert os.environ["RAY_SERVE_ENABLE_HA_PROXY"] == "1" and fast.folder.is_dir()
    fast.remove()
    fast.remove()
    assert dict(os.environ) == before and not fast.folder.exists()


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EndpointError, match=f"port {port}: Address already in use.*--port"):
            start(port=port)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 0), ("127.0.0.1", 70000), ("no.host.", 1)])
def test_a_bad_address_is_named(host: str, port: int) -> None:
    with pytest.raises(EndpointError, match=str(port)):
        check_port(host, port)


def _command() -> Typer:
    app = Typer()
    app.command()(commands.serve)
    return app


def test_a_public_address_is_refused() -> None:
    result = CliRunner().invoke(_command(), ["--host", "0.0.0.0"])
    assert result.exit_code == 2
    assert "no keys" in result.output


def test_the_command_fails_clearly() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = CliRunner().invoke(_command(), ["--port", str(taken.getsockname()[1])])
    assert result.exit_code == 1
    assert "cannot listen" in result.output


@pytest.mark.skipif(binary() is None, reason="no HAProxy on this machine")
def test_the_pages_of_haproxy_stay_on_this_machine(tmp_path: Path) -> None:
    import subprocess

    fast = fast_path("/bin/true")
    try:
        stats = fast.environment["RAY_SERVE_HAPROXY_STATS_PORT"]
        metrics = fast.environment["RAY_SERVE_HAPROXY_METRICS_PORT"]
        config = tmp_path / "haproxy.cfg"
        config.write_text(f"    bind :{metrics}\n  bind *:{stats}\n    bind *:8000\n")
        wrapper = fast.environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
        subprocess.run([wrapper, "-db", "-f", str(config)], check=True, timeout=10)
        assert config.read_text() == (
            f"    bind 127.0.0.1:{metrics}\n  bind 127.0.0.1:{stats}\n    bind *:8000\n"
        )
    finally:
        fast.remove()
    assert not fast.folder.exists()
