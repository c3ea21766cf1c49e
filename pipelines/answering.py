"""What subcommands share: errors as one line, sizes and evidence as text, JSON, tables."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ParamSpec

import typer

from metainit.errors import EndpointError, MetainitError
from metainit.references import Reference

P = ParamSpec("P")
AsJson = Annotated[bool, typer.Option("--json", help="answer in JSON")]


def as_reference(text: str) -> str:
    """Return a reference as it is written, and refuse anything else as bad usage.

    Raises:
        BadParameter: it is no reference.

    Example:
        >>> as_reference('faces@champion')
        'faces@champion'
    """
    try:
        return str(Reference.parse(text))
    except EndpointError as error:
        raise typer.BadParameter(str(error)) from error


Named = Annotated[
    str, typer.Argument(metavar="NAME", help="name, name@alias or name/version", callback=as_reference)
]


def answering(command: Callable[P, None]) -> Callable[P, None]:
    """Turn an error that metainit raises on purpose into a line on stderr and exit status 1."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except MetainitError as error:
            typer.secho(f"error: {error}", err=True, fg=typer.colors.RED)
            raise typer.Exit(1) from error

    return wrapped


def headline_text(headline: Mapping[str, Any] | None) -> str:
    """Return the headline evidence in one line.

    Example:
        >>> headline_text({'metric': 'psnr', 'steps': 2, 'value': 31.2, 'control': 'siren',
        ...                'gain': 7.53, 'low': 7.1, 'high': 7.94})
        '31.2 psnr at 2 steps, +7.53 over siren (7.1 to 7.94)'
    """
    if not headline:
        return ""
    numbers = {k: f"{float(headline[k]):.4g}" for k in ("value", "low", "high") if k in headline}
    text = f"{numbers.get('value', '')} {headline.get('metric', '')}".strip()
    text += f" at {headline.get('steps', '?')} steps"
    if {"gain", "low", "high", "control"} <= set(headline):
        gain = f"{float(headline['gain']):+.4g}"
        text += f", {gain} over {headline['control']} ({numbers['low']} to {numbers['high']})"
    return text


def size_text(size: int) -> str:
    """Return a size in bytes as a person reads it.

    Example:
        >>> size_text(2_500_000)
        '2.5 MB'
    """
    value, units = float(size), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}"


def print_json(value: Any) -> None:
    """Print a JSON value."""
    typer.echo(json.dumps(value, indent=2))


def table(columns: Iterable[str], rows: Iterable[Iterable[str]], header: bool = True) -> None:
    """Print a table without lines; cells are text, never markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(*columns, box=None, show_header=header, pad_edge=False)
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    Console().print(drawn)
