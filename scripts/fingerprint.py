"""Print a fingerprint of everything that decides what the set-up installs.

Only the tables of pyproject.toml that pip reads count, so that a change of a linter's setting
does not install anything again.
"""

import hashlib
import json
import sys
import tomllib
from pathlib import Path

INSTALL_TABLES = ("build-system", "project")


def fingerprint(root: Path) -> str:
    """Hash the pins, the scripts, pip's part of pyproject.toml, the interpreter and the folder."""
    pyproject = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    digest = hashlib.sha256()
    digest.update(json.dumps([pyproject[t] for t in INSTALL_TABLES], sort_keys=True).encode())
    for name in ("constraints.txt", "scripts/setup.sh", "scripts/learn2learn.sh"):
        digest.update((root / name).read_bytes())
    # An editable install points at this folder: one that was moved or copied is out of date.
    digest.update(f"{sys.version_info[:3]} {sys.prefix} {root}".encode())
    return digest.hexdigest()


if __name__ == "__main__":
    print(fingerprint(Path(__file__).resolve().parent.parent))
