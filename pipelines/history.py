"""The history of a name: who moved an alias, when, from what to what, why, and on what evidence.

Each move is a tag of the registered model, written under the lock of the name and before the move: a
crash between the two leaves a move on record that did not happen, never one that happened and is not on
record. It outlives the versions it speaks of. What the gate did not let through is on the version itself,
in the tag ``metainit.gate``.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.tags import TAG
from pipelines.version import Version

PREFIX = TAG + "event."
KEPT_EVENTS = 200
"""Newest moves that a name keeps."""
_REASON_CHARACTERS = 2000
_VALUE_CHARACTERS = 4500  # MLflow's column for tags of a registered model takes 5,000
_log = logging.getLogger(__name__)


class Event(BaseModel):
    """One move of an alias, or one that the gate refused; `at` is in seconds since 1970.

    `evidence` is the SHA-256 of the canonical JSON of the evidence that was judged.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: float = Field(ge=0)
    by: str
    action: Literal["gate", "promote", "rollback", "restore"]
    alias: str
    version: int
    before: int | None = None
    reason: str = ""
    against: str = ""
    evidence: str | None = None
    headline: dict[str, Any] | None = None
    run: str | None = None

    @property
    def when(self) -> str:
        """The time in UTC, as a person reads it.

        Example:
            >>> Event(at=0, by='me', action='promote', alias='champion', version=1).when
            '1970-01-01 00:00:00 UTC'
        """
        return datetime.fromtimestamp(self.at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

    def tag(self) -> tuple[str, str]:
        """Return key and value of the tag that keeps it; keys sort by time."""
        short = self.model_copy(update={"reason": self.reason[:_REASON_CHARACTERS]})
        text = short.model_dump_json()
        if len(text) > _VALUE_CHARACTERS:
            text = short.model_copy(update={"headline": None}).model_dump_json()
        return f"{PREFIX}{int(self.at * 1000):013d}.{uuid.uuid4().hex[:8]}", text


def who() -> str:
    """Return who acts: the user that MLflow's server knows, else the one of this machine, and the machine.

    Example:
        >>> '@' in who()
        True
    """
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    if not user:
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user without a name
            user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def moved(
    version: Version,
    action: Literal["gate", "promote", "rollback", "restore"],
    alias: str,
    before: int | None,
) -> Event:
    """Return the event of a move that is about to be made by this process."""
    return Event(
        at=time.time(),
        by=who(),
        action=action,
        alias=alias,
        version=version.version,
        before=before,
        headline=version.headline,
        run=version.run_id,
    )


def digest(evidence: Mapping[str, Any] | None) -> str | None:
    """Return the SHA-256 that names an evidence value, or None where there is none.

    Example:
        >>> digest({'metric': 'psnr'})[:8]
        '0d8f1298'
    """
    if not evidence:
        return None
    text = json.dumps(evidence, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_events(name: str, tags: Mapping[str, str]) -> list[Event]:
    """Return the moves that the tags of a name keep, newest first; a damaged one is logged and left out."""
    events = []
    for key in sorted((key for key in tags if key.startswith(PREFIX)), reverse=True):
        try:
            events.append(Event.model_validate_json(tags[key]))
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            _log.warning("the tag %s of %s is damaged and left out of its history: %s", key, name, wrong)
    return events


def decisions(versions: Sequence[Version], moves: Sequence[Event]) -> list[Event]:
    """Return what the gate decided about versions, where that is not among the `moves` already."""
    known = {(move.version, move.alias) for move in moves if move.action == "gate"}
    found = []
    for version in versions:
        text = version.tags.get(TAG + "gate")
        gate: dict[str, Any] = json.loads(text) if text else {}
        if not gate or (version.version, gate.get("alias")) in known:
            continue
        found.append(
            Event(
                at=float(gate.get("at") or version.created),
                by=str(gate.get("by") or "unknown"),
                action="gate",
                alias=str(gate.get("alias", "")),
                version=version.version,
                reason=str(gate.get("reason", "")),
                against=str(gate.get("against", "")),
                evidence=gate.get("evidence"),
                headline=version.headline,
                run=version.run_id,
            )
        )
    return found
