"""Which of the held-out tasks a picture shows: neither the best nor the worst."""

from __future__ import annotations

from metainit.evidence.record import EvidenceRecord


def typical_task(record: EvidenceRecord) -> int:
    """Return the number of the task with the median gain over the best control.

    The evidence has to have a headline.
    """
    assert record.headline is not None
    at = record.steps.index(record.headline.steps)
    candidate = next(c for c in record.curves if c.role == "candidate")
    control = next(c for c in record.curves if c.source == record.headline.control)
    pairs = zip(candidate.values[0], control.values[0], strict=True)
    gains = [ours[at] - theirs[at] for ours, theirs in pairs]
    return sorted(range(len(gains)), key=lambda i: gains[i])[len(gains) // 2]
