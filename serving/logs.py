"""Log lines of the endpoint: as text or as JSON, with request ids, never with a secret; and the audit."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from datetime import UTC, datetime
from io import TextIOWrapper
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

from serving.keys import redacted
from serving.observed import Sink
from serving.seen import Seen
from serving.settings import EndpointSettings

ROOT = "metainit"
LOGGER = logging.getLogger("metainit.serving")
REQUESTS = logging.getLogger("metainit.requests")
EXTRA = "metainit_fields"
LOOK_SECONDS = 1.0
UNWATCHED = frozenset({"/healthz", "/readyz"})
"""Asked every few seconds by whatever keeps the endpoint alive; not worth a line."""


class Plain(logging.Formatter):
    """Text lines without secrets."""

    def __init__(self) -> None:
        """Use one form for all loggers."""
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return redacted(super().format(record))


class Structured(logging.Formatter):
    """JSON lines without secrets: time, level, logger, message, and the fields of a request."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        value: dict[str, Any] = {
            "time": _moment(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        value.update(getattr(record, EXTRA, {}))
        if record.exc_info:
            value["exception"] = self.formatException(record.exc_info)
        return redacted(json.dumps(value, default=str, ensure_ascii=False))


class Private(WatchedFileHandler):
    """Appends to a file that its owner alone can read, and follows when the file is moved away."""

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)

        def private(path: str, flags: int) -> int:
            return os.open(path, flags, 0o600)

        return open(self.baseFilename, "a", encoding="utf-8", opener=private)


class Lines:
    """Appends lines to a file that its owner alone can read; opened anew when it was moved away.

    A line is one write, so that processes which share the file do not cut into each other's lines. One that
    cannot be written is told to the log.
    """

    def __init__(self, file: Path) -> None:
        """Open the file, so that a bad path is found at the start."""
        self.file, self._looked = file, time.monotonic()
        file.parent.mkdir(parents=True, exist_ok=True)
        self._handle = self._open()

    def append(self, line: str) -> None:
        """Append one line."""
        try:
            now = time.monotonic()
            if now - self._looked >= LOOK_SECONDS:
                self._looked = now
                self._follow()
            os.write(self._handle, f"{line}\n".encode())
        except OSError as error:
            LOGGER.error("cannot write %s: %s: %s", self.file, error.strerror or error, line)

    def _open(self) -> int:
        return os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def _follow(self) -> None:
        try:
            moved = not os.path.samestat(os.stat(self.file), os.fstat(self._handle))
        except FileNotFoundError:
            moved = True
        if moved:
            before, self._handle = self._handle, self._open()
            os.close(before)


def configure(settings: EndpointSettings) -> logging.Handler:
    """Write the log of this process in the form and to the place that the settings name.

    Called once in a process that is an endpoint's own; returns the handler, for who wants to take it away.
    """
    handler: logging.Handler
    if settings.log_file is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = Private(settings.log_file, encoding="utf-8")
    handler.setFormatter(Structured() if settings.log_format == "json" else Plain())
    logger = logging.getLogger(ROOT)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return handler


def log_request(note: Seen) -> None:
    """Write a log line for a request."""
    if note.path in UNWATCHED:
        return
    fields = {"request_id": note.request_id, **_facts(note)}
    text = f"{note.method} {note.path} {note.status} {note.sent} B {note.seconds:.4f} s [{note.request_id}]"
    REQUESTS.info("%s", text.encode("unicode_escape").decode(), extra={EXTRA: fields})


def audit_to(file: Path) -> Sink:
    """Return a sink that appends a JSON line for each request: who, what, how it ended."""
    lines = Lines(file)

    def audit(note: Seen) -> None:
        if note.path in UNWATCHED:
            return
        line = {"time": _moment(), "request_id": note.request_id, **_facts(note)}
        lines.append(redacted(json.dumps(line)))

    return audit


def _facts(note: Seen) -> dict[str, Any]:
    return {
        "key": note.key_id,
        "address": note.address,
        "method": note.method,
        "path": note.path,
        "route": note.route,
        "status": note.status,
        "problem": note.problem,
        "bytes": note.sent,
        "seconds": round(note.seconds, 6),
        **({} if note.trace is None else {"trace_id": note.trace}),
    }


def _moment(seconds: float | None = None) -> str:
    now = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return now.isoformat(timespec="milliseconds")
