"""Where a run's parameters, metrics and artifacts go: MLflow, or a list in a test.

Metrics are gathered and sent in batches: one call every few seconds, never one a step. What cannot
be sent is kept and tried again; only `close` gives up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from metainit.errors import RegistryError
from pipelines.connection import Connection, connect, store_uri
from pipelines.dotted import flatten

if TYPE_CHECKING:
    from mlflow.entities import Metric

__all__ = ["ListSink", "MlflowSink", "Sink", "store_uri"]

BATCH_METRICS = 1000
BATCH_PARAMETERS = 100
FLUSH_SECONDS = 5.0
RETRY_SECONDS = 60.0
_MAX_VALUE = 6000
_log = logging.getLogger(__name__)


class Sink(Protocol):
    """What a training run tells the world; `close` is called once, whatever happened."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings; nested mappings become dotted names."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step; they may be sent later."""

    def log_artifacts(self, folder: Path, where: str = "") -> None:
        """Record every file below `folder`."""

    def flush(self) -> None:
        """Send what waits; call it whenever a checkpoint was saved."""

    def close(self, failed: bool = False) -> None:
        """Send what waits and end the run."""


class ListSink:
    """A sink for tests: it keeps what it is told.

    Example:
        >>> sink = ListSink()
        >>> sink.log_metrics({'loss': 0.5}, step=3)
        >>> sink.metrics
        [(3, {'loss': 0.5})]
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self.params: dict[str, Any] = {}
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.artifacts: list[tuple[str, tuple[str, ...]]] = []
        self.flushes = 0
        self.closed: str | None = None

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keep settings under dotted names."""
        self.params |= flatten(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Keep numbers at a step."""
        self.metrics.append((step, dict(metrics)))

    def log_artifacts(self, folder: Path, where: str = "") -> None:
        """Keep the relative paths of the files below `folder`."""
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        self.artifacts.append((where, tuple(names)))

    def flush(self) -> None:
        """Count the call."""
        self.flushes += 1

    def close(self, failed: bool = False) -> None:
        """Keep how the run ended."""
        self.closed = "failed" if failed else "finished"


class MlflowSink:
    """A run in MLflow: a new one, or an old one that goes on.

    A run that goes on does not record again the steps that it has recorded already. It is also a
    context manager, which closes it as failed where an exception leaves the block.

    Example:
        >>> with MlflowSink('faces', recipe, tags={'host': 'a'}) as sink:      # doctest: +SKIP
        ...     sink.log_metrics({'loss': 0.1}, step=0)
    """

    def __init__(
        self,
        name: str,
        recipe: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        run_id: str | None = None,
        uri: str | None = None,
    ) -> None:
        """Start a run called `name`, or take up the run `run_id`; `recipe` becomes its parameters.

        Raises:
            RegistryError: the store cannot be reached, or there is no such run.
        """
        self.connection: Connection = connect(uri)
        self._waiting: list[Metric] = []
        self._last: dict[str, int] = {}
        self._due = time.monotonic() + FLUSH_SECONDS
        if run_id is None:
            experiment = self.connection.experiment()
            with self.connection.calls(f"start the run {name!r}") as client:
                made = client.create_run(experiment, run_name=name, tags=dict(tags or {}))
                self.run_id = str(made.info.run_id)
        else:
            self.run_id = run_id
            with self.connection.calls(f"go on with the run {run_id}") as client:
                client.update_run(run_id, status="RUNNING")
                for key in client.get_run(run_id).data.metrics:
                    self._last[key] = max(metric.step for metric in client.get_metric_history(run_id, key))
                for key, value in (tags or {}).items():
                    client.set_tag(run_id, key, value)
        if recipe:
            self.log_params(recipe)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings under dotted names; a value longer than MLflow allows is cut.

        Raises:
            RegistryError: the store cannot be reached, or a setting of a resumed run has changed.
        """
        from mlflow.entities import Param

        items = [Param(k, str(v)[:_MAX_VALUE]) for k, v in flatten(params).items()]
        with self.connection.calls(f"record the parameters of {self.run_id}") as client:
            for start in range(0, len(items), BATCH_PARAMETERS):
                client.log_batch(self.run_id, params=items[start : start + BATCH_PARAMETERS])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step; they are sent in batches, every few seconds."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for key, value in metrics.items():
            if step > self._last.get(key, -1):
                self._waiting.append(Metric(key, float(value), now, step))
        if self._waiting and time.monotonic() > self._due:
            self._try_to_send()

    def log_artifacts(self, folder: Path, where: str = "") -> None:
        """Upload every file below `folder` to the place `where` of the run.

        Raises:
            RegistryError: the store cannot be reached, or the disk is full.
        """
        with self.connection.calls(f"upload {folder}") as client:
            client.log_artifacts(self.run_id, str(folder), where or None)

    def flush(self) -> None:
        """Send the metrics that wait; where that fails they go on waiting, with a warning."""
        if self._waiting:
            self._try_to_send()

    def close(self, failed: bool = False) -> None:
        """Send the metrics that wait and end the run.

        Raises:
            RegistryError: the store cannot be reached; the run can be taken up again by its id.
        """
        self._send()
        with self.connection.calls(f"end the run {self.run_id}") as client:
            client.set_terminated(self.run_id, "FAILED" if failed else "FINISHED")

    def __enter__(self) -> Self:
        """Return the sink itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the run, as failed where an exception leaves the block."""
        self.close(failed=kind is not None)

    def _try_to_send(self) -> None:
        self._due = time.monotonic() + FLUSH_SECONDS
        try:
            self._send()
        except RegistryError as error:
            self._due = time.monotonic() + RETRY_SECONDS
            _log.warning("%d metrics wait to be recorded: %s", len(self._waiting), error)

    def _send(self) -> None:
        with self.connection.calls(f"record the metrics of {self.run_id}") as client:
            while self._waiting:
                client.log_batch(self.run_id, metrics=self._waiting[:BATCH_METRICS])
                del self._waiting[:BATCH_METRICS]
