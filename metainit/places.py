"""Where metainit keeps what it makes and what it fetches, on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder() -> Path:
    """Return the folder of the embedded store: `METAINIT_HOME`, else the user's data folder.

    Example:
        >>> os.environ['METAINIT_HOME'] = '/data/metainit'
        >>> data_folder().as_posix()
        '/data/metainit'
        >>> del os.environ['METAINIT_HOME']
    """
    chosen = os.environ.get("METAINIT_HOME")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_data_dir

    return Path(user_data_dir("metainit"))


def caches_folder() -> Path:
    """Return the folder of all caches: `METAINIT_CACHE`, else in `METAINIT_HOME`, else the user's.

    Example:
        >>> os.environ['METAINIT_CACHE'] = '/fast/metainit'
        >>> caches_folder().as_posix()
        '/fast/metainit'
        >>> del os.environ['METAINIT_CACHE']
    """
    chosen = os.environ.get("METAINIT_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if os.environ.get("METAINIT_HOME"):
        return data_folder() / "cache"
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("metainit"))


def cache_folder(part: str) -> Path:
    """Return the folder of one cache, in that of all.

    Example:
        >>> os.environ['METAINIT_CACHE'] = '/fast/metainit'
        >>> cache_folder('registry').as_posix()
        '/fast/metainit/registry'
        >>> del os.environ['METAINIT_CACHE']
    """
    return caches_folder() / part
