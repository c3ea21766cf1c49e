"""Deleting a version and its artifacts so that a crash at any point leaves nothing that is not finished.

The place of the artifacts is written down in a tag of the name before the version goes, and struck out
when they are gone. Artifacts that another version shares stay.
"""

from __future__ import annotations

import time

from pipelines.connection import Connection
from pipelines.tags import TAG
from pipelines.version import Version

REMOVED = TAG + "removed"
DISCARDING = TAG + "discarding."


def discard(connection: Connection, version: Version) -> None:
    """Delete a version and its artifacts, whatever names it; the caller holds the lock of its name.

    Raises:
        RegistryError: the store cannot be reached, or refuses; `finish` goes on from there.
    """
    number = str(version.version)
    with connection.calls(f"delete {version.reference}") as client:
        uri = client.get_model_version_download_uri(version.name, number)
        client.set_registered_model_tag(version.name, DISCARDING + number, uri)
        client.set_registered_model_tag(version.name, REMOVED, f"{time.time():.6f}")
        client.delete_model_version(version.name, number)
    _clear(connection, version.name, number, uri)


def finish(connection: Connection, name: str) -> list[int]:
    """Finish the deletions of a name that were interrupted, and return the numbers of those versions.

    One that was interrupted before its version went is taken back: the version is whole.

    Raises:
        RegistryError: the store cannot be reached, or refuses.
    """
    from mlflow.exceptions import MlflowException

    finished = []
    with connection.calls(f"look for interrupted deletions of {name!r}") as client:
        tags = client.get_registered_model(name).tags
    for key in sorted(key for key in tags if key.startswith(DISCARDING)):
        number = key.removeprefix(DISCARDING)
        with connection.calls(f"look up {name}/{number}") as client:
            try:
                client.get_model_version(name, number)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                client.delete_registered_model_tag(name, key)
                continue
        _clear(connection, name, number, tags[key])
        finished.append(int(number))
    return finished


def _clear(connection: Connection, name: str, number: str, uri: str) -> None:
    """Delete the artifacts at `uri` unless another version lies there, and strike the deletion out."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with connection.calls(f"delete the artifacts of {name}/{number}") as client:
        if not client.search_model_versions(f"source_path = '{uri}'", max_results=1):
            repository = get_artifact_repository(uri, tracking_uri=connection.uri)
            repository.delete_artifacts()  # type: ignore[no-untyped-call]
        client.delete_registered_model_tag(name, DISCARDING + number)
