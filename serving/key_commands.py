"""The subcommands that make, list, rotate and revoke keys of the endpoint."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.answering import AsJson, answering
from serving import key_file
from serving import keys as kept
from serving.keys import Key, Made
from serving.scopes import SCOPES

File = Annotated[Path | None, typer.Option("--file", help="file of keys; default: in METAINIT_HOME")]
Id = Annotated[str, typer.Argument(metavar="ID", help="id of the key, as `metainit keys list` shows it")]

keys = typer.Typer(
    name="keys",
    help="Make, list, rotate and revoke the keys of an endpoint; one that runs follows within seconds.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@keys.command("make")
@answering
def make(
    scope: Annotated[
        list[str], typer.Option("--scope", help=f"what it opens, may be repeated: {', '.join(SCOPES)}")
    ] = ["read"],  # noqa: B006  # typer copies it
    label: Annotated[str, typer.Option(help="whose it is, or what it is for")] = "",
    days: Annotated[float | None, typer.Option(help="days until it expires; default: never", min=0.0)] = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show its token, this once."""
    lifetime = None if days is None else _days(days)
    made = kept.make(scope, _now(), label, lifetime)
    path = file or key_file.default_path()
    key_file.change(path, lambda _: ((made.key,), None))
    _tell(made, path, as_json)


@keys.command("list")
@answering
def list_(file: File = None, as_json: AsJson = False) -> None:
    """List the keys: id, scopes, state, label; never a secret."""
    path = file or key_file.default_path()
    known = key_file.read(path).values() if path.exists() else ()
    rows = [_row(key) for key in known]
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        typer.echo(f"there are no keys at {path}; make one: metainit keys make --scope read")
        return
    columns = ("id", "scopes", "state", "created", "expires", "label")
    table = [columns, *(tuple(_cell(row[column]) for column in columns) for row in rows)]
    widths = [max(len(line[at]) for line in table) for at in range(len(columns))]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@keys.command("revoke")
@answering
def revoke(id_: Id, file: File = None, as_json: AsJson = False) -> None:
    """Close a key for good, at once."""

    def step(known: key_file.Keys) -> tuple[tuple[Key, ...], Key]:
        closed = kept.revoke(known, id_, _now())
        return (closed,), closed

    closed = key_file.change(_existing(file), step)
    typer.echo(json.dumps(_row(closed)) if as_json else f"key {closed.id} is revoked")


@keys.command("rotate")
@answering
def rotate(
    id_: Id,
    grace: Annotated[float, typer.Option(help="days that the old one stays valid", min=0.0)] = 7.0,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Make a new key in the place of one, which stays valid for a while; show the token, this once."""

    def step(known: key_file.Keys) -> tuple[tuple[Key, ...], tuple[Key, Made]]:
        old, made = kept.rotate(known, id_, _now(), _days(grace))
        return (old, made.key), (old, made)

    path = _existing(file)
    old, made = key_file.change(path, step)
    _tell(made, path, as_json, old)


def _existing(file: Path | None) -> Path:
    """Return the file of keys, which has to be there.

    Raises:
        KeyFileError: it is not.
    """
    path = file or key_file.default_path()
    key_file.read(path)
    return path


def _tell(made: Made, path: Path, as_json: bool, old: Key | None = None) -> None:
    if as_json:
        row: dict[str, Any] = {**_row(made.key), "token": made.token, "file": str(path)}
        typer.echo(json.dumps({**row, "replaces": _row(old)} if old else row, indent=2))
        return
    typer.echo(made.token)
    typer.echo(f"is shown this once; only its SHA-256 is kept, in {path}", err=True)
    if old is not None and old.expires is not None:
        typer.echo(f"key {old.id} stays valid until {_moment(old.expires)}", err=True)


def _row(key: Key) -> dict[str, Any]:
    return {
        "id": key.id,
        "scopes": [scope for scope in SCOPES if scope in key.scopes],
        "state": key.state(_now()),
        "label": key.label,
        "created": _moment(key.created),
        "expires": None if key.expires is None else _moment(key.expires),
        "revoked": None if key.revoked is None else _moment(key.revoked),
        "replaced_by": key.replaced_by,
    }


def _cell(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else "" if value is None else str(value)


def _moment(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def _now() -> datetime:
    return datetime.now(UTC)


def _days(days: float) -> timedelta:
    """Return a length of time.

    Raises:
        BadParameter: it is longer than any calendar.
    """
    if days > 36_500:
        raise typer.BadParameter(f"{days:g} days are more than a century; leave it out for no end")
    return timedelta(days=days)
