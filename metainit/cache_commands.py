"""The subcommands of `metainit cache`: what is kept of endpoints, what may go, and whether it is sound."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from metainit.errors import MetainitError

AsJson = Annotated[bool, typer.Option("--json", help="answer in JSON")]

cache = typer.Typer(
    help="Show, prune and verify what was fetched from endpoints",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@cache.command()
def info(as_json: AsJson = False) -> None:
    """Say where the cache is, what is in it and how large it is."""
    from metainit.caching import items
    from metainit.places import caches_folder

    kept = _kept()
    have = items(kept)
    whole = [item for item in have if item.state == "whole"]
    parts = [item for item in have if item.state == "part"]
    others = {folder.name: _size(folder) for folder in _others(caches_folder(), kept.folder)}
    report: dict[str, Any] = {
        "folder": str(kept.folder),
        "blobs": len(whole),
        "bytes": sum(item.size for item in whole),
        "parts": len(parts),
        "part_bytes": sum(item.size for item in parts),
        "addresses": sum(1 for path in kept.notes() if path.name.count(".") == 1),
        "least_recently_used": have[0].used if have else None,
        "other_caches": others,
    }
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    typer.echo(f"{report['folder']}: {report['blobs']} files, {_text(report['bytes'])}")
    typer.echo(f"parts of downloads that broke off: {report['parts']}, {_text(report['part_bytes'])}")
    for name, size in others.items():
        typer.echo(f"beside it, not touched by these commands: {name}, {_text(size)}")


@cache.command()
def prune(
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="what was not used for so long: 12h, 30d")
    ] = None,
    larger_than: Annotated[
        str | None, typer.Option(metavar="SIZE", help="the least recently used, until this is left: 20GB")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete what was not used for long, or the least recently used; never what is in use."""
    from metainit.caching import bytes_of, chosen, items, seconds_of, tidy
    from metainit.caching import prune as delete

    if older_than is None and larger_than is None:
        raise typer.BadParameter("say what may go: --older-than 30d, --larger-than 20GB, or both")
    try:
        age = None if older_than is None else seconds_of(older_than)
        size = None if larger_than is None else bytes_of(larger_than)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    kept = _kept()
    going = chosen(items(kept), time.time(), age, size)
    gone, busy = (going, []) if dry_run else _asked(lambda: delete(kept, going))
    if not dry_run:
        _asked(lambda: tidy(kept))
    total = sum(item.size for item in gone)
    if as_json:
        report = {"dry_run": dry_run, "bytes": total, "in_use": [item.sha256 for item in busy]}
        typer.echo(json.dumps(report | {"removed": [item.sha256 for item in gone]}, indent=2))
        return
    verb = "would delete" if dry_run else "deleted"
    for item in gone:
        typer.echo(f"{verb} {item.path.name} ({_text(item.size)})")
    for item in busy:
        typer.echo(f"kept {item.path.name}: it is in use")
    typer.echo(f"{verb} {len(gone)} file(s), {_text(total)}")


@cache.command()
def verify(
    remove: Annotated[bool, typer.Option("--remove", help="delete what is damaged")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare every file with the SHA-256 that it is named by; exit status 1 if one is damaged."""
    from rich.console import Console

    from metainit.caching import damaged, items
    from metainit.caching import prune as delete

    kept = _kept()
    have = [item for item in items(kept) if item.state == "whole"]
    with Console(stderr=True).status(f"reading {_text(sum(item.size for item in have))}"):
        bad = list(damaged(have))
    gone = _asked(lambda: delete(kept, [item for item, _ in bad], float("inf")))[0] if remove else []
    if as_json:
        found = [{"sha256": item.sha256, "found": sha256, "path": str(item.path)} for item, sha256 in bad]
        report = {"files": len(have), "damaged": found, "removed": [item.sha256 for item in gone]}
        typer.echo(json.dumps(report, indent=2))
    else:
        for item, sha256 in bad:
            typer.echo(f"damaged: {item.path}: its SHA-256 is {sha256[:16]}…")
        typer.echo(f"{len(have) - len(bad)} of {len(have)} files are sound")
        if bad and not remove:
            typer.echo(
                "a damaged file is never used, and replaced when it is fetched; --remove deletes it now"
            )
    if bad:
        raise typer.Exit(1)


def _kept() -> Any:
    from metainit.client import CACHE
    from metainit.kept import Kept
    from metainit.places import cache_folder

    return Kept(cache_folder(CACHE))


def _asked(action: Any) -> Any:
    """Do something to the disk; what it refuses is one line and exit status 1."""
    try:
        return action()
    except (OSError, MetainitError) as error:
        typer.secho(f"error: the cache cannot be changed: {error}", err=True, fg=typer.colors.RED)
        raise typer.Exit(1) from error


def _others(caches: Path, ours: Path) -> list[Path]:
    if not caches.is_dir():
        return []
    return sorted(folder for folder in caches.iterdir() if folder.is_dir() and folder != ours)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _text(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
