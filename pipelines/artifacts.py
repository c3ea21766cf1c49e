"""The artifact folders of versions: up into a run, down into a verified local folder, and away."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metainit.errors import RegistryError
from metainit.transfer import file_sha256
from pipelines.connection import Connection
from pipelines.flavour import CHECKPOINT, MLMODEL
from pipelines.version import EVIDENCE, Version, read_evidence

QUARANTINE = f"{CHECKPOINT}.quarantine"


@contextmanager
def run_for(connection: Connection, name: str, run_id: str | None) -> Iterator[str]:
    """Yield the run that holds the artifacts: the one given, or a new one that ends with the block.

    Raises:
        RegistryError: the store cannot be reached, or refuses.
    """
    if run_id is not None:
        yield run_id
        return
    experiment = connection.experiment()
    with connection.calls(f"start a run for {name!r}") as client:
        run = str(client.create_run(experiment, run_name=name).info.run_id)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    finally:
        with connection.calls(f"end the run of {name!r}") as client:
            client.set_terminated(run, status)


def upload(connection: Connection, run: str, folder: Path, where: str, mlmodel: str) -> str:
    """Upload a folder and its MLmodel to the place `where` of a run, and return its address.

    Raises:
        RegistryError: the store cannot be reached, or the disk is full.
    """
    with connection.calls(f"upload {folder}") as client, tempfile.TemporaryDirectory() as temporary:
        (Path(temporary) / MLMODEL).write_text(mlmodel, encoding="utf-8")
        client.log_artifacts(run, str(folder), where)
        client.log_artifacts(run, temporary, where)
        return f"{client.get_run(run).info.artifact_uri}/{where}"


def fetch(connection: Connection, version: Version, folder: Path) -> Path:
    """Fetch a version's artifacts into `folder`, verified, and return `folder`.

    Raises:
        RegistryError: the store cannot be reached, the disk is full, or the digest is wrong.
    """
    from mlflow.artifacts import download_artifacts

    with connection.calls(f"download {version.reference}") as client:
        folder.mkdir(parents=True, exist_ok=True)
        uri = client.get_model_version_download_uri(version.name, str(version.version))
        staging = tempfile.mkdtemp(dir=folder, prefix=".part-")
        try:
            got = Path(download_artifacts(uri, dst_path=staging, tracking_uri=connection.uri))
            file = got / CHECKPOINT
            actual = file_sha256(file) if file.is_file() else None
            if actual != version.sha256:
                raise RegistryError(_refusal(version, actual, file, folder / QUARANTINE))
            _move_into(got, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return folder


def evidence_of(connection: Connection, version: Version) -> dict[str, Any] | None:
    """Return a version's evidence without fetching the rest, or None where it has none.

    Raises:
        RegistryError: the store cannot be reached, or the evidence cannot be read.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with connection.calls(f"read the evidence of {version.reference}") as client:
        uri = client.get_model_version_download_uri(version.name, str(version.version))
        repository = get_artifact_repository(uri, tracking_uri=connection.uri)
        if not any(item.path == EVIDENCE for item in repository.list_artifacts()):
            return None
        with tempfile.TemporaryDirectory() as temporary:
            repository.download_artifacts(EVIDENCE, temporary)  # type: ignore[no-untyped-call]
            return read_evidence(Path(temporary))


def _refusal(version: Version, actual: str | None, file: Path, kept: Path) -> str:
    """Put a damaged checkpoint aside and return the error that says so."""
    if actual is None:
        return (
            f"{version.reference} has no {CHECKPOINT} in its artifacts; roll back: "
            f"metainit rollback {version.name}"
        )
    os.replace(file, kept)
    return (
        f"{version.reference} is damaged: the sha256 of its checkpoint is {actual[:16]}, "
        f"the registry says {version.sha256[:16]}; nothing was installed (see {kept}): "
        f"fetch it again, and if it stays so, roll back: metainit rollback {version.name}"
    )


def _move_into(source: Path, folder: Path) -> None:
    """Move every file below `source` to the same place below `folder`, the checkpoint last."""
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == CHECKPOINT):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
