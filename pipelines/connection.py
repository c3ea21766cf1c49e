"""Where the registry lives, and how to talk to it: quietly, with finite patience and clear errors.

Everything that this package asks of MLflow goes through `Connection.calls`. MLflow is imported in
here and nowhere else at import time of a module, because that import costs one to two seconds.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from metainit.errors import RegistryError
from metainit.places import data_folder

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

EXPERIMENT = "metainit"
DATABASE = "mlflow.db"
ARTIFACTS = "artifacts"
DATABASES = ("postgresql", "mysql", "mssql")
"""Databases that MLflow's tables can lie in without a server before them."""
PROBE_SECONDS = (3.05, 5.0)
"""How long a server may take to accept a connection, and to answer its first request."""

_USER = re.compile(r"(://)[^\s@/]*@")
_SECRET = re.compile(r"(?i)([?&;][^=&;\s]*(?:passw|pwd|secret|token)[^=&;\s]*=)[^&;\s]*")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]*\]|[^:@\[\]]*)(:[0-9]*)?")
_PASSWORD = re.compile(r"://[^:/@\s]*:(.*)@")

_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
_LOGGERS = ("mlflow", "alembic")
_guard = threading.Lock()
_depth = 0
_saved_settings: dict[str, str | None] = {}
_saved_levels: dict[str, int] = {}


def store_uri(uri: str | None = None) -> str:
    """Return the address of the store: `uri`, `MLFLOW_TRACKING_URI` or the embedded SQLite file.

    Example:
        >>> store_uri('http://mlflow:5000')
        'http://mlflow:5000'
    """
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI")
    return chosen or f"sqlite:///{(data_folder() / DATABASE).as_posix()}"


@contextmanager
def quiet() -> Iterator[None]:
    """Silence MLflow's telemetry, hints, progress bars and informational logs while this is open.

    A setting that the user has made stays as it is; all others, and the log levels, are put back by
    the last thread that leaves.
    """
    global _depth
    with _guard:
        if _depth == 0:
            for key, value in _SETTINGS.items():
                _saved_settings[key] = os.environ.get(key)
                os.environ.setdefault(key, value)
            for name in _LOGGERS:
                _saved_levels[name] = logging.getLogger(name).level
                logging.getLogger(name).setLevel(logging.WARNING)
        _depth += 1
    try:
        yield
    finally:
        with _guard:
            _depth -= 1
            if _depth == 0:
                for key, old in _saved_settings.items():
                    if old is None:
                        os.environ.pop(key, None)
                for name, level in _saved_levels.items():
                    logging.getLogger(name).setLevel(level)


@dataclass(frozen=True)
class Connection:
    """An MLflow client for one store; every call to it is made inside `calls`."""

    uri: str
    client: MlflowClient

    @property
    def shown(self) -> str:
        """The address as texts show it."""
        return shown(self.uri)

    @contextmanager
    def calls(self, purpose: str) -> Iterator[MlflowClient]:
        """Yield the client; what MLflow, network or disk raise inside becomes a RegistryError.

        Raises:
            RegistryError: the store cannot be reached, has no space left, or refuses.
        """
        import requests
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        with quiet():
            try:
                yield self.client
            except (
                MlflowException,
                SQLAlchemyError,
                requests.RequestException,
                OSError,
            ) as error:
                raise RegistryError(f"cannot {purpose}: {explain(error, self.uri)}") from error

    def experiment(self) -> str:
        """Return the id of the experiment that holds metainit's runs; it is made on first use.

        Raises:
            RegistryError: the store cannot be reached, or refuses.
        """
        from mlflow.exceptions import MlflowException

        with self.calls(f"open the experiment {EXPERIMENT!r}") as client:
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                folder = artifact_folder(self.uri)
                location = folder.as_uri() if folder else None
                try:
                    return str(client.create_experiment(EXPERIMENT, artifact_location=location))
                except MlflowException as error:
                    if error.error_code != "RESOURCE_ALREADY_EXISTS":
                        raise
                    found = client.get_experiment_by_name(EXPERIMENT)
            assert found is not None
            return str(found.experiment_id)


def connect(uri: str | None = None) -> Connection:
    """Open the store; an embedded one is created on first use.

    Raises:
        RegistryError: the server does not answer, or the file cannot be created.
    """
    address = store_uri(uri)
    file = sqlite_file(address)
    with quiet():  # twice, since MLflow sets the levels of its loggers when it is imported
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient
        from sqlalchemy.exc import SQLAlchemyError
    with quiet():
        try:
            if file is not None and file.exists():
                _look_at(file)
            elif file is not None:
                _create(file)
            if address.startswith(("http://", "https://")):
                _probe(address)
            client = MlflowClient(tracking_uri=address, registry_uri=address)
        except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
            raise RegistryError(f"cannot open the registry: {explain(error, address)}") from error
    return Connection(address, client)


