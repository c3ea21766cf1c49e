"""What the environment sets: one table of the variables, and how those of the client are read."""

from __future__ import annotations

import os
from collections.abc import Mapping

from metainit.errors import EndpointError

VARIABLES: Mapping[str, str] = {
    "METAINIT_HOME": "folder of the embedded registry and store",
    "METAINIT_CACHE": "folder of everything that was fetched and can be fetched again",
    "METAINIT_DATA": "folder of the data sets that recipes and benchmarks read",
    "METAINIT_SERVER": "endpoint that `metainit doctor` looks at, and that METAINIT_KEY belongs to",
    "METAINIT_KEY": "key for the endpoint METAINIT_SERVER, and for no other",
    "METAINIT_JOB": "name of the cluster job that a run belongs to; `metainit submit` sets it",
    "METAINIT_OFFLINE": "1 answers from the cache alone",
}
"""Every variable that is read, and what it is for."""
PREFIXES = ("METAINIT_SERVE_",)
"""Variables that begin so are settings of the endpoint, which reads them itself."""
YES, NO = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def offline() -> bool:
    """Return whether METAINIT_OFFLINE keeps the client from the network.

    Raises:
        EndpointError: it says neither yes nor no.
    """
    text = os.environ.get("METAINIT_OFFLINE", "")
    if text.lower() not in (*YES, *NO):
        raise EndpointError(f"METAINIT_OFFLINE={text!r} says neither yes nor no; expected 1 or 0")
    return text.lower() in YES


def server() -> str | None:
    """Return the endpoint that METAINIT_SERVER names."""
    return os.environ.get("METAINIT_SERVER") or None


def key_for(url: str) -> str | None:
    """Return METAINIT_KEY, for the endpoint that METAINIT_SERVER names and no other.

    Example:
        >>> os.environ |= {'METAINIT_SERVER': 'https://ours/', 'METAINIT_KEY': 'secret'}
        >>> key_for('https://ours'), key_for('https://theirs')
        ('secret', None)
        >>> del os.environ['METAINIT_SERVER'], os.environ['METAINIT_KEY']
    """
    ours = server()
    if ours is None or ours.rstrip("/") != url.rstrip("/"):
        return None
    return os.environ.get("METAINIT_KEY") or None
