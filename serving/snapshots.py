"""Metrics of every replica on a machine: each leaves its own in a folder, and any of them shows them all.

A proxy gives each scrape to whichever replica it likes. Of one replica alone, a counter would jump between
those of all. A label `replica` keeps them apart, and sums over it are those of the machine.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from metainit.checkpoint import write_atomically
from metainit.errors import CheckpointError

LOGGER = logging.getLogger("metainit.serving")
EVERY = 5.0
"""Seconds between writes."""
KEPT = 30.0
"""Seconds after which a replica that has written nothing more is gone."""
SUFFIX = ".prom"


class Snapshots:
    """A folder into which every replica writes its metrics.

    Args:
        folder: where; the replicas of a machine share it.
        text: gives this replica's own metrics.
        replica: the name of this one; drawn unless given.
    """

    def __init__(self, folder: Path, text: Callable[[], str], replica: str | None = None) -> None:
        """Write nothing yet."""
        self.replica = replica or secrets.token_hex(4)
        self._folder, self._text = folder, text
        self._path = folder / f"{self.replica}{SUFFIX}"
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Write now and every few seconds from here on."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._keep_writing, name="metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write no more, and leave nothing."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._path.unlink(missing_ok=True)

    def shown(self) -> bytes:
        """Return the metrics of this moment, and the last ones of the other replicas."""
        return merged({self.replica: self._text(), **dict(self._others())})

    def write(self) -> None:
        """Write this replica's metrics, and take away what replicas that were killed have left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, self._text().encode())
        for path in self._folder.iterdir():
            if _age(path) > KEPT:
                path.unlink(missing_ok=True)

    def _keep_writing(self) -> None:
        while True:
            try:
                self.write()
            except (
                OSError,
                CheckpointError,
            ) as error:  # a full disk costs the view of the others, and nothing else
                LOGGER.warning("the metrics of this replica cannot be left for the others: %s", error)
            if self._stopping.wait(EVERY):
                return

    def _others(self) -> Iterator[tuple[str, str]]:
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            if path == self._path or _age(path) > KEPT:
                continue
            try:
                yield path.stem, path.read_text()
            except OSError:  # it ended since
                continue


def _age(path: Path) -> float:
    try:
        return time.time() - os.stat(path).st_mtime
    except OSError:
        return 0.0


class _Families(Collector):
    def __init__(self, families: Mapping[str, Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families.values()


def merged(texts: Mapping[str, str]) -> bytes:
    r"""Return metrics in Prometheus' text format, from those of each replica, under a label of its name.

    Example:
        >>> text = '# HELP up works\n# TYPE up gauge\nup 1.0\n'
        >>> print(merged({'a': text, 'b': text}).decode(), end='')
        # HELP up works
        # TYPE up gauge
        up{replica="a"} 1.0
        up{replica="b"} 1.0
    """
    families: dict[str, Metric] = {}
    for replica, text in texts.items():
        for found in text_string_to_metric_families(text):
            family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
            for sample in found.samples:
                family.samples.append(sample._replace(labels={"replica": replica, **sample.labels}))
    return generate_latest(_Families(families))
