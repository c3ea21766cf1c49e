"""Send a training run to a Ray cluster as a job, and follow its log.

The job brings metainit along: its packages, with the metadata that make its entry points work, are the job's
working folder. The cluster needs the dependencies only.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

import metainit
from metainit.errors import MetainitError, RecipeError
from pipelines.families import family_of
from pipelines.local_ray import quiet_logger
from pipelines.ray_train import JOB_VARIABLE
from pipelines.recipe import Recipe

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

PACKAGES = ("metainit", "hypernets", "pipelines", "serving")
RECIPE_FILE = "recipe.yaml"
CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
"""What an MLflow server with access control asks of its clients."""
DEFAULT_TOKEN_FILE = Path("~/.ray/auth_token")
TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers of Ray's client that set their own levels, and tell every upload and every closed connection."""
RECONNECT_SECONDS = 120.0
"""How long a job is looked for again once the connection to its cluster is lost."""
RETRY_SECONDS = 1.0
Echo = Callable[[str], None]


def submit_job(
    recipe: Recipe, address: str, *, out: str | None = None, token_file: Path | None = None
) -> Job:
    """Submit a run to the cluster whose dashboard answers at `address`, and return the job.

    Args:
        recipe: what to do; paths in it must be absolute, and exist on the cluster.
        address: such as http://head:8265.
        out: the folder on the cluster that the run writes to; it has a default there.
        token_file: the cluster's token; else RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

    Raises:
        RecipeError: a path is relative.
        MetainitError: nothing answers at the address, or the cluster refuses the token or the job.
    """
    _refuse_relative_paths(recipe)
    name = f"{recipe.name}-{secrets.token_hex(4)}"
    import ray.job_submission  # before its loggers are made quiet: the import sets their levels

    with _clear_errors(address), quiet_logger(*TALKATIVE):
        client = ray.job_submission.JobSubmissionClient(address, headers=auth_headers(token_file))
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "job"
            write_job_folder(folder, recipe)
            job_id = client.submit_job(
                entrypoint=entrypoint(out, family_of(recipe.family).command),
                submission_id=name,
                runtime_env={
                    "working_dir": str(folder),
                    "env_vars": {**job_environment(os.environ), JOB_VARIABLE: name},
                },
                metadata={"recipe": recipe.name},
            )
    return Job(client, address, job_id)


class Job:
    """A job on a Ray cluster."""

    def __init__(self, client: JobSubmissionClient, address: str, job_id: str) -> None:
        """Hold on to a job that was submitted."""
        self.client, self.address, self.id = client, address, job_id
        self._seen = 0

    @property
    def goes_on(self) -> str:
        """How to see and to end a job that nobody follows any longer."""
        there = f"{self.id} --address {self.address}"
        return (
            f"the job goes on; see it with: ray job logs {there} --follow; end it with: ray job stop {there}"
        )

    def follow(self, echo: Echo, patience: float = RECONNECT_SECONDS) -> bool:
        """Pass the job's log on until it ends, and return whether it succeeded.

        A connection that breaks is made anew, and the log goes on where it stopped.

        Raises:
            MetainitError: the cluster was out of reach for `patience` seconds; the job goes on.
        """
        since = time.monotonic()
        while True:
            before = self._seen
            try:
                with _clear_errors(self.address), quiet_logger(*TALKATIVE):
                    asyncio.run(self._pass_on(echo))
                    status = self.client.get_job_status(self.id)
                if status.is_terminal():
                    return str(status.value) == "SUCCEEDED"
                since = time.monotonic()
            except MetainitError as error:
                if self._seen > before:
                    since = time.monotonic()
                elif time.monotonic() > since + patience:
                    raise MetainitError(f"{error}; {self.goes_on}") from error
            time.sleep(RETRY_SECONDS)

    async def _pass_on(self, echo: Echo) -> None:
        """Pass on what is new in the log, which comes from its beginning again each time."""
        known, came = self._seen, 0
        async for text in self.client.tail_job_logs(self.id):
            came += len(text)
            if came > known:
                echo(text[-(came - known) :] if came - len(text) < known else text)
                self._seen = came


