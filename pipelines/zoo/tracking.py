"""Zoos in MLflow: a finished one is a run with its shards as artifacts, found again by its name."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hypernets.generator.shards import FOLDER
from hypernets.generator.zoo import BASE, MANIFEST, SPLITS, damaged_shards, read_manifest, read_zoo
from metainit.errors import DigestError, MetainitError, RegistryError, suggestion
from metainit.places import cache_folder
from metainit.transfer import file_sha256
from pipelines.connection import Connection, connect
from pipelines.folder import RECIPE
from pipelines.tags import TAG

if TYPE_CHECKING:
    from pipelines.tracking import MlflowSink
    from pipelines.zoo.build import Built

ARTIFACTS = "zoo"
NAME_TAG, DIGEST_TAG = TAG + "zoo", TAG + "zoo.sha256"
QUANTILES = (0.05, 0.5, 0.95)
_log = logging.getLogger(__name__)


def record_zoo(built: Built, sink: MlflowSink) -> str:
    """Upload a finished zoo to the run of `sink`, and tag it last, so that half of one is never found.

    Returns:
        The digest of the manifest, by which the zoo is known.

    Raises:
        RegistryError: the store cannot be reached, or the disk is full.
    """
    zoo = built.zoo
    digest = digest_of(zoo.folder)
    with sink.connection.calls(f"look at the run {sink.run_id}") as client:
        if client.get_run(sink.run_id).data.tags.get(DIGEST_TAG) == digest:
            return digest
    sink.log_metrics(metrics_of(built), step=0)
    sink.flush()
    with sink.connection.calls(f"upload {zoo.folder}") as client:
        from mlflow.entities import Dataset, DatasetInput

        data = zoo.manifest.data
        dataset = Dataset(
            name=data.description[:500] or zoo.manifest.domain.name,
            digest=data.fingerprint[:36],
            source_type="local",
            source=zoo.manifest.domain.name,
        )
        client.log_inputs(sink.run_id, datasets=[DatasetInput(dataset)])
        client.log_artifacts(sink.run_id, str(zoo.folder / FOLDER), f"{ARTIFACTS}/{FOLDER}")
        for name in (BASE, RECIPE, MANIFEST):
            if (zoo.folder / name).is_file():
                client.log_artifact(sink.run_id, str(zoo.folder / name), ARTIFACTS)
        client.set_tag(sink.run_id, NAME_TAG, zoo.manifest.name)
        client.set_tag(sink.run_id, DIGEST_TAG, digest)
    return digest


def metrics_of(built: Built) -> dict[str, float]:
    """Return what a run says of a zoo in numbers."""
    manifest, found = built.zoo.manifest, {}
    for split in SPLITS:
        count = manifest.count(split)
        if count.fits:
            found[f"{split}_fits"] = float(count.fits)
            found[f"{split}_members"] = float(count.members)
            found[f"{split}_excluded"] = float(sum(count.excluded.values()))
            found[f"{split}_duplicates"] = float(sum(count.duplicates.values()))
    losses = built.zoo.members("train").losses.double()
    for share in QUANTILES:
        found[f"loss_{round(100 * share):02d}"] = float(torch.quantile(losses, share))
    found[f"median_{manifest.metric}"] = float(built.zoo.metric("train").median())
    if built.fitted:
        found["seconds_per_fit"] = built.seconds / built.fitted
    if (judged := manifest.generatability) is not None:
        found["midpoint_share"] = judged.share
        if judged.metric_midpoints is not None:
            found[f"midpoint_{judged.metric}"] = judged.metric_midpoints
    return found


def find_zoo(name: str | Path, uri: str | None = None) -> Path:
    """Return the folder of a zoo: `name` itself where it is one, else the newest finished zoo of that name.

    What is fetched is verified, and kept in the cache under its digest.

    Raises:
        CheckpointError: the folder holds a damaged zoo.
        RegistryError: no zoo has that name, the store cannot be reached, or what it has is damaged.
    """
    folder = Path(name).expanduser()
    if (folder / MANIFEST).is_file() or (folder / FOLDER).is_dir():
        read_manifest(folder)  # says what to do where the build has not ended
        return folder
    connection = connect(uri)
    run, digest = _newest(connection, str(name))
    kept = cache_folder("zoos") / digest
    if _is(kept, digest):
        try:
            read_zoo(kept)
            return kept
        except MetainitError as error:
            _log.warning("a zoo in the cache is fetched again: %s", error)
    return _fetch(connection, run, digest, kept)


def digest_of(folder: Path) -> str:
    """Return the digest by which a finished zoo is known, wherever it lies.

    Its manifest has the digest of the base and of every shard.
    """
    return file_sha256(folder / MANIFEST)


def zoo_names(connection: Connection) -> list[str]:
    """Return the names of all finished zoos in a store."""
    return sorted({run.data.tags[NAME_TAG] for run in _runs(connection, "")})


def _newest(connection: Connection, name: str) -> tuple[str, str]:
    """Return the run and the digest of the newest finished zoo of a name."""
    quoted = name.replace("'", "")
    runs = _runs(connection, f"tags.`{NAME_TAG}` = '{quoted}'") if quoted == name else []
    if not runs:
        known = zoo_names(connection)
        way_out = suggestion(name, known) if known else "no zoo has been built there yet"
        raise RegistryError(
            f"no finished zoo is called {name!r} at {connection.shown}, and no folder has one; {way_out} "
            f"(build one: metainit zoo build {name})"
        )
    return str(runs[0].info.run_id), str(runs[0].data.tags[DIGEST_TAG])


def _runs(connection: Connection, condition: str) -> list[Any]:
    """Return the runs of finished zoos, the newest first."""
    experiment = connection.experiment()
    with connection.calls("look for zoos") as client:
        found = client.search_runs(
            [experiment], filter_string=condition, order_by=["attributes.start_time DESC"], max_results=1000
        )
        return [run for run in found if DIGEST_TAG in run.data.tags]


def _is(folder: Path, digest: str) -> bool:
    return (folder / MANIFEST).is_file() and file_sha256(folder / MANIFEST) == digest


def _fetch(connection: Connection, run: str, digest: str, folder: Path) -> Path:
    """Fetch a zoo, verify it, and put it in its place: whole or not at all."""
    from mlflow.artifacts import download_artifacts

    with connection.calls(f"download the zoo of the run {run}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
        try:
            got = Path(
                download_artifacts(
                    run_id=run, artifact_path=ARTIFACTS, dst_path=str(staging), tracking_uri=connection.uri
                )
            )
            if not _is(got, digest):
                raise RegistryError(
                    f"the zoo of the run {run} is damaged: its {MANIFEST} is not the one that was recorded; "
                    "record it again: metainit zoo build with the same --out, or build it anew"
                )
            if damaged := damaged_shards(got, read_manifest(got)):
                raise DigestError(
                    f"the zoo of the run {run} is damaged in the store: {', '.join(damaged[:5])}; record it "
                    "again: metainit zoo build with the same --out, or build it anew"
                )
            read_zoo(got)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(got, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return folder
