"""The journal of a run: a file of JSON lines through which the first worker tells the driver how it goes.

The worker only appends; the driver follows, shows the progress and sends the metrics on. So no step waits
for a server, and what could not be sent is still there when a run is resumed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.tracking import Sink

_log = logging.getLogger(__name__)


class Journal:
    """A sink that appends metrics to a file; parameters and artifacts are the driver's.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     journal = Journal(Path(folder) / 'journal.jsonl')
        ...     journal.log_metrics({'loss': 0.5}, step=1)
        ...     journal.close()
        ...     list(Reader(journal.path).news())
        [{'step': 1, 'metrics': {'loss': 0.5}}]
    """

    def __init__(self, path: Path) -> None:
        """Append to `path`, which is made if need be."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", encoding="utf-8")
        if self._stream.tell() > 0:
            self._stream.write("\n")  # a killed worker may have left half a line

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Do nothing: the driver records the recipe."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Append numbers at a step."""
        self._append({"step": step, "metrics": dict(metrics)})

    def progress(self, step: int, steps: int, loss: float, seconds_left: float) -> None:
        """Append how far the run is, and when (seconds since 1970)."""
        self._append({"progress": [step, steps, loss, seconds_left], "at": time.time()})

    def log_artifacts(self, folder: Path, where: str = "") -> None:
        """Do nothing: the driver uploads."""

    def flush(self) -> None:
        """Do nothing: every line is handed to the system as it is written."""

    def close(self, failed: bool = False) -> None:
        """Close the file."""
        self._stream.close()

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            self._stream.write(json.dumps(line) + "\n")
            self._stream.flush()
        except OSError as error:  # a full disk: the next state that is saved says so, and stops the run
            _log.warning("the journal %s cannot be written: %s", self.path, error)


class Reader:
    """Follows a journal that may be written at the same time."""

    def __init__(self, path: Path) -> None:
        """Begin at the start of `path`, which need not exist yet."""
        self.path = path
        self.read = 0
        """How many bytes of it were read, up to the line that was given last."""
        self._last: dict[str, int] = {}

    def news(self) -> Iterator[dict[str, Any]]:
        """Yield the whole lines that were appended since the last call; torn ones are left out."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as stream:
            stream.seek(self.read)
            for line in stream:
                if not line.endswith(b"\n"):
                    return
                self.read += len(line)
                try:
                    value = json.loads(line)
                except ValueError:
                    continue  # empty, or torn
                if isinstance(value, dict):
                    yield value

    def forward(self, line: Mapping[str, Any], sink: Sink) -> None:
        """Send the metrics of a line on; steps that a restarted worker repeats are sent once."""
        step = int(line["step"])
        fresh = {k: v for k, v in line["metrics"].items() if step > self._last.get(k, -1)}
        if fresh:
            self._last |= dict.fromkeys(fresh, step)
            sink.log_metrics(fresh, step)