def entrypoint(out: str | None, command: str = "train") -> str:
    """Return the command that the job runs in its working folder.

    Example:
        >>> entrypoint('/data/my runs')
        "python -m metainit.cli train recipe.yaml --out '/data/my runs'"
    """
    words = ["python", "-m", "metainit.cli", *command.split(), RECIPE_FILE]
    return shlex.join(words + (["--out", out] if out else []))


def write_job_folder(folder: Path, recipe: Recipe) -> None:
    """Write the job's working folder: the recipe, the packages, and the metadata of their entry points."""
    folder.mkdir(parents=True)
    text = yaml.safe_dump(recipe.dump(), sort_keys=False, allow_unicode=True)
    (folder / RECIPE_FILE).write_text(text, encoding="utf-8")
    for name in PACKAGES:
        found = importlib.util.find_spec(name)
        if found is not None and found.submodule_search_locations:
            source = next(iter(found.submodule_search_locations))
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    try:
        points = distribution("metainit").read_text("entry_points.txt")
    except PackageNotFoundError:
        points = None
    if points is None:
        raise MetainitError("metainit is not installed as a package here: pip install it, then submit")
    info = folder / f"metainit-{metainit.__version__}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: metainit\nVersion: {metainit.__version__}\n"
    )
    (info / "entry_points.txt").write_text(points, encoding="utf-8")


def job_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that the job gets: never a file of this machine as the place of the registry.

    What a server asks for goes along; whoever may look at the cluster's jobs can read it there.

    Example:
        >>> job_environment({'MLFLOW_TRACKING_URI': 'http://mlflow:5000', 'HOME': '/home/a'})
        {'MLFLOW_TRACKING_URI': 'http://mlflow:5000'}
        >>> job_environment({'MLFLOW_TRACKING_URI': 'sqlite:///here.db'})
        {}
    """
    uri = environment.get("MLFLOW_TRACKING_URI", "")
    if not uri.startswith(("http://", "https://")):
        return {}
    return {"MLFLOW_TRACKING_URI": uri} | {key: environment[key] for key in CREDENTIALS if key in environment}


def auth_headers(token_file: Path | None) -> dict[str, str]:
    """Return the header that carries the cluster's token, or nothing where there is none.

    Raises:
        MetainitError: the file that was named cannot be read.
    """
    if os.environ.get("RAY_AUTH_MODE") == "disabled" and token_file is None:
        return {}
    token = "" if token_file else os.environ.get("RAY_AUTH_TOKEN", "")
    named = token_file or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not token:
        path = Path(named or DEFAULT_TOKEN_FILE).expanduser()
        try:
            token = path.read_text(encoding="utf-8").strip()
        except OSError as error:
            if named:
                raise MetainitError(f"cannot read the token file {path}: {error.strerror}") from error
    return {"Authorization": f"Bearer {token}"} if token else {}


def _refuse_relative_paths(recipe: Recipe) -> None:
    for key, place in recipe.places.items():
        if place is not None and not os.path.isabs(os.path.expanduser(str(place))):
            raise RecipeError(
                f"{key} is {str(place)!r}: a job needs an absolute path, which exists on the cluster"
            )


@contextmanager
def _clear_errors(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into errors that say what to do."""
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise MetainitError(
            f"the Ray cluster at {address} refuses the token (401 or 403): copy the cluster's token "
            "(ray get-auth-token, on the cluster) to a file and pass it with --token-file, or set "
            "RAY_AUTH_TOKEN_PATH"
        ) from error
    except (requests.RequestException, aiohttp.ClientError, ConnectionError) as error:
        raise MetainitError(
            f"no Ray cluster answers at {address}: {_first_line(error)}; the address is that of the "
            "dashboard, such as http://head:8265"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise MetainitError(f"the Ray cluster at {address} refuses: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
