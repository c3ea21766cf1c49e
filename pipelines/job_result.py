"""What a submitted job has registered, found again and fetched from the machine that submitted it."""

from __future__ import annotations

from pathlib import Path

from metainit.errors import RegistryError
from pipelines.ray_train import JOB_TAG
from pipelines.registry import Registry
from pipelines.version import Version


def version_of(job: str, name: str, registry: Registry) -> Version:
    """Return the version of `name` that a job has registered.

    Raises:
        RegistryError: the registry here has none of it, or cannot be reached.
    """
    connection = registry.connection
    experiment = connection.experiment()
    with connection.calls(f"look for the run of the job {job}") as client:
        found = client.search_runs([experiment], filter_string=f"tags.`{JOB_TAG}` = '{job}'")
        runs = {str(run.info.run_id) for run in found}
    made = [version for version in registry.versions(name) if version.run_id in runs] if runs else []
    if not made:
        raise RegistryError(
            f"the registry at {registry.shown} has no version of {name!r} from the job {job}: the job has "
            "one of its own unless MLFLOW_TRACKING_URI, here where it is submitted, is the address of a "
            "server that the cluster reaches too"
        )
    return made[0]


def pull_result(job: str, name: str, folder: Path) -> Version:
    """Fetch what a job has registered, verified, into a folder, and return its version.

    Raises:
        RegistryError: the registry here has none of it, or cannot be reached.
    """
    registry = Registry()
    version = version_of(job, name, registry)
    registry.download(version, folder)
    return version
