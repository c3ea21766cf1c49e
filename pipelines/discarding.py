"""Deleting a version and its artifacts so that a crash at any point leaves nothing that is not finished.

The place of the artifacts is written down in a tag of the name before the version goes, and struck out
when they are gone. Artifacts that another version of any name shares stay: one that was registered from
the same place, or one that MLflow's `copy_model_version` made, which lies where its original does.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from pipelines.connection import Connection
from pipelines.tags import TAG
from pipelines.version import Version

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

REMOVED = TAG + "removed"
DISCARDING = TAG + "discarding."
_PAGE = 1000


def discard(connection: Connection, version: Version) -> None:
    """Delete a version and its artifacts, whatever names it; the caller holds the lock of its name.

    Raises:
        RegistryError: the store cannot be reached, or refuses; `finish` goes on from there.
    """
    number = str(version.version)
    with connection.calls(f"delete {version.reference}") as client:
        uri = client.get_model_version_download_uri(version.name, number)
        place = json.dumps({"uri": uri, "sha256": version.sha256})
        client.set_registered_model_tag(version.name, DISCARDING + number, place)
        client.set_registered_model_tag(version.name, REMOVED, f"{time.time():.6f}")
        client.delete_model_version(version.name, number)
    _clear(connection, version.name, number, uri, version.sha256)


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
        _clear(connection, name, number, *_place(tags[key]))
        finished.append(int(number))
    return finished


def _place(text: str) -> tuple[str, str]:
    """Return the address and the SHA-256 that a tag holds; an older one holds the address alone."""
    if not text.startswith("{"):
        return text, ""
    place = json.loads(text)
    return str(place["uri"]), str(place["sha256"])


def _clear(connection: Connection, name: str, number: str, uri: str, sha256: str) -> None:
    """Delete the artifacts at `uri` unless another version lies there, and strike the deletion out."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    with connection.calls(f"delete the artifacts of {name}/{number}") as client:
        if not _shared(client, f"models:/{name}/{number}", uri, sha256):
            repository = get_artifact_repository(uri, tracking_uri=connection.uri)
            repository.delete_artifacts()  # type: ignore[no-untyped-call]
        client.delete_registered_model_tag(name, DISCARDING + number)


def _shared(client: MlflowClient, reference: str, uri: str, sha256: str) -> bool:
    """Return whether a version of any name consists of the artifacts at `uri`."""
    for source in (uri, reference):
        condition = _equals("source_path", source)
        if condition is None or client.search_model_versions(condition, max_results=1):
            return True
    return bool(sha256) and _lies_there(client, uri, sha256)


def _lies_there(client: MlflowClient, uri: str, sha256: str) -> bool:
    """Return whether a version with the checkpoint of that SHA-256 is at `uri`, whatever it was made from."""
    from mlflow.exceptions import MlflowException

    token: str | None = None
    while True:
        page = client.search_model_versions(f"tags.`{TAG}sha256` = '{sha256}'", _PAGE, page_token=token)
        for entity in page:
            try:
                if client.get_model_version_download_uri(entity.name, str(entity.version)) == uri:
                    return True
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        token = page.token
        if not token:
            return False


def _equals(key: str, value: str) -> str | None:
    """Return MLflow's condition for a text, or None where it cannot be written: no quote can be escaped."""
    quotes = [quote for quote in "'\"" if quote not in value]
    return f"{key} = {quotes[0]}{value}{quotes[0]}" if quotes else None