def sqlite_file(uri: str) -> Path | None:
    """Return the file behind an SQLite address, or None for any other.

    Example:
        >>> sqlite_file('sqlite:////data/mlflow.db').as_posix()
        '/data/mlflow.db'
        >>> sqlite_file('http://mlflow:5000') is None
        True
    """
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix)).absolute() if uri.startswith(prefix) else None


def artifact_folder(uri: str) -> Path | None:
    """Return where a store that is a database keeps artifacts, or None where a server decides.

    Example:
        >>> artifact_folder('sqlite:////data/mlflow.db').as_posix()
        '/data/artifacts'
        >>> artifact_folder('http://mlflow:5000') is None
        True
    """
    file = sqlite_file(uri)
    if file is not None:
        return file.parent / ARTIFACTS
    scheme = uri.partition(":")[0].partition("+")[0]
    return data_folder() / ARTIFACTS if scheme in DATABASES else None


def shown(uri: str) -> str:
    """Return the address of a store as texts may show it: without user, password and tokens.

    A password may hold any character, so all before the last ``@`` goes where there may be one.

    Example:
        >>> shown('postgresql://anna:secret@db:5432/mlflow?sslmode=require&sslpassword=hidden')
        'postgresql://db:5432/mlflow?sslmode=require&sslpassword=***'
        >>> shown('sqlite:////data/a@b/mlflow.db')
        'sqlite:////data/a@b/mlflow.db'
    """
    scheme, separator, rest = uri.partition("://")
    host = re.split("[/?#]", rest, maxsplit=1)[0]
    if scheme.startswith(("http", "sqlite", "file")) and _HOST.fullmatch(host):
        return _SECRET.sub(r"\1***", uri)
    return _SECRET.sub(r"\1***", scheme + separator + rest.rpartition("@")[2])


def without_secrets(text: str, uri: str) -> str:
    """Return what a driver says of the store at `uri`, without what `shown` leaves out of its address."""
    text = text.replace(uri, shown(uri)).replace(uri.rstrip("/"), shown(uri.rstrip("/")))
    if shown(uri) != uri and (password := _PASSWORD.search(uri)):
        for secret in {password[1], unquote(password[1])} - {""}:
            text = text.replace(secret, "***") if len(secret) > 3 else text
    return _SECRET.sub(r"\1***", _USER.sub(r"\1", text))


def explain(error: Exception, uri: str) -> str:
    """Return what went wrong at `uri` and the way out, in one sentence or two; no password is in it."""
    said = without_secrets(str(error).strip(), uri)
    text = said.splitlines()[0] if said else type(error).__name__
    uri = shown(uri)
    lower = str(error).lower()
    if "no space left" in lower or "disk is full" in lower:
        return f"the disk is full; free some space, or choose another folder ({text}; registry: {uri})"
    signs = ("failed with exception", "connection refused", "max retries", "timed out", "no answer")
    if any(sign in lower for sign in signs):
        return (
            f"the registry at {uri} cannot be reached; start it, or point MLFLOW_TRACKING_URI at "
            f"one that runs, or unset it to use the embedded store ({text})"
        )
    return f"{text} (registry: {uri})"


def _probe(uri: str) -> None:
    """Ask a server for a sign of life; TLS and access problems are left to MLflow's own client."""
    import requests

    try:
        requests.head(uri.rstrip("/") + "/health", timeout=PROBE_SECONDS)
    except requests.exceptions.SSLError:
        return
    except (requests.ConnectionError, requests.Timeout) as error:
        raise OSError(f"no answer from {uri}") from error


def _look_at(file: Path) -> None:
    """Make sure that the file is a database, which MLflow would try for minutes before it says no."""
    with closing(sqlite3.connect(file, timeout=PROBE_SECONDS[1])) as database:
        database.execute("PRAGMA schema_version").fetchone()


def _create(file: Path) -> None:
    """Create the embedded store beside its place and move it there: nobody sees half of it."""
    from mlflow.tracking import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        part.touch()  # fails at once where nobody may write; MLflow would try for minutes
        address = f"sqlite:///{part.as_posix()}"
        MlflowClient(tracking_uri=address, registry_uri=address).search_experiments(max_results=1)
        try:
            os.link(part, file)
        except FileExistsError:
            pass
        except OSError:
            os.replace(part, file)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
