"""No text that is made of the store's address tells its password."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from metainit.errors import RegistryError
from pipelines.backup import back_up
from pipelines.connection import Connection, connect, explain, shown
from pipelines.registry import Registry
from tests.pipelines.conftest import MakeFolder

SECRET = "hunter2-Zq"


@pytest.mark.parametrize(
    ("uri", "safe"),
    [
        (f"postgresql+psycopg2://anna:{SECRET}@db:5432/mlflow", "postgresql+psycopg2://db:5432/mlflow"),
        (f"postgresql://anna:{SECRET}/x?y#z@w@db/mlflow", "postgresql://db/mlflow"),
        (f"mysql://db/mlflow?user=a&password={SECRET}&x=1", "mysql://db/mlflow?user=a&password=***&x=1"),
        (f"mysql://db/mlflow?sslPassword={SECRET}", "mysql://db/mlflow?sslPassword=***"),
        (f"https://anna:{SECRET}@mlflow.example.org/a", "https://mlflow.example.org/a"),
        (f"https://{SECRET}@mlflow.example.org", "https://mlflow.example.org"),
        (f"https://anna:{SECRET}/x@mlflow.example.org", "https://mlflow.example.org"),
        (f"https://mlflow?access_token={SECRET}", "https://mlflow?access_token=***"),
        ("http://mlflow:5000/a@b", "http://mlflow:5000/a@b"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("sqlite:////data/a@b/mlflow.db", "sqlite:////data/a@b/mlflow.db"),
        (
            "postgresql://postgres@/postgres?host=/run/postgresql",
            "postgresql:///postgres?host=/run/postgresql",
        ),
        ("databricks", "databricks"),
    ],
)
def test_what_is_shown_of_an_address(uri: str, safe: str) -> None:
    assert shown(uri) == safe and shown(safe) == safe
    for said in (f"cannot open {uri}", f"API request to {uri}/api failed with exception {uri}", "no answer"):
        text = explain(OSError(said), uri)
        assert SECRET not in text and safe in text


def test_a_driver_that_repeats_the_password_alone_is_not_passed_on() -> None:
    text = explain(OSError('could not translate host name "p@ss-Zq@db"'), "postgresql://anna:p%40ss-Zq@db/x")
    assert "ss-Zq" not in text and "could not translate host name" in text


@pytest.mark.parametrize("address", [f"http://anna:{SECRET}@127.0.0.1:9/x", f"nosuch://anna:{SECRET}@db/x"])
def test_a_store_that_cannot_be_opened(home: Path, address: str) -> None:
    with pytest.raises(RegistryError) as caught:
        connect(address)
    assert SECRET not in str(caught.value) and "anna" not in str(caught.value)


def test_the_registry_tells_nobody(home: Path, make_folder: MakeFolder, tmp_path: Path) -> None:
    """The embedded store under an address with a password: what differs is the text alone."""
    registry = Registry()
    registry.register(make_folder(1), "faces")
    address = f"postgresql://anna:{SECRET}@db/mlflow"
    registry.connection = Connection(address, registry.connection.client)
    for reference in ("hands", "faces/7", "faces@mine"):
        with pytest.raises(RegistryError, match="postgresql://db/mlflow") as caught:
            registry.resolve(reference)
        assert SECRET not in str(caught.value)
    back_up(registry, ["faces"], tmp_path / "backup")
    manifest = (tmp_path / "backup/faces/versions/1/manifest.json").read_text()
    assert SECRET not in manifest and json.loads(manifest)["store"] == "postgresql://db/mlflow"
